"""InfluxDB: a bucket for each test."""

import json
import urllib.request
import uuid
from collections.abc import Sequence
from typing import Any

from msgspec.structs import replace

from schemas.reading import Reading
from sinks.base import Fatal, Retry
from tests.lab.stores import StoreLab


class Lab(StoreLab):
    """A bucket of the test's own; the server refuses a text where the field is a number."""

    server_name = "influxdb"
    mistakes = (
        ({"INFLUXDB_TOKEN": "wrong"}, Fatal),
        ({"INFLUXDB_URL": "http://127.0.0.1:1"}, Retry),
    )
    server: Any

    async def make(self) -> dict[str, str]:
        """Choose a name that is free."""
        self.env = {**self.server.environment(), "INFLUXDB_BUCKET": f"test_{uuid.uuid4().hex[:12]}"}
        return self.env

    async def drop(self) -> None:
        """Delete the bucket."""
        found = self._ask("GET", f"/api/v2/buckets?name={self.env['INFLUXDB_BUCKET']}")
        for bucket in found["buckets"]:
            self._ask("DELETE", f"/api/v2/buckets/{bucket['id']}")

    async def refuse(self, readings: Sequence[Reading]) -> None:
        """Make the field a number's, on another device: a field has one type in all of a measurement."""
        async with self.opened() as sink:
            await sink.write(sink.prepare([self.harmless(reading) for reading in readings]).payload)

    def poisoned(self, reading: Reading) -> Reading:
        """A text for that field."""
        return replace(reading, values={"conflict": "poison"})

    def _ask(self, method: str, path: str) -> Any:
        request = urllib.request.Request(  # noqa: S310  our own server
            f"{self.env['INFLUXDB_URL']}{path}",
            method=method,
            headers={"Authorization": f"Token {self.env['INFLUXDB_TOKEN']}"},
        )
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
                text = answer.read()
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return {"buckets": []}
            raise
        return json.loads(text) if text else None
