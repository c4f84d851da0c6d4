import asyncio
import ssl
import struct
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from iotdb.Session import Session
from iotdb.thrift.common.ttypes import TSStatus
from iotdb.thrift.rpc.IClientRPCService import Processor
from iotdb.thrift.rpc.ttypes import TSExecuteStatementResp, TSOpenSessionResp
from iotdb.tsfile.utils.tsblock_serde import deserialize
from iotdb.utils.IoTDBConstants import TSDataType
from iotdb.utils.NumpyTablet import NumpyTablet
from thrift.protocol.TBinaryProtocol import TBinaryProtocolAccelerated
from thrift.transport.TTransport import TMemoryBuffer

from app.settings import SettingsError, load
from schemas.reading import Reading
from sinks.base import Fatal, PartialWriteError, Reject, Retry
from sinks.iotdb import IoTDBSink, Settings, apply_schema
from sinks.iotdb.mapping import columns_of, device_path, identity_of, name_of, nodes_of, quoted, series_node
from sinks.iotdb.rpc import StatusError, _refusal, decoded
from sinks.iotdb.ttl import read_rules
from sinks.meta import META

T0 = datetime(2025, 10, 5, 12, 34, 56, 123456, tzinfo=UTC)
STAMP = 1759667696123456
TYPES = {"telemetry.counter": "INT64", "small": "INT32", "ratio": "FLOAT"}

ODD = st.text(st.sampled_from("@=_`.\\\t\n*'\"/ 01eé設🌡tTi\u0131mMRroO\0")) | st.text()
NAMES = ODD | st.sampled_from(["time", "TIMESTAMP", "root", "_meta", "_", "@", "=", "1e5", "a.b", "**", "t\u0131me"])


def reading(device: str = "dev_1", at: int = 0, **more: Any) -> Reading:
    values = more.pop("values", {"temperature": 20.5})
    measurement = more.pop("measurement", "telemetry")
    more.setdefault("dialect", measurement)
    return Reading(measurement, device, T0 + timedelta(microseconds=at), values, **more)


def requests(*readings: Reading, tablet_rows: int = 500) -> dict[str, Any]:
    """What a batch becomes, by the name of the call."""
    return dict(IoTDBSink(Settings(tablet_rows=tablet_rows), TYPES).prepare(readings).payload.requests)


def records(*readings: Reading) -> list[tuple[str, int, dict[str, Any]]]:
    """The records a batch becomes: path, time, and each series' bytes joined to one value."""
    found = requests(*readings).get("insertRecords")
    if found is None:
        return []
    rows = zip(found.prefixPaths, found.timestamps, found.measurementsList, found.valuesList, strict=True)
    return [(path, at, dict(zip(names, unpacked(data), strict=True))) for path, at, names, data in rows]


def unpacked(data: bytes) -> list[Any]:
    """The values of a record, texts and numbers alike."""
    values: list[Any] = []
    at = 0
    while at < len(data):
        kind, at = data[at], at + 1
        if kind == 5:
            (size,) = struct.unpack_from(">i", data, at)
            values.append(data[at + 4 : at + 4 + size].decode())
            at += 4 + size
        else:
            form = ">" + "?iqfd"[kind]
            values.append(struct.unpack_from(form, data, at)[0])
            at += struct.calcsize(form)
    return values


class TestSettings:
    def test_they_do_not_need_the_driver(self) -> None:
        """Every worker imports this module; only the stage that stores in IoTDB may pay for its driver."""
        code = "import sys, sinks.iotdb; print([n for n in ('iotdb', 'thrift', 'pandas', 'numpy') if n in sys.modules])"
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

        assert "[]" == run.stdout.strip()

    def test_the_documents_names_are_known(self) -> None:
        found = load({"IOTDB_USERNAME": "u", "IOTDB_HOST": "h", "IOTDB_DATABASE": "root.a.b"}).sinks["iotdb"]

        assert ("u", "h", 6667, "root.a.b") == (found.user, found.host, found.port, found.database)  # type: ignore[attr-defined]

    @pytest.mark.parametrize("name", ["iotflow", "root", "root.", "root.a-b", "root.`a`", "root.1", "root.a.**"])
    def test_a_database_has_plain_nodes_below_root(self, name: str) -> None:
        with pytest.raises(SettingsError, match="IOTDB_DATABASE"):
            load({"IOTDB_DATABASE": name})

    def test_certificates_need_tls_and_each_other(self) -> None:
        with pytest.raises(SettingsError) as error:
            load({"IOTDB_SSL_CERT": __file__})

        assert "IOTDB_SSL_KEY" in str(error.value)
        assert "need IOTDB_SSL: true" in str(error.value)

    def test_ttls_are_milliseconds_by_paths_below_the_database(self) -> None:
        text = "dev_1=86400000, `a.b,c=``d`.`@fire`=0 ,dev_2._x=1"
        found: Any = load({"IOTDB_TTL_MS": "5000", "IOTDB_TTLS": text}).sinks["iotdb"]

        assert found.wanted_ttls() == {
            ("root", "iotflow"): 5000,
            ("root", "iotflow", "dev_1"): 86_400_000,
            ("root", "iotflow", "a.b,c=`d", "@fire"): None,
            ("root", "iotflow", "dev_2", "_x"): 1,
        }

    @pytest.mark.parametrize(
        "text", ["dev_1", "dev*=1", "a.=1", "=1", "a=-1", "a=1,a=2", "a=1,`a`=2", "a b=1", "a=1 b=2"]
    )
    def test_what_is_no_ttl_is_refused(self, text: str) -> None:
        with pytest.raises(SettingsError, match="IOTDB_TTLS"):
            load({"IOTDB_TTLS": text})

    @pytest.mark.parametrize("password", ["abc", "with space", "quote'd", "x" * 33])
    def test_a_password_that_the_server_would_not_take_is_refused_unseen(self, password: str) -> None:
        with pytest.raises(SettingsError, match="IOTDB_APP_PASSWORD") as error:
            load({"IOTDB_APP_USER": "worker", "IOTDB_APP_PASSWORD": password})

        assert password not in str(error.value)


class TestRules:
    def test_the_closest_rule_holds(self) -> None:
        names = ["Device", "TTL(ms)"]
        rows = [("root.**", "INF"), ("root.a", "5"), ("root.a.**", "5"), ("root.a.`b.c`", "7"), ("root.a.d.**", "9")]
        rules = read_rules(names, [*rows, ("root.a.`**`", "11")])

        paths = ["root.x.y", "root.a.x", "root.a.`b.c`", "root.a.`b.c`.x", "root.a.d", "root.a.d.x.y", "root.a.`**`"]
        assert [None, 5, 7, 5, 5, 9, 11] == [rules.of(nodes_of(path)) for path in paths]

    def test_older_servers_have_them_for_databases(self) -> None:
        rules = read_rules(["Database", "TTL(ms)"], [("root.a", "5"), ("root.b", None)])

        assert not rules.by_device
        assert (5, None, None) == (rules.of(["root", "a", "x"]), rules.of(["root", "b", "x"]), rules.of(["root", "c"]))


class TestNames:
    @pytest.mark.parametrize(
        ("place", "path"),
        [
            (("device_1", "telemetry", ""), "device_1"),
            (("dev-1", "telemetry", ""), "`dev-1`"),
            (("a.b`c", "telemetry", ""), "`a.b``c`"),
            (("d", "telemetry", "sensor-mode/1/3"), "d.`@telemetry`.`sensor-mode/1/3`"),
            (("d", "fire", ""), "d.`@fire`._"),
            (("d", "fire", "_"), "d.`@fire`.`=_`"),
            (("1e5", "telemetry", ""), "`1e5`"),
            (("Time", "telemetry", ""), "`=Time`"),
            (("root", "telemetry", ""), "`=root`"),
            (("=a\tb", "telemetry", ""), "`==a\\tb`"),
        ],
    )
    def test_paths_of_devices(self, place: tuple[str, str, str], path: str) -> None:
        assert path == device_path(*place, "telemetry")

    @pytest.mark.parametrize(
        ("metric", "node"),
        [
            ("temperature", "temperature"),
            ("a b", "`a b`"),
            ("@fire", "`=@fire`"),
            ("_meta", "`=_meta`"),
            ("=x", "`==x`"),
            ("timestamp", "`=timestamp`"),
            ("a\\n", "`a\\n`"),
            ("a\n", "`=a\\n`"),
        ],
    )
    def test_nodes_of_metrics(self, metric: str, node: str) -> None:
        assert node == series_node(metric)

    @given(NAMES, NAMES, NAMES, NAMES)
    @settings(max_examples=500)
    def test_every_name_comes_back(self, device: str, measurement: str, channel: str, metric: str) -> None:
        """So no two have the same path; and a metric is neither `_meta` nor a measurement."""
        path = device_path(device, measurement, channel, "telemetry")
        (node,) = nodes_of(series_node(metric))

        assert (device, channel, measurement) == identity_of(nodes_of(path), "telemetry")
        assert nodes_of(path) == nodes_of(quoted(f"root.{path}"))[1:]
        assert metric == name_of(node)
        assert not {"\t", "\n"} & set(path + node)
        assert node != META
        assert not node.startswith("@")

    def test_what_is_not_ours_is_nobodys(self) -> None:
        assert identity_of(["d", "sub"], "telemetry") is None
        assert identity_of(["d", "sub", "deeper"], "telemetry") is None


class TestPrepare:
    def test_a_reading_is_a_record(self) -> None:
        assert records(reading()) == [("root.iotflow.dev_1", STAMP, {"temperature": 20.5})]

    def test_types_are_those_of_the_values_and_of_the_settings(self) -> None:
        values = {"n": 7, "t": "°C", "b": True, "counter": 2**53 + 1, "small": -3, "ratio": 0.1, "nothing": None}

        ((_, _, row),) = records(reading(values=values))

        assert row == {
            "n": 7.0,
            "t": "°C",
            "b": True,
            "counter": 2**53 + 1,
            "small": -3,
            "ratio": pytest.approx(0.1, abs=1e-8),
        }
        assert row["ratio"] != 0.1

    def test_what_it_says_besides_values_is_one_more_series(self) -> None:
        ((_, _, row),) = records(reading(units={"temperature": "°C"}))

        assert row == {"temperature": 20.5, META: '{"units":{"temperature":"°C"}}'}

    def test_nothing_to_say_is_no_row(self) -> None:
        assert [] == records(reading(values={"a": None}))
        assert IoTDBSink(Settings()).prepare([reading(values={"a": None})]).rows == 0

    def test_readings_of_one_instant_are_one_row_and_the_last_wins(self) -> None:
        first = reading(values={"a": 1.0, "b": 1.0, "c": "x"}, flags=["f"])
        found = records(first, reading("other"), reading(values={"a": 2.0, "c": 5.0, "d": True}))

        assert found[0][2] == {"a": 2.0, "b": 1.0, "c": 5.0, "d": True, META: '{"flags":["f"]}'}
        assert len(found) == 2

    @pytest.mark.parametrize(
        ("values", "reason"),
        [
            ({"n": 2**53 + 1}, "integer_too_large"),
            ({"n": -(2**53) - 1, "a": 1.0}, "integer_too_large"),
            ({"n": float("nan")}, "bad_type"),
            ({"n": 1.0, "m": float("-inf")}, "bad_type"),
            ({"counter": 1.5}, "bad_type"),
            ({"counter": True}, "bad_type"),
            ({"small": 2**31}, "bad_type"),
            ({"ratio": 1e39}, "bad_type"),
            ({"ratio": "x"}, "bad_type"),
        ],
    )
    def test_a_value_without_a_form_rejects_its_reading_alone(self, values: dict[str, Any], reason: str) -> None:
        prepared = IoTDBSink(Settings(), TYPES).prepare([reading("a"), reading("b", values=values), reading("c")])

        assert {1: reason} == {index: rejected.reason for index, rejected in prepared.rejected.items()}
        assert prepared.rows == 2

    def test_finite_values_with_an_infinite_sum_are_no_flaw(self) -> None:
        assert records(reading(values={"a": 1e308, "b": 1e308}))[0][2] == {"a": 1e308, "b": 1e308}

    def test_many_rows_of_a_device_are_a_tablet_by_time_and_few_are_records(self) -> None:
        many = [reading("many", at=at, values={"a": float(at), "b": "x" * at}) for at in (3, 1, 2)]
        odd = reading("many", at=4, values={"a": 4.0})

        found = requests(*many, odd, reading("few"), tablet_rows=3)

        assert ["root.iotflow.few", "root.iotflow.many"] == sorted(found["insertRecords"].prefixPaths)
        tablets = found["insertTablets"]
        assert (["root.iotflow.many"], [["a", "b"]], [[4, 5]], [3]) == (
            tablets.prefixPaths,
            tablets.measurementsList,
            tablets.typesList,
            tablets.sizeList,
        )
        assert struct.pack(">3q", STAMP + 1, STAMP + 2, STAMP + 3) == tablets.timestampsList[0]
        assert struct.pack(">3d", 1.0, 2.0, 3.0) + b"\0\0\0\1x\0\0\0\2xx\0\0\0\3xxx" == tablets.valuesList[0]

    def test_the_bytes_are_the_drivers(self) -> None:
        kinds = (0, 1, 2, 3, 4, 5)
        types = [TSDataType(kind) for kind in kinds]
        rows = [(True, 1, 2**40, 0.5, 1.25, "°C"), (False, -1, -(2**40), -0.5, -0.0, "")]
        columns = columns_of(tuple("abcdef"), kinds)
        arrays = [
            np.array(column, kind.np_dtype()) for kind, column in zip(types, zip(*rows, strict=True), strict=True)
        ]

        assert [Session.value_to_bytes(types, row) for row in rows] == [columns.record(row) for row in rows]
        tablet = NumpyTablet("d", list("abcdef"), types, arrays, np.array([1, 2], ">i8"))
        assert tablet.get_binary_values() == columns.tablet(rows)


def block(kinds: list[int], columns: list[bytes], encodings: list[int], rows: int) -> bytes:
    """A block as the server sends it."""
    head = struct.pack(">i", len(kinds)) + bytes(kinds) + struct.pack(">i", rows) + bytes([2, *encodings])
    times = b"\0" + struct.pack(f">{rows}q", *range(rows))
    return head + times + b"".join(columns)


def test_blocks_of_an_answer_are_read_as_the_driver_reads_them() -> None:
    """Each encoding, with nulls and without."""
    found = block(
        [0, 1, 2, 3, 4, 5, 5],
        [
            bytes([1, 0b01000000, 0b10100000]),  # nulls, then a bit for every row
            b"\0" + struct.pack(">3i", 1, -2, 3),
            bytes([1, 0b10000000]) + struct.pack(">2q", 2**53 + 1, -5),
            b"\0" + struct.pack(">3f", 0.5, 1.5, -2.5),
            bytes([1, 0b11100000]),
            b"\0" + b"\0\0\0\1a\0\0\0\0\0\0\0\2\xc3\xa9",
            bytes([3, 0]) + b"\0\0\0\1z",
        ],
        [0, 1, 2, 1, 2, 3, 4],
        3,
    )

    assert list(decoded(found)) == [
        (0, True, 1, None, 0.5, None, "a", "z"),
        (1, None, -2, 2**53 + 1, 1.5, None, "", "z"),
        (2, True, 3, -5, -2.5, None, "é", "z"),
    ]
    _, columns, nulls, count = deserialize(memoryview(found))
    assert count == 3
    assert [1, -2, 3] == list(columns[1])
    assert [True, False, False] == list(nulls[2])


def status(code: int, message: str = "", *parts: TSStatus) -> TSStatus:
    return TSStatus(code, message, list(parts) or None)


READ_ONLY = "Fail to do non-query operations because system is read-only."
CONFLICT = (
    "Fail to insert measurements [x] caused by [data type of root.iotflow.d.x is not consistent, registered type "
)
CONFLICT += "DOUBLE, inserting type TEXT, timestamp 2, value "


@pytest.mark.parametrize(
    ("answer", "kind", "word"),
    [
        (status(801, "Authentication failed."), Fatal, "IOTDB_PASSWORD"),
        (status(804, "no such user"), Fatal, "IOTDB_USER"),
        (status(803, "No permissions for this operation"), Fatal, "GRANT READ_DATA"),
        (status(803, "No permissions, please add privilege MANAGE_DATABASE"), Fatal, "as an administrator"),
        (status(817, "Has no permission to execute GRANT_USER"), Fatal, "as an administrator"),
        (
            status(301, "[…] IoTDBException: No permissions, please add privilege WRITE_SCHEMA on"),
            Fatal,
            "WRITE_SCHEMA",
        ),
        (status(500, "Database not exists"), Fatal, "iotflow schema apply"),
        (status(302, "", status(200), status(803, "no"), status(507, CONFLICT)), Fatal, "GRANT"),
        (status(507, CONFLICT + "t]"), Reject, "not consistent"),
        (status(507, CONFLICT + "TSStatus(code:600, message:please add privilege]"), Reject, "not consistent"),
        (status(507, f"TSStatus(code:600, message:{READ_ONLY})"), Retry, "read-only"),
        (status(507, "TSStatus(code:509, message:root.iotflow.a is not a legal path)"), Reject, "legal path"),
        (status(507, "TSStatus(code:507, message:TSStatus(code:600, message:x))"), Retry, "600"),
        (
            status(507, "Fail […] caused by [Path [root.iotflow.d.x] does not exist]"),
            Reject,
            "enable_auto_create_schema",
        ),
        (status(509, "root.iotflow.time is not a legal path"), Reject, "legal path"),
        (status(607, "Insertion time is less than ttl time bound"), Reject, "ttl"),
        (status(701, "check whether the timestamp 10000022400000000 is correct"), Reject, "timestamp"),
        (status(302, "", status(607, "ttl"), status(507, CONFLICT)), Reject, "ttl"),
        (status(302, "", status(607, "ttl"), status(606, "rejected: memory")), Retry, "memory"),
        (status(301, "There are no available SchemaRegionGroup RegionGroups currently"), Retry, "available"),
        (status(305, "internal"), Retry, "internal"),
        (status(600, READ_ONLY), Retry, "read-only"),
        (status(606, "The memory of storage engine is full"), Retry, "memory"),
        (status(802, "Log in failed."), Retry, "802"),
        (status(9999, "never heard of"), Retry, "9999"),
    ],
)
def test_what_the_server_answers_is_classified(answer: TSStatus, kind: type, word: str) -> None:
    verdict = IoTDBSink(Settings(password="sesame")).classify(_refusal(answer))  # type: ignore[arg-type]  # noqa: S106

    assert isinstance(verdict, kind), verdict
    assert word in str(verdict)
    assert "sesame" not in str(verdict)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ConnectionRefusedError(111, "refused"), Retry),
        (ConnectionResetError(104, "reset"), Retry),
        (asyncio.IncompleteReadError(b"", 4), Retry),
        (TimeoutError(), Retry),
        (OSError("no route"), Retry),
        (ssl.SSLError("wrong version number"), Retry),
        (ssl.SSLCertVerificationError("self-signed"), Fatal),
        (UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed"), Reject),
        (KeyError("a fault of ours"), Retry),
    ],
)
def test_what_went_wrong_on_the_way_is_classified(error: Exception, kind: type) -> None:
    assert isinstance(IoTDBSink(Settings()).classify(error), kind)


def test_too_much_at_once_is_tried_in_halves() -> None:
    verdict = IoTDBSink(Settings()).classify(StatusError([1705], "WRITE_SIZE_EXCEEDED"))

    assert verdict == Retry("WRITE_SIZE_EXCEEDED", smaller=True)


class Fake:
    """A server of few words: the driver's own code speaks, and these methods are what it is asked."""

    def __init__(self) -> None:
        self.precision = "us"
        self.login = status(200)
        self.answers: list[TSStatus] = []
        self.inserted: list[Any] = []
        self.statements: list[str] = []
        self.sessions = 0
        self.silent = self.hangs_up = False
        self.port = 0

    def openSession(self, _request: Any) -> Any:  # noqa: N802
        self.sessions += 1
        return TSOpenSessionResp(self.login, 2, self.sessions, {"timestamp_precision": self.precision})

    def requestStatementId(self, session: int) -> int:  # noqa: N802
        return session

    def insertRecords(self, request: Any) -> TSStatus:  # noqa: N802
        self.inserted.append(request)
        return self.answers.pop(0) if self.answers else status(200)

    def executeStatementV2(self, request: Any) -> Any:  # noqa: N802
        self.statements.append(request.statement)
        return TSExecuteStatementResp(self.answers.pop(0) if self.answers else status(200), columns=[], queryResult=[])

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        processor = Processor(self)
        try:
            while not self.hangs_up:
                size = struct.unpack(">i", await reader.readexactly(4))[0]
                asked, answer = TMemoryBuffer(await reader.readexactly(size)), TMemoryBuffer()
                processor.process(TBinaryProtocolAccelerated(asked), TBinaryProtocolAccelerated(answer))
                if not self.silent:
                    writer.write(struct.pack(">i", len(answer.getvalue())) + answer.getvalue())
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    def sink(self, **more: Any) -> IoTDBSink:
        return IoTDBSink(Settings(host="127.0.0.1", port=self.port, **more))


@pytest.fixture
async def fake() -> AsyncIterator[Fake]:
    made = Fake()
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    yield made
    server.close()


class TestLink:
    async def test_a_write_without_an_answer_ends_in_time_and_the_next_has_a_session_of_its_own(
        self, fake: Fake
    ) -> None:
        sink = fake.sink(write_timeout=0.2)
        await sink.open()
        fake.silent = True
        with pytest.raises(TimeoutError):
            await sink.write(sink.prepare([reading()]).payload)
        fake.silent = False
        await sink.write(sink.prepare([reading()]).payload)
        await sink.close()

        assert [1, 2] == [request.sessionId for request in fake.inserted]

    async def test_a_cancelled_write_leaves_no_answer_behind(self, fake: Fake) -> None:
        sink = fake.sink()
        await sink.open()
        fake.silent = True
        task = asyncio.create_task(sink.write(sink.prepare([reading("cancelled")]).payload))
        while not fake.inserted:  # noqa: ASYNC110  it tells nobody
            await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.wait([task])
        fake.silent = False
        fake.answers = [status(600, READ_ONLY)]
        with pytest.raises(StatusError):
            await sink.write(sink.prepare([reading("next")]).payload)
        await sink.close()

        assert task.cancelled()
        assert [1, 2] == [request.sessionId for request in fake.inserted]

    async def test_an_ended_session_is_made_anew(self, fake: Fake) -> None:
        sink = fake.sink()
        await sink.open()
        fake.answers = [status(802, "the session has timed out")]
        with pytest.raises(StatusError):
            await sink.write(sink.prepare([reading()]).payload)
        await sink.write(sink.prepare([reading()]).payload)
        await sink.close()

        assert fake.sessions == 2

    async def test_parts_that_all_succeeded_are_success(self, fake: Fake) -> None:
        sink = fake.sink()
        await sink.open()
        fake.answers = [status(302, "", status(200), status(400, "redirect"))]
        await sink.write(sink.prepare([reading()]).payload)
        await sink.close()

        assert len(fake.inserted) == 1

    async def test_who_is_hung_up_on_is_told_what_to_compare(self, fake: Fake) -> None:
        fake.hangs_up = True

        with pytest.raises(ConnectionError, match="IOTDB_RPC_COMPRESSION"):
            await fake.sink().open()

    async def test_a_refused_login_leaves_nothing_open(self, fake: Fake) -> None:
        fake.login = status(801, "Authentication failed.")
        sink = fake.sink()
        with pytest.raises(StatusError, match="801"):
            await sink.open()

        with pytest.raises(ConnectionError, match="not connected"):
            await sink.probe()

    async def test_a_probe_misses_the_database(self, fake: Fake) -> None:
        sink = fake.sink()
        await sink.open()
        with pytest.raises(StatusError) as error:
            await sink.probe()
        await sink.close()

        verdict = sink.classify(error.value)
        assert isinstance(verdict, Fatal)
        assert "iotflow schema apply" in verdict.remedy
        assert fake.statements == ["SHOW DATABASES root.iotflow"]

    async def test_a_database_that_exists_above_ours_is_not_ours(self, fake: Fake) -> None:
        fake.answers = [status(501, "root.a has already been created as database")]

        with pytest.raises(StatusError, match="501"):
            await apply_schema(Settings(host="127.0.0.1", port=fake.port, database="root.a.b"))


class TestPrecision:
    @pytest.mark.parametrize(("precision", "at"), [("us", STAMP), ("ms", STAMP // 1000), ("ns", STAMP * 1000)])
    async def test_times_are_as_the_server_counts_them(self, fake: Fake, precision: str, at: int) -> None:
        fake.precision = precision
        sink = fake.sink()
        await sink.open()
        await sink.write(sink.prepare([reading()]).payload)
        await sink.close()

        assert [at] == fake.inserted[0].timestamps

    async def test_instants_that_become_one_are_counted_and_the_later_is_kept(
        self, fake: Fake, caplog: pytest.LogCaptureFixture
    ) -> None:
        fake.precision = "ms"
        sink = fake.sink()
        await sink.open()
        batch = [reading(at=0), reading(at=1, values={"temperature": 1.0}), reading(at=1), reading("other", at=1)]
        prepared = sink.prepare(batch)
        sink.prepare([reading(at=2), reading(at=2000)])
        await sink.close()

        assert prepared.rows == 2
        assert sink.collisions == 2
        said = [record.getMessage() for record in caplog.records]
        assert said == [
            "the server counts milliseconds",
            "two readings fell on one millisecond, and the later one is kept",
        ]

    async def test_a_batch_for_another_precision_is_prepared_again(self, fake: Fake) -> None:
        sink = fake.sink()
        await sink.open()
        payload = sink.prepare([reading()]).payload
        fake.precision = "ns"
        await sink.open()
        await sink.write(payload)
        await sink.close()

        assert [STAMP * 1000] == fake.inserted[0].timestamps

    async def test_what_another_precision_has_no_form_for_is_not_lost(self, fake: Fake) -> None:
        sink = fake.sink()
        await sink.open()
        far = Reading("telemetry", "d", datetime(2300, 1, 1, tzinfo=UTC), {"a": 1.0})
        payload = sink.prepare([reading(values={"a": float("nan")}), reading(), far]).payload
        fake.precision = "ns"
        await sink.open()
        with pytest.raises(PartialWriteError) as error:
            await sink.write(payload)
        await sink.close()

        assert {1: "bad_timestamp"} == {index: why.reason for index, why in error.value.rejected.items()}
        assert not fake.inserted

    async def test_nanoseconds_do_not_reach_everywhere(self, fake: Fake) -> None:
        fake.precision = "ns"
        sink = fake.sink()
        await sink.open()
        far = Reading("telemetry", "d", datetime(2300, 1, 1, tzinfo=UTC), {"a": 1.0})
        rejected = sink.prepare([far, reading()]).rejected
        await sink.close()

        assert {0: "bad_timestamp"} == {index: why.reason for index, why in rejected.items()}
