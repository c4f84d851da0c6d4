"""The alarms as they stand on their compacted topic: read to its end, chosen, found by key or id, by device."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from fnmatch import fnmatchcase
from typing import Final

from msgspec import Struct

from app import compacted
from app.settings import Settings
from schemas.alarm import OPEN, AlarmError, Record, Severity, State, read_record
from schemas.payload import quoted
from tables.alarms import worst

#: An id may be cut off after so many characters, where that tells it from others.
SHORTEST_ID: Final = 4
_NAMED: Final = 5
#: So many `|` are in a key with a measurement, less that.
_BARS: Final = 3


class Held(Struct):
    """What the topic holds: the alarms, the newest first, and by its key what is wrong with each other record."""

    records: list[Record]
    broken: dict[bytes, str]


class Chosen(Struct, frozen=True):
    """Which alarms: one of each kind that is named must be true. Devices are names, or patterns as `EQ00*`."""

    devices: Sequence[str] = ()
    severities: Sequence[Severity] = ()
    #: All, where empty.
    states: Sequence[State] = tuple(OPEN)

    def admits(self, record: Record) -> bool:
        """Whether an alarm is one of them."""
        device = record.device_id
        return (
            (not self.severities or record.severity in self.severities)
            and (not self.states or record.state in self.states)
            and (not self.devices or any(each == device or fnmatchcase(device, each) for each in self.devices))
        )


class Device(Struct, frozen=True):
    """What is wrong with a device as a whole: its worst open alarm, how many are open, and since when any is."""

    device_id: str
    open: int
    since: datetime
    worst: Record


async def held(settings: Settings) -> Held:
    """Read the topic to its present end.

    Raises what aiokafka raises, `TimeoutError`, and `TopicsError` where there is no topic.
    """
    found = Held([], {})
    for key, value in (await compacted.held(settings, settings.topics.alarms)).items():
        try:
            found.records.append(read_record(key, value))
        except AlarmError as error:
            found.broken[key] = str(error)
    found.records.sort(key=lambda record: (record.raised_at, record.key), reverse=True)
    return found


def find(records: Iterable[Record], wanted: str) -> Record:
    """The alarm with a key, an id, a key but for its measurement, or an id that begins so.

    Raises `AlarmError` where that is none, or several.
    """
    all_ = list(records)
    whole = wanted.count("|") == _BARS
    found = [record for record in all_ if wanted in {record.key, record.alarm_id}]
    found = found or [record for record in all_ if whole and record.key.rpartition("|")[0] == wanted]
    short = len(wanted) >= SHORTEST_ID
    begins = [record for record in all_ if short and record.alarm_id.startswith(wanted.lower())]
    found = found or begins
    if len(found) == 1:
        return found[0]
    if not found:
        raise AlarmError(f"no alarm has the key or the id {quoted(wanted)}; see iotflow alarms ls --all")
    names = ", ".join(record.alarm_id for record in found[:_NAMED]) + (", …" if len(found) > _NAMED else "")
    what = "an id" if found is begins else "a key"
    raise AlarmError(f"{len(found)} alarms have {what} that begins with {quoted(wanted)}: {names}")


def by_device(records: Iterable[Record]) -> list[Device]:
    """The devices that have open alarms, in the order in which the first alarm of each comes."""
    own: dict[str, list[Record]] = {}
    for record in records:
        if record.open:
            own.setdefault(record.device_id, []).append(record)
    found = []
    for device, alarms in own.items():
        most = worst(alarms)
        if most is not None:
            found.append(Device(device, len(alarms), min(alarm.raised_at for alarm in alarms), most))
    return found
