"""apache-iotdb: its generated RPC client for the sink's requests, and its `Session` for lists of values."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

from iotdb.Session import Session
from iotdb.thrift.common.ttypes import TEndPoint
from iotdb.utils.IoTDBConstants import TSDataType
from iotdb.utils.rpc_utils import verify_success
from iotdb.utils.Tablet import Tablet

from schemas.reading import Reading
from sinks.iotdb.mapping import device_path
from tests.bench.stores import Bare

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class Client(Bare):
    """The driver blocks, which disturbs nobody here."""

    warm_up = True  # Java compiles what it does often
    public = True

    async def open(self) -> None:
        """Open a session for each way; one of them stays idle."""
        settings = self.settings
        self._session = Session(
            settings.host,
            settings.port,
            settings.user,
            settings.password.get_secret_value(),
            zone_id="UTC",
            enable_redirection=False,
        )
        self._session.open(settings.rpc_compression)
        self._connection = self._session.init_connection(TEndPoint(settings.host, settings.port))

        @cache
        def path(device: str, measurement: str, channel: str) -> str:
            below = device_path(device, measurement, channel, settings.default_measurement)
            return f"{settings.database}.{below}"

        self._path = path

    async def send(self, payload: Any) -> None:
        """The sink's requests, one after the other."""
        for name, request in payload.requests:
            request.sessionId = self._connection.session_id
            verify_success(getattr(self._connection.client, name)(request))

    async def insert(self, readings: Sequence[Reading]) -> None:
        """Tablets and records as the sink chooses between them; all values are numbers here."""
        devices: dict[str, list[Reading]] = {}
        for reading in readings:
            path = self._path(reading.device_id, reading.measurement, reading.channel)
            devices.setdefault(path, []).append(reading)
        tablets, few = [], []
        for path, rows in devices.items():
            if len(rows) < self.settings.tablet_rows:
                few += [(path, row) for row in rows]
                continue
            names = list(rows[0].values)
            types = [TSDataType.DOUBLE] * len(names)
            values = [list(row.values.values()) for row in rows]
            tablets.append(Tablet(path, names, types, values, [_time(row) for row in rows]))
        if tablets:
            self._session.insert_aligned_tablets(tablets)
        if few:
            self._session.insert_aligned_records(
                [path for path, _ in few],
                [_time(row) for _, row in few],
                [list(row.values) for _, row in few],
                [[TSDataType.DOUBLE] * len(row.values) for _, row in few],
                [list(row.values.values()) for _, row in few],
            )


def _time(reading: Reading) -> int:
    return (reading.time - _EPOCH) // _MICROSECOND
