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
        #: What is always answered to a path; None: nothing.
        self.odd: dict[str, tuple[int, str] | None] = {}
        self.ids: dict[int, dict[str, Any]] = {}
        self.subjects: dict[tuple[str, int], dict[str, Any]] = {}
        self.app = web.Application()
        self.app.router.add_get("/elsewhere", self._elsewhere)
        self.app.router.add_get("/base/schemas/ids/{number}", self._by_id)
        self.app.router.add_get("/base/subjects/{subject}/versions/{version}", self._by_subject)

    async def _by_id(self, request: web.Request) -> web.Response:
        found = self.ids.get(int(request.match_info["number"]))
        return await self._answer(request, found, 40403)

    async def _elsewhere(self, request: web.Request) -> web.Response:
        return await self._answer(request, {"schema": '"int"'}, 0)

    async def _by_subject(self, request: web.Request) -> web.Response:
        found = self.subjects.get((request.match_info["subject"], int(request.match_info["version"])))
        return await self._answer(request, found, 40401)

    async def _answer(self, request: web.Request, found: dict[str, Any] | None, code: int) -> web.Response:
        self.asked.append(request.raw_path)
        odd = self.odd.get(request.path, self.first.pop(0) if self.first else (0, ""))
        if odd is None:
            await asyncio.Event().wait()
        elif odd[0]:
            status, body = odd
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
        # One that hangs must not hold up its end.
        await self._server.start_server(shutdown_timeout=0.1)

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.close()

    def source(self, **more: Any) -> SchemaSource:
        settings = SchemaRegistry(url=f"http://127.0.0.1:{self.port}/base/", **more)
        return SchemaSource(Schemas(), schema_registry.place(settings), FAST, pause=0.01, clock=lambda: self.now)


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


async def test_an_id_that_is_not_known_is_asked_for_again_after_a_while(lab: Lab) -> None:
    source = lab.source()
    for _ in range(3):
        await source.fetch({9})
    assert len(lab.api.asked) == 3
    assert source.schemas.wanted(frame(9, b"")) == 9
    assert reason(source.schemas, frame(9, b"\x02")) == "unknown_schema"
    lab.now = 9.9
    await source.fetch({9})
    assert len(lab.api.asked) == 3
    lab.now = 10.0
    await source.fetch({9})
    assert len(lab.api.asked) == 4
    lab.api.ids[9] = {"schema": '"int"'}
    lab.now = 20.0
    await source.fetch({9})
    assert source.schemas.as_json(frame(9, b"\x02")) == b"1"


@pytest.mark.parametrize("times", [1, 2])
async def test_an_id_that_is_known_a_moment_later_refuses_nothing(lab: Lab, times: int) -> None:
    """A registry's followers lag."""
    lab.api.first = [(404, '{"error_code":40403}')] * times
    source = lab.source()
    await source.fetch({3})
    assert source.schemas.as_json(frame(3, b"5")) == b"5"


async def test_ids_that_somebody_makes_up_are_waited_for_once_in_a_while(lab: Lab) -> None:
    source = lab.source()
    await source.fetch({9})
    await source.fetch(set(range(100, 150)))
    assert len(lab.api.asked) == 3 + 50
    lab.now = 5.0
    await source.fetch({150})
    lab.now = 10.0
    await source.fetch({10})
    assert len(lab.api.asked) == 3 + 51 + 3


async def test_what_is_remembered_of_ids_is_bounded(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema_registry, "_REMEMBERED", 5)
    lab.api.odd["/base/schemas/ids/9"] = (500, "")
    source = lab.source()
    await source.fetch({9})
    for number in range(100, 105):
        await source.fetch({number})
    lab.api.asked.clear()
    with pytest.raises(RejectedError, match="does not know schema 9"):
        source.schemas.as_json(frame(9, b""))
    await source.fetch({101, 102, 103, 104})
    assert lab.api.asked == []
    await source.fetch({9})
    assert "/base/schemas/ids/9" in lab.api.asked


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
async def test_any_other_answer_to_all_means_that_it_is_away(
    lab: Lab, status: int, body: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever it says instead: no payload is refused for it, and it is told once what to do."""
    caplog.set_level(logging.INFO)
    lab.api.first = [(status, body)] * 6
    source = lab.source()
    await source.fetch({1})
    assert source.schemas.as_json(frame(1, b"\x02\x04")) == b'{"a":{"to":{"x":1}},"b":{"x":2}}'
    assert lab.api.asked.count("/base/schemas/ids/1") >= 4
    assert "/elsewhere" not in lab.api.asked
    assert told(caplog) == ["decoding waits for schemas", "schemas can be had again"]
    assert "SCHEMA_REGISTRY_" in remedy(caplog)


ODD = [
    (500, '{"error_code":50001,"message":"corrupt"}'),
    (404, '{"error_code":404,"message":"HTTP 404 Not Found"}'),
    (403, '{"error_code":40301}'),
    (302, ""),
    (200, "{}"),
    (200, '"' + "x" * (5 << 20)),
    (200, msgspec.json.encode({"schema": '"int"', "x": "x" * (5 << 20)}).decode()),
    None,
]


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("odd", ODD, ids=lambda odd: str(odd)[:20])
async def test_one_id_that_gets_no_answer_holds_up_nobody(
    lab: Lab,
    odd: tuple[int, str] | None,
    warm: bool,  # noqa: FBT001  a case
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its payloads are refused and say what was answered; it is asked for again, once in a while."""
    monkeypatch.setattr(schema_registry, "_TIMEOUT_S", 0.3)
    lab.api.odd["/base/schemas/ids/8"] = odd
    source = lab.source()
    if warm:
        await source.fetch({3})
    async with asyncio.timeout(20):
        await source.fetch({8})
        await source.fetch({8, 1})
    assert lab.api.asked.count("/base/schemas/ids/8") == 3
    assert source.schemas.wanted(frame(1, b"")) is None
    said = f"answered {odd[0] if len(odd[1]) < 1 << 20 else 'more than'}" if odd is not None else "did not answer"
    with pytest.raises(RejectedError, match=f"schema 8 cannot be had: .*/8 {said}") as caught:
        source.schemas.as_json(frame(8, b"\x02"))
    assert caught.value.rejected.reason == "unknown_schema"
    assert told(caplog) == ["a schema cannot be had"]
    lab.now = 59.9
    await source.fetch({8})
    assert lab.api.asked.count("/base/schemas/ids/8") == 3
    lab.now = 60.0
    await source.fetch({8})
    assert lab.api.asked.count("/base/schemas/ids/8") == 4
    assert told(caplog) == ["a schema cannot be had"]
    lab.api.odd.clear()
    lab.api.ids[8] = {"schema": '"int"'}
    lab.now = 120.0
    await source.fetch({8})
    assert source.schemas.as_json(frame(8, b"\x02")) == b"1"


@pytest.mark.parametrize("number", [2**31 - 1, 2**31 - 2])
async def test_the_largest_ids_hold_up_nobody_either(lab: Lab, number: int) -> None:
    lab.api.odd[f"/base/schemas/ids/{number}"] = (500, "")
    source = lab.source()
    async with asyncio.timeout(20):
        await source.fetch({number})
    assert reason(source.schemas, frame(number, b"")) == "unknown_schema"


async def test_when_no_id_can_be_had_that_could_before_all_are_waited_for(lab: Lab) -> None:
    """Though the registry still says of ids that nobody has that it does not know them."""
    source = lab.source()
    await source.fetch({3})
    lab.api.odd |= {f"/base/schemas/ids/{number}": (500, "") for number in (1, 2, 3)}
    task = await waiting(source.fetch({1, 2}), lambda: len(lab.api.asked) >= 30)
    lab.api.odd.clear()
    await task
    assert source.schemas.wanted(frame(1, b"")) is source.schemas.wanted(frame(2, b"")) is None


async def test_an_outage_does_not_count_as_a_try(lab: Lab) -> None:
    broken, works = (500, ""), (0, "")
    lab.api.first = [broken, works, broken, works, broken, broken, broken, works]
    source = lab.source()
    await source.fetch({3})
    assert source.schemas.wanted(frame(3, b"")) is None


@pytest.mark.parametrize("status", [401, 429])
async def test_some_answers_are_never_about_one_schema(lab: Lab, status: int) -> None:
    lab.api.odd["/base/schemas/ids/1"] = (status, "")
    source = lab.source()
    task = await waiting(source.fetch({1}), lambda: len(lab.api.asked) >= 10)
    lab.api.odd.clear()
    await task
    assert source.schemas.wanted(frame(1, b"")) is None


async def test_a_registry_that_hangs_is_waited_for_and_each_trouble_is_told_once(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(schema_registry, "_TIMEOUT_S", 0.1)
    paths = [f"/base/schemas/ids/{number}" for number in (1, 2**31 - 1)]
    lab.api.odd = dict.fromkeys(paths, (500, ""))
    source = lab.source()
    task = await waiting(source.fetch({1}), lambda: len(lab.api.asked) >= 6)
    assert told(caplog) == ["decoding waits for schemas"]
    lab.api.odd = dict.fromkeys(paths)
    await eventually(lambda: len(told(caplog)) == 2)
    asked = len(lab.api.asked)
    await eventually(lambda: len(lab.api.asked) >= asked + 4)
    assert told(caplog) == ["decoding waits for schemas"] * 2
    assert "did not answer within 0.1 s" in repr(vars(caplog.records[-1]))
    lab.api.odd = {}
    await task
    assert source.schemas.wanted(frame(1, b"")) is None
    assert told(caplog)[2:] == ["schemas can be had again"]


async def test_a_redirect_is_not_followed(lab: Lab) -> None:
    lab.api.odd["/base/schemas/ids/8"] = (302, "")
    source = lab.source()
    await source.fetch({8})
    assert "/elsewhere" not in lab.api.asked
    assert reason(source.schemas, frame(8, b"\x02")) == "unknown_schema"


async def test_what_a_schema_refers_to_is_bounded(lab: Lab) -> None:
    """In number, and in size."""

    def refer(number: int, others: int, size: int) -> None:
        named = [{"name": f"n{number}.{n}", "subject": f"s{number}.{n}", "version": 1} for n in range(others)]
        lab.api.ids[number] = {"schema": '"int"', "references": named}
        for n in range(others):
            text = text_of({"type": "fixed", "name": f"n{number}.n{n}", "size": 1, "doc": "x" * size})
            lab.api.subjects[f"s{number}.{n}", 1] = {"schema": text}

    refer(20, 256, 1)
    refer(21, 257, 1)
    refer(22, 6, 1 << 20)
    source = lab.source()
    await source.fetch({20, 21, 22})
    assert source.schemas.as_json(frame(20, b"\x02")) == b"1"
    for number in (21, 22):
        with pytest.raises(RejectedError, match="refers to more than 256 others, or than 4194304 bytes"):
            source.schemas.as_json(frame(number, b"\x02"))


async def test_an_answer_may_fail_between_a_schema_and_what_it_refers_to(lab: Lab) -> None:
    source = lab.source()
    lab.api.odd["/base/subjects/geo.Line/versions/1"] = (200, "{}")
    await source.fetch({1})
    with pytest.raises(RejectedError, match=r"geo\.Line/versions/1 answered 200, and not as"):
        source.schemas.as_json(frame(1, b"\x02\x04"))


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
    return SchemaSource(Schemas(), schema_registry.place(SchemaRegistry(directory=path)), FAST, pause=0.01)


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


async def test_a_file_that_cannot_be_read_holds_up_nobody(tmp_path: Path) -> None:
    (tmp_path / "1.avsc").mkdir()
    (tmp_path / "2.avsc").write_bytes(b"\xff")
    (tmp_path / "3.avsc").write_text('"int"')
    source = of_directory(tmp_path)
    await source.fetch({1, 2, 3})
    assert source.schemas.as_json(frame(3, b"\x02")) == b"1"
    for number in (1, 2):
        with pytest.raises(RejectedError, match=rf"schema {number} cannot be had: .*/{number}\.avsc cannot be read"):
            source.schemas.as_json(frame(number, b"\x02"))


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
