import ssl
import subprocess
import sys
import zlib
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from app.settings import SettingsError, load
from schemas.reading import Reading, Rejected
from sinks import influxdb
from sinks.base import Fatal, PartialWriteError, Reject, Retry
from sinks.influxdb import AnswerError, InfluxSink, Settings, lines
from sinks.influxdb.fields import TRUSTED_S, FieldTypes, readable
from sinks.influxdb.lines import Lines
from sinks.influxdb.server import refused_lines

T0 = datetime(2025, 10, 5, 12, 34, 56, 123456, tzinfo=UTC)
STAMP = 1759667696123456
SECRET = SecretStr("sesame")
TYPES = {"telemetry.counter": "INT64", "small": "INT32", "ratio": "FLOAT"}

ODD = st.text(st.sampled_from(" ,=\"'\\%#_\n\t\r\0\ufffd\u00a0aé🌡0")) | st.text()


def reading(device: str = "dev-1", at: int = 0, **more: Any) -> Reading:
    values = more.pop("values", {"temperature": 20.5})
    measurement = more.pop("measurement", "telemetry")
    return Reading(measurement, device, T0 + timedelta(microseconds=at), values, dialect=measurement, **more)


def line(given: Reading, tags: tuple[str, ...] = ()) -> str:
    return Lines(tags, TYPES).line(given)


def test_the_settings_do_not_need_the_driver() -> None:
    """Every worker imports this module; only the stage that stores in InfluxDB may pay for its driver."""
    code = "import sys, sinks.influxdb; print([n for n in ('influxdb_client', 'aiohttp', 'numpy') if n in sys.modules])"

    assert (
        "[]" == subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    )


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "telemetry,device_id=dev-1 temperature=20.5"),
        ({"channel": "sensor-mode/1/3"}, "telemetry,channel=sensor-mode/1/3,device_id=dev-1 temperature=20.5"),
        ({"device": "a b,c=d"}, r"telemetry,device_id=a\ b\,c\=d temperature=20.5"),
        ({"measurement": "a b,c=d"}, r"a\ b\,c=d,device_id=dev-1 temperature=20.5"),
        ({"values": {"a b,c=d": 1.0}}, r"telemetry,device_id=dev-1 a\ b\,c\=d=1.0"),
        ({"device": "back\\"}, "telemetry,device_id=%back%5C temperature=20.5"),
        ({"device": "50% \n", "measurement": "#1"}, r"%#1,device_id=%50%25\ %0A temperature=20.5"),
        ({"device": "", "measurement": ""}, "%,device_id=% temperature=20.5"),
        ({"values": {"time": 1.0, "_field": 2.0}}, "telemetry,device_id=dev-1 %time=1.0,%_field=2.0"),
        ({"values": {"device_id": 1.0, "channel": 2.0}}, "telemetry,device_id=dev-1 %device_id=1.0,%channel=2.0"),
        ({"values": {"a": -0.0, "b": 5e-324, "c": 1e308}}, "telemetry,device_id=dev-1 a=-0.0,b=5e-324,c=1e+308"),
        ({"values": {"a": 7, "b": True, "c": False}}, "telemetry,device_id=dev-1 a=7,b=true,c=false"),
        ({"values": {"a": -(2**53)}}, "telemetry,device_id=dev-1 a=-9007199254740992"),
        ({"values": {"counter": 2**63 - 1}}, "telemetry,device_id=dev-1 counter=9223372036854775807i"),
        ({"values": {"small": -(2**31), "ratio": 1}}, "telemetry,device_id=dev-1 small=-2147483648i,ratio=1"),
        ({"values": {"none": None, "a": 1}}, "telemetry,device_id=dev-1 a=1"),
        ({"values": {"s": 'a "b" \\ \n', "e": ""}}, 'telemetry,device_id=dev-1 s="a \\"b\\" \\\\ \n",e=""'),
        ({"flags": ["clamped"]}, r'telemetry,device_id=dev-1 temperature=20.5,_meta="{\"flags\":[\"clamped\"]}"'),
        ({"values": {"_meta": 1.0}, "units": {}}, "telemetry,device_id=dev-1 %_meta=1.0"),
        ({"values": {"a": None}, "flags": ["x"]}, r'telemetry,device_id=dev-1 _meta="{\"flags\":[\"x\"]}"'),
    ],
)  # fmt: skip
def test_a_line(given: dict[str, Any], expected: str) -> None:
    """Each part of a reading in the form that line protocol has for it, or in ours where it has none."""
    assert f"{expected} {STAMP}" == line(reading(given.pop("device", "dev-1"), **given))


def test_promoted_tags_are_part_of_the_series_and_not_of_the_meta_text() -> None:
    """In the order of their names, an empty one as ours, an absent one not at all."""
    given = reading(tags={"site": "a b", "area": "", "original_topic": "x"}, values={"site": 1.0})

    expected = r'telemetry,area=%,device_id=dev-1,site=a\ b %site=1.0,_meta="{\"tags\":{\"original_topic\":\"x\"}}"'
    assert f"{expected} {STAMP}" == line(given, ("site", "area", "absent"))


def test_a_reading_that_says_nothing_is_no_line() -> None:
    assert line(reading(values={"a": None})) == ""


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"values": {"a": 2**53 + 1}}, "integer_too_large"),
        ({"values": {"a": float("nan")}}, "bad_type"),
        ({"values": {"a": float("-inf")}}, "bad_type"),
        ({"values": {"counter": 1.5}}, "bad_type"),
        ({"values": {"counter": True}}, "bad_type"),
        ({"values": {"small": 2**31}}, "bad_type"),
    ],
)
def test_what_no_line_can_hold(given: dict[str, Any], reason: str) -> None:
    prepared = InfluxSink(Settings(), TYPES).prepare([reading(**given)])

    assert [reason] == [rejected.reason for rejected in prepared.rejected.values()]


@pytest.mark.parametrize(
    ("year", "fits"), [(1, False), (1677, False), (1678, True), (1969, True), (2261, True), (2263, False)]
)
def test_times_that_nanoseconds_in_64_bits_can_count(year: int, fits: bool) -> None:  # noqa: FBT001  a table
    made = Reading("telemetry", "dev-1", datetime(year, 1, 1, tzinfo=UTC), {"a": 1.0})

    rejected = InfluxSink(Settings()).prepare([made]).rejected

    assert ([] if fits else ["bad_timestamp"]) == [each.reason for each in rejected.values()]


@given(ODD)
def test_a_name_comes_back_and_holds_nothing_that_line_protocol_cannot(name: str) -> None:
    """So no two names have the same stored form."""
    stored = lines.stored(name)

    assert name == lines.original(stored)
    assert stored.isprintable()
    assert stored[0] not in "#_"
    assert not set("\\\ufffd") & set(stored)


PLACES = st.tuples(ODD, ODD, ODD, st.dictionaries(st.sampled_from(["site", "area"]), ODD))


@given(PLACES, PLACES, ODD, ODD)
def test_different_readings_are_different_lines(one: Any, two: Any, metric: str, text: str) -> None:
    """Whatever is in names and texts, what identifies a point can be told from its line."""
    made = Lines(("site", "area"))

    def head(measurement: str, device: str, channel: str, tags: dict[str, str]) -> str:
        return made.line(reading(device, measurement=measurement, channel=channel, tags=tags, values={metric: text}))

    assert (one == two) is (head(*one) == head(*two))


@given(st.lists(ODD, min_size=2, max_size=2, unique=True))
def test_different_values_and_metrics_are_different_lines(names: list[str]) -> None:
    one, two = names

    assert line(reading(values={"a": one})) != line(reading(values={"a": two}))
    assert line(reading(values={one: 1.0})) != line(reading(values={two: 1.0}))


def test_a_batch_is_one_compressed_body_without_what_was_rejected_or_says_nothing() -> None:
    """`places` count among the readings that were not rejected, which is how delivery counts."""
    batch = [reading(at=0), reading(values={"a": float("nan")}), reading(values={"a": None}), reading(at=3)]

    prepared = InfluxSink(Settings(gzip=True)).prepare(batch)

    assert [1] == list(prepared.rejected)
    (part,) = prepared.payload
    assert [0, 2] == part.places
    assert prepared.rows == 2
    assert "\n".join(part.lines).encode() == zlib.decompress(part.body, 31)
    (plain,) = InfluxSink(Settings(gzip=False)).prepare(batch).payload
    assert "\n".join(plain.lines).encode() == plain.body
    assert plain.bucket == "iotflow"


def test_a_batch_is_one_body_for_each_of_its_buckets() -> None:
    """By measurement, in the order of the readings; what has no bucket of its own goes to the default one."""
    sink = InfluxSink(Settings(bucket_by_measurement={"fire": "Fire", "smoke": "Fire"}))
    names = ["telemetry", "fire", "fire", "smoke", "telemetry"]
    values = [1.0, float("nan"), 3.0, 4.0, 5.0]

    prepared = sink.prepare(
        [reading(measurement=name, values={"a": value}) for name, value in zip(names, values, strict=True)]
    )

    assert [1] == list(prepared.rejected)
    assert [("iotflow", [0, 3]), ("Fire", [1, 2])] == [(part.bucket, part.places) for part in prepared.payload]
    assert prepared.rows == 4
    for part in prepared.payload:
        assert "\n".join(part.lines).encode() == part.body
    assert sink.prepare([]).payload == ()


def test_what_is_kept() -> None:
    """Nulls are not, and a reading with nothing else only where it says something besides its values."""
    sink = InfluxSink(Settings(tags=("site",)))

    assert reading(values={"b": 1.0}) == sink.kept(reading(values={"a": None, "b": 1.0}))
    assert sink.kept(reading(values={"a": None}, tags={"site": "x"})) is None
    assert reading(values={}, flags=["x"]) == sink.kept(reading(values={"a": None}, flags=["x"]))


CONFLICT = (
    'failure writing points to database: partial write: field type conflict: input field "f" on measurement "m" '
    "is type string, already exists as type float dropped=1"
)


def said(words: str) -> bytes:
    return b'{"code":"x","message":"' + words.encode().replace(b'"', b'\\"') + b'"}'


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (AnswerError(401, said("unauthorized access")), "INFLUXDB_TOKEN_FILE"),
        (AnswerError(403, said("insufficient permissions for write")), "may not write to bucket 'iotflow'"),
        (AnswerError(404, said('bucket "iotflow" not found')), "iotflow schema apply"),
        (AnswerError(404, b"<html>"), "INFLUXDB_URL"),
        (AnswerError(302, b"", {"Location": "https://login"}), "redirects to https://login"),
        (ssl.SSLCertVerificationError("self-signed"), "INFLUXDB_SSL_CA"),
        (AnswerError(400, said("unable to parse 'x': missing fields")), Reject),
        (AnswerError(400, b"<html>The plain HTTP request was sent to HTTPS port"), Retry),
        (AnswerError(400, b'{"message":"the gateway does not know this host"}'), Retry),
        (AnswerError(429, said("slow"), {"Retry-After": "86400"}), Retry("HTTP 429: slow", after_s=60.0)),
        (AnswerError(422, said(CONFLICT)), Reject),
        (influxdb.server.SetupError("give it the right"), "give it the right"),
        (AnswerError(201, b'{"error":"partial write"}'), Reject),
        (AnswerError(200, b"<html>welcome"), Retry),
        (AnswerError(413, b"<html>"), Retry("HTTP 413: <html>", smaller=True)),
        (AnswerError(429, said("slow"), {"Retry-After": "7"}), Retry("HTTP 429: slow", after_s=7.0)),
        (AnswerError(503, b"", {"Retry-After": "Fri, 31 Dec 1999 23:59:59 GMT"}), Retry("HTTP 503: ")),
        (AnswerError(500, said("unexpected error writing points to database: timeout")), Retry),
        (AnswerError(418), Retry),
        (ConnectionRefusedError("refused"), Retry("ConnectionRefusedError: refused")),
        (RuntimeError("Session is closed"), Retry),
    ],
)
def test_what_an_error_means(error: Exception, verdict: Any) -> None:
    """A text is part of the remedy of a `Fatal`."""
    found = InfluxSink(Settings(token=SECRET)).classify(error)

    if isinstance(verdict, str):
        assert isinstance(found, Fatal)
        assert verdict in found.remedy
    elif isinstance(verdict, type):
        assert isinstance(found, verdict)
    else:
        assert verdict == found
    assert "sesame" not in str(found)


def test_a_reject_has_the_servers_words_and_not_too_many_of_them() -> None:
    found = InfluxSink(Settings()).classify(AnswerError(422, said(CONFLICT)))
    long = InfluxSink(Settings()).classify(AnswerError(422, said("x" * 100_000)))

    assert Reject(Rejected("type_conflict", f"HTTP 422: {CONFLICT}")) == found
    assert isinstance(long, Reject)
    assert long.rejected.reason == "refused"
    assert len(long.rejected.error) < 1000


LINES = ["m f=1 1", "m f= 2", 'm f="a\nb" 3', "broken", "broken"]


@pytest.mark.parametrize(
    ("status", "words", "expected"),
    [
        (400, "unable to parse 'm f= 2': missing field value", {1: "missing field value"}),
        (
            400,
            "unable to parse 'm f=\"a\nb\" 3': it's bad\nunable to parse 'broken': missing fields",
            {2: "it's bad", 3: "missing fields", 4: "missing fields"},
        ),
        (400, "unable to parse 'somebody else's': missing fields", {}),
        (400, "unable to parse 'broken': missing fields\nunable to parse 'unknown': missing fields", {}),
        (400, "odd: unable to parse 'broken': missing fields", {}),
        (400, "first\nunable to parse 'broken': missing fields", {}),
        (400, "no line is named", {}),
        (422, "unable to parse 'broken': missing fields", {}),
        (413, "too large", {}),
    ],
)
def test_lines_that_an_answer_names(status: int, words: str, expected: dict[int, str]) -> None:
    """Only when every line it names is one of ours are they believed to be all; else delivery must search."""
    answer = AnswerError(status, msgspec.json.encode({"message": words}))

    assert expected == {index: why.error for index, why in refused_lines(answer, LINES).items()}


EXPIRED = (
    "failure writing points to database: partial write: dropped {0} points outside retention policy of duration "
    "24h0m0s - oldest point m,device_id=a at 2026-11-20T05:40:35.969857Z dropped because it violates a Retention "
    "Policy Lower Bound at 2026-11-22T05:40:35.971756226Z, newest point m,device_id=a at 2026-11-21T05:40:35.969857Z "
    "dropped because it violates a Retention Policy Lower Bound at 2026-11-22T05:40:35.971756226Z dropped={0} for "
    "database: 82847f17342ae5a8 for retention policy: autogen"
)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (EXPIRED.format(1), {2}),
        (EXPIRED.format(2), {1, 2}),
        (EXPIRED.format(3), set()),  # of two lines of one time only one would be
        (EXPIRED.format(4), {0, 1, 2, 3}),
        (EXPIRED.format(5), set()),
        (EXPIRED.format(0), set()),
        ("Lower Bound at 1, newest ".join(EXPIRED.format(2).rsplit("Retention Policy Lower", 1)), set()),
        (EXPIRED.format(2).replace("Retention Policy Lower Bound", "Write Window Upper Bound"), set()),
        (EXPIRED.format(2) + " and more", set()),
        ("partial write: points beyond retention policy dropped=2", set()),
    ],
)
def test_lines_that_are_too_old_are_the_oldest(words: str, expected: set[int]) -> None:
    """As many as the answer says, when it is about nothing else; what is not certain is searched for."""
    made = ["m f=1 9", "m f=1 -5", 'm f="x 7" -70', "m f=1 9"]
    answer = AnswerError(422, msgspec.json.encode({"code": "unprocessable entity", "message": words}))

    refused = refused_lines(answer, made)

    assert expected == set(refused)
    assert {"too_old"} >= {why.reason for why in refused.values()}
    verdict = InfluxSink(Settings()).classify(answer)
    assert isinstance(verdict, Reject)
    old = expected or words.startswith("partial write: points beyond") or words == EXPIRED.format(3)
    assert not old or verdict.rejected.reason == "too_old"


def test_types_of_fields() -> None:
    """The only type of each, for a minute; one that has two has none."""
    now = 100.0
    types = FieldTypes(lambda: now)
    assert not types.trusted
    types.learn([("m", "a", "float"), ("m", "b", "float"), ("m", "b", "string"), ("n", "a", "string")])

    assert ["float", None, "string", None] == [
        types.of(*place) for place in (("m", "a"), ("m", "b"), ("n", "a"), ("n", "b"))
    ]
    assert types.trusted
    now += TRUSTED_S
    assert not types.trusted
    types.learn([])
    assert types.of("m", "a") is None


def test_types_are_remembered_for_so_many_fields_only() -> None:
    types = FieldTypes()
    types.learn((f"m{number}", "f", "float") for number in range(200_000))

    assert types.of("m0", "f") == "float"
    assert types.of("m199999", "f") is None


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        (["float"], ["float"]),
        (["string", "integer"], ["integer", "string"]),
        (["boolean", "float", "integer", "string"], ["float", "boolean", "string"]),
        (["unsigned", "integer"], ["integer"]),
    ],
)
def test_types_that_a_field_is_read_with(kinds: list[str], expected: list[str]) -> None:
    """One of numbers, which gives the others too."""
    assert expected == readable(kinds)


def test_a_single_line_that_is_too_large_can_never_be_stored() -> None:
    """Halving it would never end."""
    (why,) = refused_lines(AnswerError(413, b"<html>"), ["m f=1 1"]).values()

    assert why.reason == "too_large"


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"INFLUXDB_URL": "localhost:8086"}, "INFLUXDB_URL"),
        ({"INFLUXDB_URL": "http://me:secret@host:8086"}, "without a user"),
        ({"INFLUXDB_URL": "http://host:8086?org=x"}, "query"),
        ({"INFLUXDB_URL": "http://host:99999"}, "http or https URL"),
        ({"INFLUXDB_VERSION": "1"}, "INFLUXDB_VERSION"),
        ({"INFLUXDB_BUCKET": "a/b"}, "slash"),
        ({"INFLUXDB_BUCKET": "_a"}, "underscore"),
        ({"INFLUXDB_BUCKET_BY_MEASUREMENT": "fire=a/b"}, "slash"),
        ({"INFLUXDB_BUCKET_BY_MEASUREMENT": "fire"}, "MEASUREMENT=BUCKET"),
        ({"INFLUXDB_BUCKET_BY_MEASUREMENT": "fire=_a"}, "underscore"),
        ({"INFLUXDB_BUCKET_BY_MEASUREMENT": "fire=A,fire=B"}, "'fire' twice"),
        ({"INFLUXDB_RETENTION_DAYS": "-1"}, "INFLUXDB_RETENTION_DAYS"),
        ({"INFLUXDB_RETENTION_DAYS": "1", "INFLUXDB_SHARD_HOURS": "25"}, "longer than"),
        ({"INFLUXDB_BUCKETS": "/nowhere.json"}, "INFLUXDB_BUCKETS"),
        ({"INFLUXDB_TAGS": "site,device_id"}, "'device_id'"),
        ({"INFLUXDB_TAGS": "_site"}, "'_site'"),
        ({"INFLUXDB_TAGS": "time"}, "'time'"),
        ({"INFLUXDB_SSL_CA": __file__}, "https"),
        ({"INFLUXDB_URL": "https://host", "INFLUXDB_SSL_CERT": __file__}, "INFLUXDB_SSL_KEY"),
        ({"INFLUXDB_URL": "https://host", "INFLUXDB_SSL_CA": __file__, "INFLUXDB_SSL_VERIFY": "no"}, "SSL_VERIFY"),
    ],
)
def test_settings_that_cannot_work(variables: dict[str, str], words: str) -> None:
    with pytest.raises(SettingsError, match=words) as error:
        load(variables)

    assert "secret" not in str(error.value)


def test_settings_from_variables() -> None:
    """A list of tags, a version, a URL with a path and a slash too many, and buckets of measurements."""
    given = {
        "INFLUXDB_TAGS": " site, area,site ",
        "INFLUXDB_VERSION": "3",
        "INFLUXDB_URL": "https://host/influx/",
        "INFLUXDB_BUCKET_BY_MEASUREMENT": "telemetry = Sensors (Testing) , fire=iotflow,",
        "INFLUXDB_RETENTION_DAYS": "0",
    }

    found: Any = load(given).sinks["influxdb"]

    assert (("site", "area"), "3", "https://host/influx") == (found.tags, found.version, found.url)
    assert {"telemetry": "Sensors (Testing)", "fire": "iotflow"} == found.bucket_by_measurement
    assert ("iotflow", "Sensors (Testing)") == found.stores
    assert found.bucket_of("other") == "iotflow"
    assert found.retention_days == 0
    assert Settings().retention_days is None


class Server:
    """An HTTP server that answers as it is told, and remembers what it was asked."""

    def __init__(self) -> None:
        self.answer = web.Response(status=204)
        self.seen: list[tuple[str, Mapping[str, str], bytes]] = []
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self.handle)
        self.server = TestServer(app)

    async def handle(self, request: web.Request) -> web.Response:
        self.seen.append((request.path_qs, request.headers, await request.read()))
        given = self.answer
        return web.Response(status=given.status, body=given.body, headers=given.headers)

    def sink(self, **more: Any) -> InfluxSink:
        return InfluxSink(Settings(url=str(self.server.make_url("/")).rstrip("/"), token=SECRET, **more))


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    made = Server()
    await made.server.start_server()
    yield made
    await made.server.close()


@pytest.fixture
async def sink(server: Server) -> AsyncIterator[InfluxSink]:
    made = server.sink()
    await made.open()
    yield made
    await made.close()


@pytest.mark.parametrize("gzip", [False, True])
async def test_what_is_sent(server: Server, gzip: bool) -> None:  # noqa: FBT001  a setting
    sink = server.sink(gzip=gzip, org="our org", bucket="a b&c")
    await sink.open()
    prepared = sink.prepare([reading(), reading(at=1)])
    await sink.write(prepared.payload)
    await sink.close()

    (_, _, nothing), (asked, _, _), (path, headers, body) = server.seen
    assert nothing == b""
    assert asked == "/query"
    assert path == "/api/v2/write?org=our+org&bucket=a+b%26c&precision=us"
    assert headers["Authorization"] == "Token sesame"
    assert gzip is ("Content-Encoding" in headers)
    assert "\n".join(prepared.payload[0].lines).encode() == body


async def test_version_3_has_another_scheme_and_calls_a_probe_empty(server: Server) -> None:
    server.answer = web.Response(status=400, body=b'{"error":"incoming write was empty"}')
    sink = server.sink(version="3")
    await sink.open()

    with pytest.raises(NotImplementedError):
        await sink.count()
    await sink.close()

    assert server.seen[0][1]["Authorization"] == "Bearer sesame"
    assert "first written to" in (await influxdb.apply_schema(sink.settings)).notes[0]


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (web.Response(status=302, headers={"Location": "/login"}), Fatal),
        (web.Response(status=200, body=b"<html>"), Retry),
        (web.Response(status=201, body=b'{"message":"some points were rejected"}'), Reject),
        (web.Response(status=503, headers={"Retry-After": "3"}), Retry),
        (web.Response(status=401, body=b'{"message":"unauthorized access"}'), Fatal),
    ],
)
async def test_only_204_is_success(server: Server, sink: InfluxSink, answer: web.Response, kind: type) -> None:
    """A redirect is not followed: it would turn the POST into a GET, and a page would count as stored."""
    server.answer = answer

    with pytest.raises(AnswerError) as error:
        await sink.write(sink.prepare([reading()]).payload)

    assert isinstance(sink.classify(error.value), kind)
    assert len(server.seen) == 3


async def test_lines_that_the_server_names_are_refused_by_their_place(server: Server, sink: InfluxSink) -> None:
    prepared = sink.prepare(
        [reading(values={"a": None}), reading(values={"a": float("nan")}), reading(at=1), reading(at=2)]
    )
    words = f"unable to parse '{prepared.payload[0].lines[1]}': max key length exceeded: 70000 > 65535"
    server.answer = web.Response(status=400, body=msgspec.json.encode({"message": words}))

    with pytest.raises(PartialWriteError) as error:
        await sink.write(prepared.payload)

    assert {2: Rejected("refused", "max key length exceeded: 70000 > 65535")} == error.value.rejected


async def test_a_sink_that_could_not_open_leaves_nothing_open(server: Server) -> None:
    server.answer = web.Response(status=404)
    sink = server.sink()
    with pytest.raises(AnswerError):
        await sink.open()

    with pytest.raises(ConnectionError) as error:
        await sink.write(sink.prepare([reading()]).payload)
    assert isinstance(sink.classify(error.value), Retry)
