"""InfluxDB: a bucket for each test."""

import json
import urllib.request
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote

from msgspec.structs import replace

from schemas.reading import Reading
from sinks.base import Fatal, Retry
from tests.lab.stores import StoreLab


class Lab(StoreLab):
    """A bucket of the test's own; the server refuses a text where the shard's field is a number."""

    server_name = "influxdb"
    mistakes = (
        ({"INFLUXDB_TOKEN": "wrong"}, Fatal),
        ({"INFLUXDB_URL": "http://127.0.0.1:1"}, Retry),
    )
    server: Any
    _token: Mapping[str, str] = {}

    async def make(self) -> dict[str, str]:
        """Choose a name that is free."""
        self.env = {**self.server.environment(), "INFLUXDB_BUCKET": f"test_{uuid.uuid4().hex[:12]}"}
        return self.env

    async def drop(self) -> None:
        """Delete the bucket."""
        found = self._ask("GET", f"/api/v2/buckets?name={quote(self.env['INFLUXDB_BUCKET'])}")
        for bucket in found["buckets"]:
            self._ask("DELETE", f"/api/v2/buckets/{bucket['id']}")
        if self._token:
            self._ask("DELETE", f"/api/v2/authorizations/{self._token['id']}")

    async def refuse(self, readings: Sequence[Reading]) -> None:
        """Make the field a number's in their shards, and a text's in another.

        A field has one type in all of a shard; of one that has two in the bucket only the server can say which it
        takes, and a sink that has learned the types refuses nothing. The text has no device: no reader sees it.
        """
        query = [(name, self.env[f"INFLUXDB_{name.upper()}"]) for name in ("org", "bucket")]
        text = "\n".join(f'{name},lab=lab conflict="text" 0' for name in {each.measurement for each in readings})
        async with self.opened() as sink:
            await sink.ask("POST", "/api/v2/write", query, [("Content-Type", "text/plain")], text.encode())
            await sink.write(sink.prepare([self.harmless(reading) for reading in readings]).payload)

    def poisoned(self, reading: Reading) -> Reading:
        """A text for that field."""
        return replace(reading, values={"conflict": "poison"})

    async def account(self) -> dict[str, str]:
        """A token that may read and write every bucket, and nothing else."""
        org = self._ask("GET", f"/api/v2/orgs?org={self.env['INFLUXDB_ORG']}")["orgs"][0]["id"]
        buckets = {"type": "buckets", "orgID": org}
        rights = [{"action": action, "resource": buckets} for action in ("read", "write")]
        self._token = self._ask("POST", "/api/v2/authorizations", {"orgID": org, "permissions": rights})
        return {"INFLUXDB_TOKEN": self._token["token"]}

    @asynccontextmanager
    async def locked_out(self) -> AsyncIterator[None]:
        """The token is revoked."""
        path = f"/api/v2/authorizations/{self._token['id']}"
        self._ask("PATCH", path, {"status": "inactive"})
        try:
            yield
        finally:
            self._ask("PATCH", path, {"status": "active"})

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        request = urllib.request.Request(  # noqa: S310  our own server
            f"{self.env['INFLUXDB_URL']}{path}",
            None if body is None else json.dumps(body).encode(),
            method=method,
            headers={"Authorization": f"Token {self.env['INFLUXDB_TOKEN']}", "Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
                text = answer.read()
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return {"buckets": []}
            raise
        return json.loads(text) if text else None
