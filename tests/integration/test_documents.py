"""From a payload as the documents have it to what their own queries find; and from hostile payloads to nothing else."""

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from schemas import dialects, inputs
from schemas.decoding import Decoder
from schemas.reading import Reading
from tests.lab.stores import StoreLab
from tests.unit.test_decoding import Record

#: As S1's document has its raw messages; 0x0AE9 is 27.93 at two decimals.
GATEWAY = {
    "original_topic": "cmnd/f2-e4fd45f654be/sensor-mode/1/sensor-1",
    "device_id": "f2-e4fd45f654be",
    "payload": {"timestamp": "2023-05-25 15:13:10.543400", "data": "0A E9 0C 32 01 90"},
    "timestamp": 1685027591.5434,
}
IOTFLOW = {"api_key": "k-123", "data": {"temperature": 23.5}, "timestamp": "2024-01-01T12:00:00Z"}

HOSTILE_NAMES = (
    "'; DROP TABLE iot_measurements; --",
    '"; DROP TABLE iot_measurements; --',
    "a,b=c d",
    "a\nb 1=1 1",
    "`root`.**",
    "root.iotflow.x",
    "..",
    "../../etc/passwd",
    "$1",
    "%s%n",
    "\\",
    "\u202eevil",
    "é" * 100,
    "\U0001f525",
    "{}",
    "*",
    "SELECT",
    "_meta",
    "time",
    "\ttab",
)


def decoded(payload: object, dialect: str, origin: str = "") -> list[Reading]:
    """A payload through the decode stage's own function."""
    module = dialects.load()[dialect]
    made = Decoder(
        inputs.parse({"topics": {"t": {"dialect": dialect}}}, {}),
        partitions=1,
        stage="decode",
        version="1",
        max_message_bytes=2**20,
        registry=getattr(module, "EXAMPLE_REGISTRY", None),
    )
    headers = [("original_topic", origin.encode())] if origin else []
    _, outcomes = made.outcomes(Record(json.dumps(payload).encode(), topic="t", headers=headers))
    assert all(isinstance(outcome, Reading) for outcome in outcomes), outcomes
    return list(outcomes)


async def written(lab: StoreLab, readings: Sequence[Reading]) -> None:
    """Store them."""
    await lab.apply_schema()
    async with lab.opened() as sink:
        prepared = sink.prepare(readings)
        assert not prepared.rejected
        await sink.write(prepared.payload)


@asynccontextmanager
async def connected(lab: Any) -> AsyncIterator[Any]:
    """A connection to PostgreSQL."""
    connection = await lab.connect()
    yield connection
    await connection.close()


async def test_the_documents_select_finds_the_gateways_reading(timescale: Any) -> None:
    """`WHERE device_id = 'f2-e4fd45f654be' AND component_type = 'Temperature'`, with the address beside it."""
    await written(timescale, decoded(GATEWAY, "iot-gateway"))
    async with connected(timescale) as connection:
        row = await connection.fetchrow(
            "SELECT timestamp, value, unit, connector_mode, connector, pin_position, topic FROM iot_measurements "
            "WHERE device_id = 'f2-e4fd45f654be' AND component_type = 'Temperature'"
        )
        names = await connection.fetch("SELECT component_type FROM iot_measurements ORDER BY 1")
    assert row is not None
    assert row["timestamp"].isoformat() == "2023-05-25T15:13:10.543400+00:00"
    assert (row["value"], row["unit"]) == (27.93, "°C")
    assert (row["connector_mode"], row["connector"], row["pin_position"]) == ("sensor-mode", 1, "1")
    assert row["topic"] == GATEWAY["original_topic"]
    assert [name["component_type"] for name in names] == ["CO2", "Humidity", "Temperature"]


async def test_the_documents_older_records_are_the_same_series(timescale: Any) -> None:
    """A pin's value is one row, whether it came raw or as one of the documents' decoded records."""
    coded = {
        "timestamp": "2023-05-25T15:13:10.543400",
        "mac_address": "e4fd45f654be",
        "mode": "sensor-mode",
        "data_point_label": "Temperature",
        "pin": "1",
        "value": "27.93 °C",
        "unit": "°C",
        "original_topic": GATEWAY["original_topic"],
    }
    await written(timescale, [*decoded(GATEWAY, "iot-gateway"), *decoded(coded, "decoded")])
    async with connected(timescale) as connection:
        rows = await connection.fetch("SELECT value FROM iot_measurements WHERE component_type = 'Temperature'")
    assert [row["value"] for row in rows] == [27.93]


@pytest.mark.parametrize("lab", ["iotdb"], indirect=True)
async def test_the_documents_path_has_the_iotflow_reading(lab: Any) -> None:
    """Device 1 is `root.iotflow.device_1` (below the database of the test), and `api_key` is nowhere."""
    await written(lab, decoded(IOTFLOW, "iotflow", origin="iotflow/devices/1/telemetry"))
    database = lab.env["IOTDB_DATABASE"]
    async with lab.opened() as sink:
        rows = await sink.execute(f"SELECT temperature FROM {database}.device_1")
        assert await sink.count() == 1
    assert [[value for value in row if isinstance(value, float)] for row in rows] == [[23.5]]


async def test_hostile_names_are_names_and_nothing_else(labs: list[StoreLab]) -> None:
    """Quotes, paths, commas, line ends and SQL as device, metric, tag and text come back as they were said."""
    readings = [
        reading
        for number, name in enumerate(HOSTILE_NAMES)
        for reading in decoded(
            {
                "device_id": name,
                "timestamp": 1_760_000_000 + number,
                "temperature": 1.0,
                "humidity": 2.0,
                "battery": 3.0,
                "channel": name,
                name: name,
            },
            "telemetry",
        )
    ]
    assert len(labs) > 1
    assert len(readings) == len(HOSTILE_NAMES)
    for lab in labs:
        await written(lab, readings)
        async with lab.opened() as sink:
            found = [reading async for reading in sink.scan()]
            expected = [sink.kept(reading) for reading in readings]
        assert sorted(found, key=lambda each: each.time) == expected, lab.name
