"""influxdb-client's asynchronous write API."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from influxdb_client import WritePrecision, WriteService
from influxdb_client.client.influxdb_client_async import InfluxDBClientAsync

from schemas.reading import Reading
from sinks.influxdb.lines import CHANNEL, DEVICE
from tests.bench.stores import Bare

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class Client(Bare):
    """The driver's service with the sink's body as it is, and the API above it with one dictionary for each point."""

    times = 2
    public = True

    async def open(self) -> None:
        """Make the clients; each is one connection, as one request is sent at a time."""
        settings = self.settings
        where = {"token": settings.token.get_secret_value(), "org": settings.org, "timeout": 30_000}
        self._service = WriteService(InfluxDBClientAsync(settings.url, **where).api_client)
        self._api = InfluxDBClientAsync(settings.url, **where, enable_gzip=settings.gzip).write_api()

    async def send(self, payload: Any) -> None:
        """One request for each bucket."""
        settings = self.settings
        for part in payload:
            _, status, _ = await self._service.post_write_async(
                settings.org,
                part.bucket,
                part.body,
                precision=WritePrecision.US,
                content_type="text/plain; charset=utf-8",
                async_req=False,
                _return_http_data_only=False,
                **({"content_encoding": "gzip"} if settings.gzip else {}),
            )
            assert status == 204, status

    async def insert(self, readings: Sequence[Reading]) -> None:
        """One request; line protocol and its compression are the driver's."""
        points = [
            {
                "measurement": reading.measurement,
                "tags": {DEVICE: reading.device_id, CHANNEL: reading.channel},  # an empty one the driver leaves out
                "fields": reading.values,
                "time": (reading.time - _EPOCH) // _MICROSECOND,
            }
            for reading in readings
        ]
        assert await self._api.write(self.settings.bucket, record=points, write_precision=WritePrecision.US)
