"""Gateways: how their controllers are named, and what the MQTT topics say at which these publish.

A controller is its MAC address: twelve hex digits in lower case, in front of which `f2-` makes it a device's id. A
topic is `cmnd|stat|tele/f2-MAC/MODE/CONNECTOR/COMPONENT`; what is read there is the channel `MODE/CONNECTOR/PIN` of the
device. The pin of a sensor is its number, that of any other component its name.
"""

import re
from functools import lru_cache
from hashlib import blake2b
from typing import Final

from msgspec import Struct

from schemas.payload import quoted
from schemas.reading import RejectedError

#: What such topics look like, whatever follows the controller.
TOPIC: Final = re.compile(r"(cmnd|stat|tele)/f2-([0-9A-Fa-f]{12})/(.+)")
#: A topic has at most this many characters.
TOPIC_CHARS: Final = 200
#: The measurement of what pins say: not plain telemetry, whose metrics are the same for every device.
MEASUREMENT: Final = "iot"
#: The field and the tag that hold the topic.
TAG: Final = "original_topic"
#: Connectors and pins are numbered up to here.
LAST_NUMBER: Final = 99

_PREFIX: Final = "f2-"
_SEPARATORS: Final = re.compile(r"[:.\- ]")
# As people and systems write it: plain, in pairs or in fours, with one separator throughout.
_MAC: Final = re.compile(
    r"(?:f2-)?([0-9a-f]{12}|[0-9a-f]{2}([:.\- ])[0-9a-f]{2}(?:\2[0-9a-f]{2}){4}"
    r"|[0-9a-f]{4}([:.\- ])[0-9a-f]{4}\3[0-9a-f]{4})",
    re.ASCII | re.IGNORECASE,
)
_NUMBER: Final = re.compile(r"[Jj]?([0-9]{1,2})")
_PLACE: Final = re.compile(r"([A-Za-z0-9_.-]+)/([^/]+)/([^/]+)")
_COMPONENT: Final = re.compile(r"(sensor|strike|reader|motion-sensor|siren)-([0-9]{1,2})|door-sensors|exit-buttons")
_COMPONENTS: Final = "sensor-N, strike-N, door-sensors, reader-N, exit-buttons, motion-sensor-N and siren-N, N 0..99"


class Address(Struct, frozen=True):
    """What a topic says: numbers without zeros in front, and of a component without a number `''`."""

    topic: str
    command: bool
    controller: str
    device_id: str
    mode: str
    connector: str
    component: str
    number: str
    sensor: bool
    pin: str
    channel: str


def controller(text: str) -> str | None:
    """The twelve digits of a MAC address, with or without `f2-`, separators and capitals; None for any other text."""
    found = _MAC.fullmatch(text)
    return None if found is None else _SEPARATORS.sub("", found[1]).lower()


def device_id(mac: str) -> str:
    """The id of the device that is a controller."""
    return _PREFIX + mac


def number(text: str) -> str | None:
    """The number of a connector or pin, also as `01` or `J1`, without what is in front of it; None for other text."""
    found = _NUMBER.fullmatch(text)
    return None if found is None else str(int(found[1]))


def controller_of(topic: str) -> str | None:
    """The controller that a topic names, whatever follows it; None for any other topic."""
    found = TOPIC.fullmatch(topic)
    return None if found is None else found[2].lower()


@lru_cache(maxsize=16_384)
def address(topic: str) -> Address:
    """What a topic says.

    Raises `RejectedError`: `too_large`; `bad_type` for one of another form; `not_telemetry` for a component that has no
    readings.
    """
    if len(topic) > TOPIC_CHARS:
        raise RejectedError("too_large", f"{TAG} has {len(topic)} characters, more than {TOPIC_CHARS}")
    found = TOPIC.fullmatch(topic)
    if found is None:
        raise RejectedError("bad_type", f"{TAG} is {quoted(topic)}, not cmnd, stat or tele/f2-MAC/MODE/CONNECTOR/..")
    prefix, mac, rest = found[1], found[2].lower(), found[3]
    place = _PLACE.fullmatch(rest)
    named = _COMPONENT.fullmatch(place[3]) if place else None
    if place is None or named is None:
        raise RejectedError("not_telemetry", f"{TAG} ends in {quoted(rest)}; components with readings: {_COMPONENTS}")
    connector = number(place[2])
    if connector is None:
        raise RejectedError("bad_type", f"the connector in {TAG} is {quoted(place[2])}, not 0..99 or J1..J4")
    kind, digits = named.groups()
    count = str(int(digits)) if digits else ""
    component = f"{kind}-{count}" if digits else place[3]
    sensor = kind == "sensor"
    pin = count if sensor else component
    channel = f"{place[1]}/{connector}/{pin}"
    return Address(
        topic, prefix == "cmnd", mac, device_id(mac), place[1], connector, component, count, sensor, pin, channel
    )


def simulated(prefix: str, count: int) -> str:
    """The device id of a simulated controller; its address is one that no maker gives away."""
    return device_id(f"02{blake2b(prefix.encode(), digest_size=2).hexdigest()}{count % 0x1000000:06x}")
