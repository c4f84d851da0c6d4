"""Batches as rows: against a model that applies one reading after the other."""

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.reading import EXACT_INTEGER, Reading
from sinks.timescale import Settings, TimescaleSink
from sinks.timescale.layout import Layout
from sinks.timescale.rows import Payload, Rows, Stack
from sinks.timescale.tables import (
    NAME_BYTES,
    NARROW,
    RESERVED,
    TAKEN,
    Kind,
    column_of,
    comment_of,
    metric_of,
    wide,
)

T0 = datetime(2025, 10, 5, 12, 34, 56, 123456, tzinfo=UTC)
LIVE: Mapping[str, Kind] = {"d": "double precision", "i": "bigint", "t": "text", "b": "boolean", "ts": "text"}
LONG = "é" * 100
CLASSES = {"double precision": {int, float}, "bigint": {int, float}, "text": {str}, "boolean": {bool}}
NEW: dict[type, Kind] = {int: "double precision", float: "double precision", str: "text", bool: "boolean"}
WORDS = {int: "a number", float: "a number", str: "a text", bool: "a boolean"}


def rows_of(settings: Settings | None = None, types: Mapping[str, str] | None = None, **foreign: str) -> Rows:
    """What prepares for a table `m` with a column of each kind, and one that is nobody's metric."""
    layout = Layout({"m": wide("m", LIVE), "aggregates": wide("aggregates", RESERVED["aggregates"])}, {"m": foreign})
    return Rows(settings or Settings(wide=("m",)), types or {}, layout)


def reading(values: dict[str, Any], at: int = 0, **more: Any) -> Reading:
    """A reading of `m`, whose dialect says nothing that its meta would hold."""
    named = {"measurement": "m", "device_id": "d-1", "dialect": "m", **more}
    return Reading(time=T0 + timedelta(seconds=at), values=values, **named)


def cells(payload: Payload) -> dict[Any, dict[str, Any]]:
    """All cells of the wide rows that are not null, by table and key."""
    found: dict[Any, dict[str, Any]] = {}
    for stack in payload.stacks:
        for row in stack.rows:
            cell = dict(zip(stack.columns, row, strict=True))
            key = (stack.table.name, *(cell.pop(name) for name in ("device_id", "ts", "channel")))
            assert key not in found, "a key is there twice"
            found[key] = {name: value for name, value in cell.items() if value is not None}
    return found


class Model:
    """The tables as they are after one reading after the other."""

    def __init__(self) -> None:
        self.kinds: dict[str, Kind] = dict(LIVE)
        self.rows: dict[Any, dict[str, Any]] = {}

    def reason(self, values: Mapping[str, Any]) -> str | None:
        """Why a reading is refused."""
        new = dict(self.kinds)
        for metric, value in values.items():
            if value is not None and type(value) not in CLASSES[new.setdefault(metric, NEW[type(value)])]:
                return "type_conflict"
        for metric, value in values.items():
            kind = new.get(metric)
            if isinstance(value, str) and "\0" in value:
                return "nul"
            if kind == "double precision" and isinstance(value, int) and abs(value) > EXACT_INTEGER:
                return "integer_too_large"
            if kind == "double precision" and isinstance(value, float) and not math.isfinite(value):
                return "bad_type"
            if kind == "bigint" and isinstance(value, float) and not value.is_integer():
                return "type_conflict"
            if kind == "bigint" and value is not None and not -(2**63) <= value < 2**63:
                return "integer_too_large"
        self.kinds = new
        return None

    def store(self, said: Reading) -> None:
        """Apply a reading that is not refused."""
        given = {column_of(metric): value for metric, value in said.values.items() if value is not None}
        meta = "|".join(said.flags)
        if not given and not meta:
            return
        key = ("m", said.device_id, said.time, said.channel)
        old = self.rows.get(key, {})
        whole = {name for name in old if name != "meta"} <= given.keys()
        kept = {} if whole else {name: value for name, value in old.items() if name == "meta"}
        self.rows[key] = {
            **{name: value for name, value in old.items() if name != "meta"},
            **kept,
            **given,
            **({"meta": meta} if meta else {}),
        }


values = (
    st.none()
    | st.booleans()
    | st.sampled_from([0, 1, -7, 2**53, 2**53 + 1, -(2**63), 2**63])
    | st.sampled_from([0.0, -0.5, 3.0, 1e308, 2.0**63, math.inf, math.nan])
    | st.sampled_from(["", "open", "\0"])
)
batches = st.lists(
    st.builds(
        reading,
        st.dictionaries(st.sampled_from([*LIVE, "new", "other", LONG]), values, min_size=1, max_size=4),
        st.integers(0, 2),
        device_id=st.sampled_from(["d-1", "d-2"]),
        channel=st.sampled_from(["", "a/1"]),
        flags=st.lists(st.sampled_from(["clamped", "old"]), max_size=1),
    ),
    max_size=12,
)


@given(batches)
def test_a_batch_is_what_its_readings_are_one_after_the_other(batch: list[Reading]) -> None:
    """Rejected are the same readings for the same reasons, and the rows are those of a table that had them singly."""
    model = Model()
    refused: dict[int, str] = {}
    for index, said in enumerate(batch):
        if why := model.reason(said.values):
            refused[index] = why
        else:
            model.store(said)

    prepared = rows_of().prepare(batch)

    assert {index: why.reason for index, why in prepared.rejected.items()} == refused
    found = {
        key: {name: value[11:-3] if name == "meta" else value for name, value in row.items()}
        for key, row in cells(prepared.payload).items()
    }
    assert found == model.rows
    assert prepared.rows == len(found)
    new = {metric: kind for metric, kind in model.kinds.items() if metric not in LIVE}
    assert prepared.payload.wanted.get("m", {}) == new
    assert list(prepared.payload.readings) == [said for at, said in enumerate(batch) if at not in refused]


@given(batches)
def test_preparing_leaves_nothing_behind(batch: list[Reading]) -> None:
    """The second time a batch is what it was the first time: no column is remembered that was not made."""
    rows = rows_of()
    first = rows.prepare(batch)
    again = rows.prepare(batch)

    assert (repr(first.rejected), first.payload.wanted) == (repr(again.rejected), again.payload.wanted)
    assert repr(cells(first.payload)) == repr(cells(again.payload))


@given(st.text(min_size=1).filter(lambda name: "\0" not in name), st.text(min_size=1))
def test_a_column_stands_for_one_metric(metric: str, other: str) -> None:
    """It fits, is none of the table's own, and leads back to the metric."""
    column = column_of(metric)
    comment = metric if comment_of("m", metric) else None

    assert len(column.encode()) <= NAME_BYTES
    assert column not in TAKEN
    assert metric_of(column, comment) == metric
    assert (column == column_of(other)) == (metric == other)


@pytest.mark.parametrize("metric", ["x" * 63, "x" * 64, LONG, "=" * 63, "ts", "=ts", "=#", "ctid", "created_at"])
def test_odd_metrics_have_columns(metric: str) -> None:
    """Long ones, those of the table's own columns and of PostgreSQL's."""
    comment = metric if comment_of("m", metric) else None

    assert metric_of(column_of(metric), comment) == metric
    assert column_of(metric) not in TAKEN


def test_a_conflict_names_the_column_its_type_and_the_values() -> None:
    """So that it is clear who is wrong."""
    prepared = rows_of().prepare([reading({"d": "warm"}), reading({"b": 1}), reading({"i": 1.5}), reading({"t": True})])

    errors = [why.error for why in prepared.rejected.values()]
    assert {why.reason for why in prepared.rejected.values()} == {"type_conflict"}
    assert errors[0] == "d is a text, and its column in m is double precision"
    assert errors[1] == "b is a number, and its column in m is boolean"
    assert "i is 1.5, which is no integer" in errors[2]
    assert errors[3] == "t is a boolean, and its column in m is text"


def test_a_column_of_another_type_is_left_alone() -> None:
    """Whoever made it must say what it is to be."""
    (why,) = rows_of(price="numeric(6,2)").prepare([reading({"price": 1.0})]).rejected.values()

    assert why.reason == "type_conflict"
    assert "numeric(6,2), which iotflow does not write: rename or drop" in why.error


def test_a_plan_tells_which_column_is_wanted() -> None:
    """And nothing is made."""
    rows = rows_of(Settings(wide=("m",), new_columns="plan"))
    prepared = rows.prepare(
        [reading({"d": 1.0, "new": "x"}), reading({"d": 2.0}, 1), reading({"n": None, "d": 3.0}, 2)]
    )

    (why,) = prepared.rejected.values()
    assert why.reason == "bad_value"
    assert "add m.new=text to TIMESCALE_COLUMNS, and run iotflow schema apply" in why.error
    assert not prepared.payload.wanted
    assert len(cells(prepared.payload)) == 2


def test_what_other_columns_would_take_is_left_in_doubt() -> None:
    """Among good ones and what no column takes: delivery's indexes are those of all that is not refused."""
    rows = rows_of(Settings(wide=("m",), new_columns="plan"), price="numeric(6,2)")
    nul, good, infinite, again = (
        reading({"t": "\0"}),
        reading({"d": 1.0}, 1),
        reading({"d": math.inf}, 2),
        reading({"i": 5}, 1),
    )
    unfit = [reading({"new": 1.0}, 3), reading({"d": "x"}, 4), reading({"price": 1.0}, 5), reading({"d": 2**53 + 1}, 6)]
    prepared = rows.prepare([nul, unfit[0], good, infinite, *unfit[1:], again], doubt=True)

    assert {0: "nul", 3: "bad_type"} == {index: why.reason for index, why in prepared.rejected.items()}
    assert prepared.payload.doubtful
    assert prepared.payload.readings == [unfit[0], good, *unfit[1:], again]
    assert prepared.rows == 1 + len(unfit)
    certain = rows.prepare(prepared.payload.readings)
    assert list(certain.rejected) == [0, 2, 3, 4]
    assert not certain.payload.doubtful


def test_without_doubt_a_batch_is_the_same() -> None:
    """It costs a second look only where something does not fit; a narrow reading never does better later."""
    batch = [reading({"d": 1.0}), reading({"new": "x"}, 1), Reading("energy", "d", T0, {"x": 2**53 + 1})]
    prepared = rows_of().prepare(batch, doubt=True)

    assert not prepared.payload.doubtful
    assert list(prepared.rejected) == [2]
    assert prepared.payload.wanted == {"m": {"new": "text"}}


ENDS = [datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)]
TICK = timedelta(microseconds=1)


@pytest.mark.parametrize("measurement", ["m", "energy"])
def test_the_calendars_own_ends_are_no_times(measurement: str) -> None:
    """PostgreSQL would have them as infinite; a microsecond further in is a time like any other."""
    times = [ENDS[0], ENDS[0] + TICK, T0, ENDS[1] - TICK, ENDS[1]]
    batch = [Reading(measurement, "d", time, {"d": 1.0}, dialect="m") for time in times]

    prepared = rows_of().prepare(batch)

    assert {0: "bad_timestamp", 4: "bad_timestamp"} == {index: why.reason for index, why in prepared.rejected.items()}
    assert prepared.rejected[4].error.startswith("time is 9999-12-31 23:59:59.999999+00:00")
    (stack,) = prepared.payload.stacks
    assert [row[0] for row in stack.rows] == times[1:-1]


def test_no_more_columns_than_allowed() -> None:
    """Those of one batch count together."""
    rows = rows_of(Settings(wide=("m",), max_columns=len(LIVE) + 1))
    prepared = rows.prepare([reading({"n1": 1.0}), reading({"n2": 1.0}, 1), reading({"n1": 2.0}, 2)])

    assert list(prepared.rejected) == [1]
    assert prepared.rejected[1].reason == "bad_value"
    assert f"TIMESCALE_MAX_COLUMNS={len(LIVE) + 1} allows no more" in prepared.rejected[1].error


def test_a_column_has_the_type_that_is_told() -> None:
    """By TIMESCALE_COLUMNS, by the value types, by the value: in this order."""
    settings = Settings(wide=("m",), columns={"m.told": "bigint"})
    prepared = rows_of(settings, {"m.typed": "INT64", "single": "FLOAT"}).prepare(
        [reading({"told": 1, "typed": 2**62, "single": 1.0, "n": 1})]
    )

    assert prepared.payload.wanted == {
        "m": {"told": "bigint", "typed": "bigint", "single": "double precision", "n": "double precision"}
    }


def test_an_override_holds_whatever_the_column_is() -> None:
    """An INT64 that a double would round is refused, not rounded; a fraction is no integer anywhere."""
    rows = rows_of(types={"d": "INT64", "i": "INT32"})
    big, small, fraction, wrong = (
        reading({"d": 2**53 + 1}),
        reading({"d": 2**53}, 1),
        reading({"d": 1.5}, 2),
        reading({"i": 2**31}, 3),
    )
    prepared = rows.prepare([big, small, fraction, wrong])

    assert {0: "type_conflict", 2: "bad_type", 3: "bad_type"} == {
        index: why.reason for index, why in prepared.rejected.items()
    }
    assert [row["d"] for row in cells(prepared.payload).values()] == [2**53]


@pytest.mark.parametrize(
    "spoiled",
    [
        {"device_id": "a\0"},
        {"channel": "\0"},
        {"units": {"d": "\0"}},
        {"tags": {"a": "\\\0"}},
        {"values": {"n\0": 1.0}},
    ],
)
def test_a_nul_is_found_wherever_it_is(spoiled: dict[str, Any]) -> None:
    """PostgreSQL has no form for it, and would refuse the whole batch."""
    said = reading(**{"values": {"d": 1.0}, **spoiled})

    assert [why.reason for why in rows_of().prepare([said]).rejected.values()] == ["nul"]


def test_what_only_looks_like_an_escaped_nul_is_none() -> None:
    r"""A tag that is literally \u0000."""
    assert not rows_of().prepare([reading({"d": 1.0}, tags={"a": "\\u0000"})]).rejected


def aggregate(revision: int | None, **more: Any) -> Reading:
    """A window's aggregate."""
    return Reading("aggregates", "d", T0, {"revision": revision, **more}, "c|m|1m", dialect="aggregates")


@pytest.mark.parametrize(
    ("revisions", "wins"), [([1, 2], 2), ([2, 1], 2), ([1, 1], 1), ([None, 1], 1), ([3, None], 3), ([2, 3, 1], 3)]
)
def test_the_higher_revision_of_a_batch_wins(revisions: Sequence[int | None], wins: int) -> None:
    """Whatever the order; of equal ones the last."""
    batch = [aggregate(revision, mean=float(at)) for at, revision in enumerate(revisions)]
    last = max(at for at, revision in enumerate(revisions) if revision == wins)

    (row,) = cells(rows_of().prepare(batch).payload).values()

    assert (row["revision"], row["mean"]) == (wins, float(last))


def test_narrow_rows_have_the_documents_address() -> None:
    """Read off the channel, with the documents' words where it does not say."""
    channels = ["", "sensor-mode/1/3", "a", "a/b/c", "a//", "a/99999/x/y", "/1"]
    batch = [Reading("energy", "d", T0, {"x": 1.0}, channel) for channel in channels]

    (stack,) = rows_of().prepare(batch).payload.stacks

    assert stack.table is NARROW
    found = [dict(zip(stack.columns, row, strict=True)) for row in stack.rows]
    assert [(row["connector_mode"], row["connector"], row["pin_position"]) for row in found] == [
        ("unknown", -1, "-1"),
        ("sensor-mode", 1, "3"),
        ("a", -1, "-1"),
        ("a", -1, "c"),
        ("a", -1, "-1"),
        ("a", -1, "x"),
        ("", 1, "-1"),
    ]


def test_a_batch_of_both_is_a_stack_for_each_table() -> None:
    """Rows of different metrics share the columns of all."""
    batch = [reading({"d": 1.0}), reading({"t": "x"}, 1), Reading("energy", "d", T0, {"x": 1.0, "y": None})]

    tall, broad = rows_of().prepare(batch).payload.stacks

    assert isinstance(broad, Stack)
    assert len(tall.rows) == 2
    assert broad.columns == ("ts", "device_id", "channel", "d", "t", "meta")
    assert [row[3:5] for row in broad.rows] == [(1.0, None), (None, "x")]


def test_kept_is_what_a_row_holds() -> None:
    """Nulls are absent where it is wide, and a reading of nothing but nulls is no row unless it has more to say."""
    sink = TimescaleSink(Settings(wide=("m",)))

    assert sink.kept(reading({"a": None, "b": 1.0})) == reading({"b": 1.0})
    assert sink.kept(reading({"a": None})) is None
    assert sink.kept(reading({"a": None}, flags=["old"])) == reading({}, flags=["old"])
    narrow = Reading("energy", "d", T0, {"a": None})
    assert sink.kept(narrow) is narrow


@pytest.mark.parametrize("name", ["M", "a-b", "x" * 42, "iot_measurements", "pg_stat", "a_key", "b_ts", "sink_offsets"])
def test_a_measurement_that_cannot_be_a_table_is_refused(name: str) -> None:
    """At start, and by name."""
    with pytest.raises(ValueError, match="cannot be a table"):
        Settings.model_validate({"wide": name})


@pytest.mark.parametrize("name", RESERVED)
def test_a_reserved_measurement_is_no_choice(name: str) -> None:
    """It has its table whatever is chosen."""
    with pytest.raises(ValueError, match=f"'{name}' cannot be a table of readings: iotflow keeps its own {name} there"):
        Settings.model_validate({"wide": f"telemetry,{name}"})


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ("telemetry.a", "is not MEASUREMENT.METRIC=TYPE"),
        ("a=number", "is not MEASUREMENT.METRIC=TYPE"),
        ("telemetry.a=jsonb", "allowed: number, integer, text, boolean"),
        ("telemetry.a=text,telemetry.a=text", "is there twice"),
        ("energy.a=text", "whose measurement is not in `wide`"),
    ],
)
def test_columns_that_make_no_sense_are_refused(columns: str, says: str) -> None:
    """With what would."""
    with pytest.raises(ValueError, match=says):
        Settings.model_validate({"columns": columns})


def test_columns_are_told_by_a_persons_words() -> None:
    """A metric may hold dots and equals signs."""
    settings = Settings.model_validate({"columns": "telemetry.a.b=INTEGER, fire.x=y=text"})

    assert settings.metrics_of("telemetry", {})["a.b"] == "bigint"
    assert settings.metrics_of("fire", {})["x=y"] == "text"
    assert settings.measurements == ("telemetry", "fire", *RESERVED)
