"""Schemas from a registry over HTTP and from a directory: learnt when needed, waited for when they cannot be had."""

import asyncio
import base64
import io
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import fastavro
import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer, unused_port
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet

from app import schema_registry
from app.schema_registry import SchemaSource
from app.settings import SettingsError, load
from app.settings.models import Retry, SchemaRegistry
from schemas.confluent import Schemas
from schemas.reading import RejectedError

POINT = {"type": "record", "name": "geo.Point", "fields": [{"name": "x", "type": "int"}]}
LINE = {"type": "record", "name": "geo.Line", "fields": [{"name": "to", "type": "geo.Point"}]}
TOP = {
    "type": "record",
    "name": "Top",
    "fields": [{"name": "a", "type": "geo.Line"}, {"name": "b", "type": "geo.Point"}],
}
FAST = Retry(first=0.01, cap=0.02)


def file(name: str, message: str, *imports: str, field: str = "") -> FileDescriptorProto:
    made = FileDescriptorProto(name=name, package="lab", syntax="proto3", dependency=list(imports))
    own = made.message_type.add(name=message).field.add(name="held", number=1, label=1)
    own.type = FieldDescriptorProto.TYPE_MESSAGE if field else FieldDescriptorProto.TYPE_INT32
    if field:
        own.type_name = field
    return made


BASE = file("lab/base.proto", "Base")
WHOLE = file("whole.proto", "Whole", "lab/base.proto", field=".lab.Base")


def text_of(schema: object) -> str:
    return msgspec.json.encode(schema).decode()


def frame(number: int, data: bytes) -> bytes:
    return b"\0" + number.to_bytes(4, "big") + data


class Api:
    """Plays a schema registry, as well or as badly as it is told."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        #: The user and password that it wants.
        self.login = ""
        #: Answers that come first, each `(status, body)`.
        self.first: list[tuple[int, str]] = []
        self.ids: dict[int, dict[str, Any]] = {}
        self.subjects: dict[tuple[str, int], dict[str, Any]] = {}
        self.app = web.Application()
        self.app.router.add_get("/base/schemas/ids/{number}", self._by_id)
        self.app.router.add_get("/base/subjects/{subject}/versions/{version}", self._by_subject)

    async def _by_id(self, request: web.Request) -> web.Response:
        found = self.ids.get(int(request.match_info["number"]))
        return self._answer(request, found, 40403)

    async def _by_subject(self, request: web.Request) -> web.Response:
        found = self.subjects.get((request.match_info["subject"], int(request.match_info["version"])))
        return self._answer(request, found, 40401)

    def _answer(self, request: web.Request, found: dict[str, Any] | None, code: int) -> web.Response:
        self.asked.append(request.raw_path)
        if self.first:
            status, body = self.first.pop(0)
            return web.Response(status=status, text=body, headers={"Location": "/elsewhere"})
        said = request.headers.get("Authorization", "")
        if self.login and said != f"Basic {base64.b64encode(self.login.encode()).decode()}":
            return web.json_response({"error_code": 401, "message": "Unauthorized"}, status=401)
        if found is None:
            return web.json_response({"error_code": code, "message": "not found"}, status=404)
        if "serialized" in found and request.query.get("format") == "serialized":
            found = found | {"schema": found["serialized"]}
        return web.json_response({name: held for name, held in found.items() if name != "serialized"})

    def fill(self) -> None:
        """Schemas of every kind: 1 Avro with references, 2 Protobuf with one, 3 JSON, 4 of a kind nobody knows."""
        point = {"name": "geo.Point", "subject": "geo/Point", "version": 3}
        line = {"name": "geo.Line", "subject": "geo.Line", "version": 1}
        self.ids[1] = {"schema": text_of(TOP), "references": [line, point]}
        self.subjects["geo/Point", 3] = {"schema": text_of(POINT)}
        self.subjects["geo.Line", 1] = {"schema": text_of(LINE), "references": [point]}
        base = {"name": "lab/base.proto", "subject": "lab/base.proto", "version": 1}
        self.ids[2] = {"schema": "message …", "schemaType": "PROTOBUF", "references": [base], **_serialized(WHOLE)}
        self.subjects["lab/base.proto", 1] = {"schema": "message …", "schemaType": "PROTOBUF", **_serialized(BASE)}
        self.ids[3] = {"schema": "{}", "schemaType": "JSON"}
        self.ids[4] = {"schema": "<a/>", "schemaType": "XML"}


def _serialized(made: FileDescriptorProto) -> dict[str, str]:
    return {"serialized": base64.b64encode(made.SerializeToString()).decode()}


class Lab:
    """A registry, and what asks it."""

    def __init__(self) -> None:
        self.api = Api()
        self.now = 0.0
        self.port = unused_port()
        self._server: TestServer | None = None

    async def start(self) -> None:
        self._server = TestServer(self.api.app, port=self.port)
        await self._server.start_server()

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.close()

    def source(self, **more: Any) -> SchemaSource:
        settings = SchemaRegistry(url=f"http://127.0.0.1:{self.port}/base/", **more)
        return SchemaSource(Schemas(), schema_registry.place(settings), FAST, clock=lambda: self.now)


@pytest.fixture
async def lab() -> AsyncIterator[Lab]:
    made = Lab()
    await made.start()
    made.api.fill()
    yield made
    await made.stop()


def reason(schemas: Schemas, payload: bytes) -> str:
    with pytest.raises(RejectedError) as caught:
        schemas.as_json(payload)
    return caught.value.rejected.reason


async def eventually(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not holds():  # noqa: ASYNC110  there is no event to wait for
            await asyncio.sleep(0.005)


async def waiting(work: Awaitable[None], holds: Callable[[], bool]) -> "asyncio.Task[None]":
    """Begin something, and see that it is not done when something holds."""
    task = asyncio.ensure_future(work)
    await eventually(holds)
    assert not task.done()
    return task


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "app.schema_registry"]


def remedy(caplog: pytest.LogCaptureFixture) -> str:
    (found,) = (str(vars(record)["remedy"]) for record in caplog.records if hasattr(record, "remedy"))
    return found


# -- a registry --------------------------------------------------------------------------------------------------------


async def test_every_kind_of_schema_is_learnt(lab: Lab) -> None:
    source = lab.source()
    await source.fetch({1, 2, 3, 4})
    schemas = source.schemas
    assert schemas.as_json(frame(1, b"\x02\x04")) == b'{"a":{"to":{"x":1}},"b":{"x":2}}'
    assert schemas.as_json(frame(2, b"\0\x0a\x02\x08\x05")) == b'{"held":{"held":5}}'
    assert schemas.as_json(frame(3, b'{"a":1}')) == b'{"a":1}'
    assert reason(schemas, frame(4, b"")) == "unknown_schema"
    assert all(schemas.wanted(frame(number, b"")) is None for number in (1, 2, 3, 4))
    assert "/base/subjects/geo%2FPoint/versions/3" in lab.api.asked
    assert len(lab.api.asked) == len(set(lab.api.asked))


async def test_many_are_learnt_at_once(lab: Lab) -> None:
    lab.api.ids |= {number: {"schema": '"int"'} for number in range(100, 200)}
    source = lab.source()
    await source.fetch(set(range(100, 200)))
    assert all(source.schemas.as_json(frame(number, b"\x02")) == b"1" for number in range(100, 200))


async def test_an_id_that_is_not_known_is_asked_for_once_a_minute(lab: Lab) -> None:
    source = lab.source()
    for _ in range(3):
        await source.fetch({9})
    assert len(lab.api.asked) == 1
    assert source.schemas.wanted(frame(9, b"")) == 9
    assert reason(source.schemas, frame(9, b"\x02")) == "unknown_schema"
    lab.api.ids[9] = {"schema": '"int"'}
    lab.now = 59.9
    await source.fetch({9})
    assert len(lab.api.asked) == 1
    lab.now = 60.0
    await source.fetch({9})
    assert source.schemas.as_json(frame(9, b"\x02")) == b"1"


async def test_a_reference_that_is_not_known_makes_its_schema_unknown(lab: Lab) -> None:
    del lab.api.subjects["geo/Point", 3]
    source = lab.source()
    await source.fetch({1})
    assert reason(source.schemas, frame(1, b"\x02\x04")) == "unknown_schema"
    assert source.schemas.wanted(frame(1, b"")) == 1


async def test_references_in_a_circle_end(lab: Lab) -> None:
    circle = [{"name": "a", "subject": "a", "version": 1}]
    lab.api.ids[5] = {"schema": '"int"', "references": circle}
    lab.api.subjects["a", 1] = {"schema": '{"type":"fixed","name":"a","size":1}', "references": circle}
    source = lab.source()
    await source.fetch({5})
    assert source.schemas.as_json(frame(5, b"\x02")) == b"1"


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (500, "oh"),
        (503, '{"error_code":40403}'),
        (429, "slow down"),
        (403, '{"error_code":40301}'),
        (404, "<html>nobody knows this page</html>"),
        (404, '{"error_code":404,"message":"HTTP 404 Not Found"}'),
        (404, ""),
        (302, ""),
        (400, "{}"),
        (200, "<html>welcome</html>"),
        (200, "{}"),
        (200, '{"schema":5}'),
        (200, "[" * 100_000),
    ],
)
async def test_any_other_answer_means_that_it_is_away(
    lab: Lab, status: int, body: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever it says instead: no payload is refused for it, and it is told once what to do."""
    caplog.set_level(logging.INFO)
    lab.api.first = [(status, body)] * 5
    source = lab.source()
    await source.fetch({1})
    assert source.schemas.as_json(frame(1, b"\x02\x04")) == b'{"a":{"to":{"x":1}},"b":{"x":2}}'
    assert lab.api.asked[:6] == ["/base/schemas/ids/1"] * 6
    assert told(caplog) == ["decoding waits for schemas", "schemas can be had again"]
    assert "SCHEMA_REGISTRY_" in remedy(caplog)


async def test_it_may_go_away_between_a_schema_and_what_it_refers_to(lab: Lab) -> None:
    source = lab.source()
    lab.api.subjects["geo.Line", 1] = {}  # an answer without a schema in it
    task = await waiting(source.fetch({1}), lambda: len(lab.api.asked) >= 6)
    lab.api.fill()
    await task
    assert source.schemas.wanted(frame(1, b"")) is None


async def test_a_registry_that_is_down_is_waited_for(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    await lab.stop()
    source = lab.source()
    task = await waiting(source.fetch({1, 2, 9}), lambda: bool(told(caplog)))
    await asyncio.sleep(0.2)
    assert not task.done()
    assert told(caplog) == ["decoding waits for schemas"]
    again = Lab()
    again.port, again.api = lab.port, Api()
    again.api.fill()
    await again.start()
    try:
        await task
    finally:
        await again.stop()
    assert source.schemas.wanted(frame(1, b"")) is None
    assert reason(source.schemas, frame(9, b"")) == "unknown_schema"
    assert told(caplog)[1:] == ["schemas can be had again"]


async def test_a_wait_can_be_given_up(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    await lab.stop()
    source = lab.source()
    task = await waiting(source.fetch({1, 2}), lambda: bool(told(caplog)))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_wrong_password_is_told_and_waited_for(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    lab.api.login = "iot:påss:word"
    right = lab.source(user="iot", password="påss:word")  # noqa: S106
    await right.fetch({3})
    assert right.schemas.wanted(frame(3, b"")) is None
    wrong = lab.source(user="iot", password="hunter2")  # noqa: S106
    task = await waiting(wrong.fetch({3}), lambda: bool(told(caplog)))
    assert "SCHEMA_REGISTRY_PASSWORD" in remedy(caplog)
    assert "hunter2" not in repr([vars(record) for record in caplog.records])
    lab.api.login = "iot:hunter2"
    await task
    assert wrong.schemas.wanted(frame(3, b"")) is None


# -- a directory -------------------------------------------------------------------------------------------------------


def of_directory(path: Path) -> SchemaSource:
    return SchemaSource(Schemas(), schema_registry.place(SchemaRegistry(directory=path)), FAST)


async def test_files_are_schemas_by_their_names(tmp_path: Path) -> None:
    (tmp_path / "1.avsc").write_text(text_of(POINT))
    (tmp_path / "2.json").write_text("{}")
    (tmp_path / "3.desc").write_bytes(FileDescriptorSet(file=[BASE, WHOLE]).SerializeToString())
    source = of_directory(tmp_path)
    await source.fetch({1, 2, 3, 4})
    assert source.schemas.as_json(frame(1, b"\x02")) == b'{"x":1}'
    assert source.schemas.as_json(frame(2, b"[]")) == b"[]"
    assert source.schemas.as_json(frame(3, b"\0\x0a\x02\x08\x05")) == b'{"held":{"held":5}}'
    assert source.schemas.wanted(frame(4, b"")) == 4
    assert reason(source.schemas, frame(4, b"")) == "unknown_schema"


async def test_a_file_that_cannot_be_read_is_waited_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "1.avsc").mkdir()
    source = of_directory(tmp_path)
    task = await waiting(source.fetch({1}), lambda: bool(told(caplog)))
    (tmp_path / "1.avsc").rmdir()
    (tmp_path / "1.avsc").write_text('"int"')
    await task
    assert source.schemas.as_json(frame(1, b"\x02")) == b"1"


async def test_a_directory_that_is_gone_is_waited_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A mount that is not there yet must not make unknown schemas of all."""
    folder = tmp_path / "schemas"
    folder.mkdir()
    source = of_directory(folder)
    folder.rmdir()
    task = await waiting(source.fetch({1}), lambda: bool(told(caplog)))
    other = tmp_path / "other"
    other.mkdir()
    (other / "1.avsc").write_text('"int"')
    other.rename(folder)
    await task
    assert source.schemas.as_json(frame(1, b"\x02")) == b"1"


# -- settings ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("env", "says"),
    [
        ({"SCHEMA_REGISTRY_URL": "ftp://x"}, "SCHEMA_REGISTRY_URL"),
        ({"SCHEMA_REGISTRY_URL": "http://iot:hunter2@x"}, "SCHEMA_REGISTRY_URL"),
        ({"SCHEMA_REGISTRY_URL": "http://x", "SCHEMA_REGISTRY_DIR": "."}, "SCHEMA_REGISTRY_DIR are both set"),
        ({"SCHEMA_REGISTRY_DIR": "/no/such/place"}, "must be the path of a directory that exists"),
        ({"SCHEMA_REGISTRY_URL": "http://x", "SCHEMA_REGISTRY_USER": "iot"}, "go together"),
        ({"SCHEMA_REGISTRY_URL": "http://x", "SCHEMA_REGISTRY_PASSWORD": "hunter2"}, "go together"),
        ({"SCHEMA_REGISTRY_USER": "iot", "SCHEMA_REGISTRY_PASSWORD": "hunter2"}, "is set without"),
    ],
)
def test_settings_that_cannot_be_used_are_named(env: dict[str, str], says: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load(env)
    assert says in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_settings_come_from_the_environment_and_from_files(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("hunter2\n")
    login = {"SCHEMA_REGISTRY_USER": "iot", "SCHEMA_REGISTRY_PASSWORD_FILE": str(secret)}
    found = load({"SCHEMA_REGISTRY_URL": "https://x:8081/base", **login}).schema_registry
    assert (found.url, found.user, found.directory) == ("https://x:8081/base", "iot", None)
    assert found.password is not None
    assert found.password.get_secret_value() == "hunter2"
    assert load({"SCHEMA_REGISTRY_DIR": str(tmp_path)}).schema_registry.directory == tmp_path


def test_a_topic_that_needs_schemas_needs_a_place_for_them() -> None:
    with pytest.raises(ValueError, match="SCHEMA_REGISTRY_URL or SCHEMA_REGISTRY_DIR"):
        schema_registry.place(SchemaRegistry())


async def test_what_a_real_encoder_wrote_is_read(lab: Lab) -> None:
    schema = fastavro.parse_schema({"type": "record", "name": "R", "fields": [{"name": "t", "type": "double"}]})
    stream = io.BytesIO()
    fastavro.schemaless_writer(stream, schema, {"t": 21.5})
    lab.api.ids[7] = {"schema": '{"type":"record","name":"R","fields":[{"name":"t","type":"double"}]}'}
    source = lab.source()
    await source.fetch({7})
    assert source.schemas.as_json(frame(7, stream.getvalue())) == b'{"t":21.5}'
