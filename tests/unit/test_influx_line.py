"""The influx-line dialect: every form of a line, what is refused and as how many letters, and the way back."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from schemas import inputs
from schemas.decoding import Decoder
from schemas.dialects import Meta, Setup, influx_line
from schemas.payload import is_secret
from schemas.reading import RECEIVE_TIME, Reading, Rejected

RECEIVED_MS = 1_759_667_700_000
RECEIVED = datetime(2025, 10, 5, 12, 35, tzinfo=UTC)
AT = datetime(2025, 10, 5, 12, 34, 56, 123456, tzinfo=UTC)
STAMP = " 1759667696123456789"
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def decode(text: str | bytes, setup: Setup | None = None, **options: Any) -> list[Reading | Rejected]:
    payload = text.encode() if isinstance(text, str) else text
    speak = influx_line.decoder(influx_line.Options.model_validate(options))
    return list(speak(payload, Meta("raw", None, [], RECEIVED_MS, setup or Setup())))


def one(text: str, setup: Setup | None = None, **options: Any) -> Reading:
    (reading,) = decode(text, setup, **options)
    assert isinstance(reading, Reading), reading
    return reading


def why(text: str | bytes, setup: Setup | None = None, **options: Any) -> Rejected:
    (rejected,) = decode(text, setup, **options)
    assert isinstance(rejected, Rejected), rejected
    return rejected


@pytest.mark.parametrize(
    ("said", "value"),
    [
        ("1", 1.0),
        ("1.", 1.0),
        (".5", 0.5),
        ("-0", -0.0),
        ("-1.5E+3", -1500.0),
        ("1i", 1),
        ("-0009223372036854775808i", -(2**63)),
        ("9223372036854775807i", 2**63 - 1),
        ("-0i", 0),
        ("0u", 0),
        ("18446744073709551615u", 2**64 - 1),
        ("0" * 5_000 + "7i", 7),
        *((word, True) for word in ("t", "T", "true", "True", "TRUE")),
        *((word, False) for word in ("f", "F", "false", "False", "FALSE")),
        ('""', ""),
        ('"a, b=c # d"', "a, b=c # d"),
        (r'"\"\\\n\x"', r'"\\n\x'),
        ('"one\r\ntwo\n\nthree"', "one\r\ntwo\n\nthree"),
    ],
)
def test_a_value_has_its_type(said: str, value: object) -> None:
    (found,) = one(f"m,host=a f={said}{STAMP}").values.values()
    assert repr(value) == repr(found)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("1i5", "undecodable"),
        ("1e", "undecodable"),
        ("1e5i", "undecodable"),
        ("+1", "undecodable"),
        ("--1", "undecodable"),
        ("-", "undecodable"),
        ("1_000", "undecodable"),
        ("0x1F", "undecodable"),
        ("\N{ARABIC-INDIC DIGIT ONE}", "undecodable"),
        ("tRUE", "undecodable"),
        ("'a'", "undecodable"),
        ("nan", "not_finite"),
        ("NaN", "not_finite"),
        ("+Inf", "not_finite"),
        ("-infinity", "not_finite"),
        ("-1e309", "out_of_range"),
        ("9" * 10_000, "out_of_range"),
        ("-9223372036854775809i", "out_of_range"),
        ("9" * 10_000 + "u", "out_of_range"),
    ],
)
def test_what_is_no_value_says_so(said: str, reason: str) -> None:
    rejected = why(f"m,host=a f={said}{STAMP}")
    assert rejected.reason == reason
    assert rejected.error.startswith("line 1: 'f' is ")


def test_a_value_out_of_range_rejects_itself_alone() -> None:
    reading, first, second = decode(f"\n\nm,host=a f=NaN,g=1,h=1e999{STAMP}")
    assert isinstance(reading, Reading)
    assert reading.values == {"g": 1.0}
    assert first == Rejected("not_finite", "line 3: 'f' is 'NaN', which is not a finite number")
    assert second == Rejected("out_of_range", "line 3: 'h' is '1e999', which no double can hold")


def test_points_that_differ_in_a_tag_are_two_series() -> None:
    first, second = decode(f"cpu,host=a,cpu=cpu0 idle=1{STAMP}\ncpu,host=a,cpu=cpu1 idle=2{STAMP}")
    assert isinstance(first, Reading)
    assert isinstance(second, Reading)
    assert first.device_id == second.device_id == "a"
    assert first.time == second.time
    assert (first.channel, second.channel) == ("cpu=cpu0", "cpu=cpu1")
    assert first.tags == {"host": "a", "cpu": "cpu0"}


def test_no_two_sets_of_tags_have_one_channel() -> None:
    said = [r"x=1\,y\=2", "x=1,y=2", r"x=1\\\,y\=2", r"x\=1\,y=2"]
    channels = {one(f"m,host=a,{tags} f=1{STAMP}").channel for tags in said}
    assert len(channels) == len(said)
    assert r"x=1\,y\=2" in channels
    assert "x=1,y=2" in channels


def test_the_order_of_tags_changes_no_channel() -> None:
    assert one(f"m,b=2,host=x,a=1 f=1{STAMP}").channel == one(f"m,a=1,b=2,host=x f=1{STAMP}").channel == "a=1,b=2"


@pytest.mark.parametrize(
    ("options", "device", "channel"),
    [
        ({}, "d", "host=h,sensor=s,z=1"),
        ({"device": ["sensor", "host"]}, "s", "device=d,host=h,z=1"),
        ({"device": ["nothing", "host"]}, "h", "device=d,sensor=s,z=1"),
        ({"channel": ["z", "sensor", "nothing"]}, "d", "sensor=s,z=1"),
        ({"channel": ["device"]}, "d", ""),
        ({"channel": []}, "d", ""),
    ],
)
def test_tags_that_are_the_device_and_the_channel(options: dict[str, Any], device: str, channel: str) -> None:
    reading = one(f"m,host=h,sensor=s,device=d,z=1 f=1{STAMP}", **options)
    assert (reading.device_id, reading.channel) == (device, channel)
    assert reading.tags == {"host": "h", "sensor": "s", "device": "d", "z": "1"}


def test_a_point_without_a_device_names_the_tags_looked_for() -> None:
    rejected = why(f"m,room=hall f=1{STAMP}", device=["probe", "unit"])
    assert rejected.reason == "missing_field"
    assert "probe, unit" in rejected.error


def test_a_channel_that_is_too_long_says_what_to_do() -> None:
    rejected = why(f"m,host=a,image={'x' * 300} f=1{STAMP}")
    assert rejected.reason == "too_large"
    assert "`channel`" in rejected.error
    assert one(f"m,host=a,image={'x' * 300} f=1{STAMP}", channel=[]).tags["image"] == "x" * 300


@pytest.mark.parametrize("head", ["m" * 257 + ",host=a", f"m,{'t' * 257}=1,host=a", f"m,host={'a' * 257}"])
def test_names_have_an_end(head: str) -> None:
    assert why(f"{head} f=1{STAMP}").reason == "too_large"


@pytest.mark.parametrize(
    ("precision", "stamp", "time"),
    [
        ("ns", "1759667696123456999", AT),
        ("us", "1759667696123456", AT),
        ("ms", "1759667696123", AT.replace(microsecond=123000)),
        ("s", "1759667696", AT.replace(microsecond=0)),
        ("auto", "1759667696123456999", AT),
        ("auto", "1759667696", AT.replace(microsecond=0)),
        ("ns", "0", EPOCH),
        ("s", "7289654399", datetime(2200, 12, 31, 23, 59, 59, tzinfo=UTC)),
    ],
)
def test_precision(precision: str, stamp: str, time: datetime) -> None:
    reading = one(f"m,host=a f=1 {stamp}", precision=precision)
    assert reading.time == time
    assert reading.time.tzinfo is UTC
    assert not reading.flags


@pytest.mark.parametrize("precision", ["ns", "us", "ms", "s", "auto"])
@pytest.mark.parametrize("stamp", ["-1", "99999999999999999999", "123456789012345678901234", "noon", "1.5", "1i"])
def test_a_bad_timestamp_is_refused_unless_the_receive_time_may_stand_in(precision: str, stamp: str) -> None:
    line = f"m,host=a f=1 {stamp}"
    assert why(line, precision=precision).reason == "bad_timestamp"
    reading = one(line, Setup(unreadable=True), precision=precision)
    assert (reading.time, reading.flags) == (RECEIVED, [RECEIVE_TIME])


def test_no_timestamp_is_refused_unless_the_receive_time_may_stand_in() -> None:
    assert why("m,host=a f=1").reason == "missing_field"
    assert why("m,host=a f=1", Setup(unreadable=True)).reason == "missing_field"
    reading = one("m,host=a f=1", Setup(missing=True))
    assert (reading.time, reading.flags) == (RECEIVED, [RECEIVE_TIME])


def test_a_space_for_a_comma_is_no_bad_timestamp() -> None:
    setup = Setup(missing=True, unreadable=True)
    assert why("m,host=a f=1 g=2", setup).reason == "undecodable"
    assert why('m,host=a f=1 "x"', setup).reason == "undecodable"
    assert why(f"m,host=a f=1{STAMP} 2", setup).reason == "undecodable"


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_blank_lines_comments_and_spaces(newline: str) -> None:
    lines = ["", "# first", " \t", f"  m,host=a  f=1 {STAMP}  ", "  # m,host=a f=2", f"m,host=a f=3{STAMP}", "#"]
    readings = decode(newline.join(lines))
    assert [reading.values for reading in readings if isinstance(reading, Reading)] == [{"f": 1.0}, {"f": 3.0}]
    assert len(readings) == 2


def test_a_bad_line_rejects_itself_and_says_where_it_is() -> None:
    good = f"m,host=a f=1{STAMP}\n"
    outcomes = decode(
        good + '# c\nm,host=a t="two\nlines",f=2' + STAMP + "\n" + "m,host=a f\n" + good + ",x" + "\n" + good
    )
    assert [type(outcome) for outcome in outcomes] == [Reading] * 4 + [Rejected] * 2
    errors = [outcome.error for outcome in outcomes if isinstance(outcome, Rejected)]
    assert errors[0] == "line 5: at character 10 there is no field of the form name=value"
    assert errors[1] == "line 7: the measurement is missing"


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("m ", "at character 3 there is no field"),
        ("m,host=a\n ", "there are no fields"),
        ("m,host=a ", "at character 10 there is no field"),
        ("m,host=a f=1,", "at character 14 there is no field"),
        ("m,host=a f=1,g", "at character 14 there is no field"),
        ('m,host=a f="1', "text that begins in the field at character 10 has no end"),
        ('m,host=a f="1"2', "behind the field that ends at character 14"),
        ("m,host f=1", "at character 2 there is no tag"),
        ("m,,host=a f=1", "at character 2 there is no tag"),
        ("m,host=a=b f=1", "at character 9 a tag's value has ="),
        ("m,host=a,x=1,x=1 f=1", "the tag 'x' is there twice"),
        ("m,host=a =1", "a field has no name"),
    ],
)
def test_errors_say_what_is_wrong(line: str, error: str) -> None:
    rejected = why(line if line.endswith(" ") else line + STAMP)
    assert rejected.reason == "undecodable"
    assert error in rejected.error


def test_bytes_that_are_not_utf8_reject_their_line() -> None:
    first, second = decode(b"m,host=a f=1" + STAMP.encode() + b"\nm,host=\xff f=2" + STAMP.encode())
    assert isinstance(first, Reading)
    assert second == Rejected("undecodable", "line 2: it is not UTF-8")


def test_secrets_go_nowhere() -> None:
    hidden = "hunter2"
    lines = [
        f'm,host=a,api_key={hidden} f=1,password="{hidden}"{STAMP}',
        f'm,host=a password="{hidden}"{STAMP}',
        f"m,host=a password={hidden}{STAMP}",
        f"m,host=a f=1,password={hidden} {hidden}{STAMP}",
        f"m,host=a f=1 {hidden}",
        f'm,host=a password="a\\"{hidden}',
        f"m,host=a,token={hidden},token={hidden}=1 f=1{STAMP}",
    ]
    for line in [*lines, "\n".join(lines)]:
        assert hidden not in repr(decode(line))
    assert one(lines[0]).tags == {"host": "a"}
    with pytest.raises(ValidationError, match="secret"):
        influx_line.Options(device=("api_token",))


@pytest.mark.parametrize("options", [{"device": []}, {"device": [""]}, {"precision": "min"}, {"tags": ["x"]}])
def test_bad_options_are_refused(options: Mapping[str, Any]) -> None:
    with pytest.raises(ValidationError):
        influx_line.Options.model_validate(options)


def test_a_secret_tells_no_series_apart() -> None:
    first, second = decode(f"m,host=a,token=x f=1{STAMP}\nm,host=a,token=y f=2{STAMP}")
    assert isinstance(first, Reading)
    assert isinstance(second, Reading)
    assert (first.channel, first.tags) == (second.channel, second.tags) == ("", {"host": "a"})


# -- bounds ------------------------------------------------------------------------------------------------------------


def test_what_is_remembered_of_heads_and_names_has_an_end() -> None:
    for cache in (influx_line._series, influx_line._metric):
        cache.cache_clear()
    for number in range(5_000):
        one(f"m,host=a{number},t{number}=1 f{number}=1{STAMP}")
    assert influx_line._series.cache_info().currsize == influx_line._HEADS
    assert influx_line._metric.cache_info().currsize == influx_line._NAMES


def test_what_is_too_long_to_be_remembered_is_decoded_all_the_same() -> None:
    for cache in (influx_line._series, influx_line._metric):
        cache.cache_clear()
    long = "x" * 200
    field = r"\ x" * 100
    reading = one(f"m,host={long},room={long} {field}=1{STAMP}", channel=[])
    assert (reading.device_id, reading.values) == (long, {" x" * 100: 1.0})
    assert influx_line._series.cache_info().currsize == influx_line._metric.cache_info().currsize == 0


def test_topics_share_what_is_remembered_only_where_their_options_agree() -> None:
    line = f"m,host=a,room=b f=1{STAMP}"
    assert one(line).channel == "room=b"
    hits = influx_line._series.cache_info().hits
    assert one(line, precision="auto").channel == "room=b"
    assert influx_line._series.cache_info().hits == hits + 1
    assert one(line, channel=[]).channel == ""
    assert one(line, device=["room"]).device_id == "b"
    assert influx_line._series.cache_info().hits == hits + 1


def test_many_bad_lines_share_a_letter() -> None:
    good = f"m,host=a f=1{STAMP}\n"
    outcomes = decode((good + "bad\n") * 1_000)
    rejected = [outcome for outcome in outcomes if isinstance(outcome, Rejected)]
    assert len(outcomes) - len(rejected) == 1_000
    assert len(rejected) == 6
    assert [outcome.error.partition(":")[0] for outcome in rejected[:5]] == [f"line {n}" for n in (2, 4, 6, 8, 10)]
    assert rejected[5].error.startswith("995 more are refused, the last: line 2000: ")


def test_a_payload_without_a_point_is_one_letter() -> None:
    assert why("bad\n" * 1_000).error.endswith("; and 999 more are refused")
    assert why("bad").error.startswith("line 1: ")
    assert "more" not in why("bad").error


@pytest.mark.parametrize(
    "pattern",
    [
        *(b"\\", b'"', b",", b"=", b" ", b"#", b"\n", b"\r", b"a=1,", b'\\"', b"\\ ", b"\xff\n", b" \n#"),
        *(b'm f="\n', b'm f=",k="\n', b'm f=",k=",j="\n', b'm,t=",a=" k="x\n', b'm,host=a f="a\\"\n', b"m f=1 x=\n"),
    ],
)
@pytest.mark.parametrize("head", [b"", b"m,host=a ", b'm,host=a f="'])
def test_a_megabyte_of_anything_is_answered_in_few_letters(head: bytes, pattern: bytes) -> None:
    outcomes = decode(head + pattern * (1_000_000 // len(pattern)))
    assert 1 <= len(outcomes) <= 6
    for outcome in outcomes:
        assert isinstance(outcome, Rejected)
        assert len(outcome.error) < 1_000


# -- the way back ------------------------------------------------------------------------------------------------------

# What a name may hold: anything but a line's end, and no backslash at its end, where it would take away what ends it.
names = st.text(st.sampled_from('ab ,=\\"#é\t°') | st.characters(exclude_characters="\n\r", codec="utf-8"), min_size=1)
fitting = names.map(lambda name: "n" + name[:40].rstrip("\\")).filter(lambda name: not is_secret(name))
floats = st.floats(allow_nan=False, allow_infinity=False)
fields = st.one_of(
    floats.map(lambda value: (repr(value), value)),
    st.integers(-(2**63), 2**63 - 1).map(lambda value: (f"{value}i", value)),
    st.integers(0, 2**64 - 1).map(lambda value: (f"{value}u", value)),
    st.sampled_from([*influx_line._BOOLEANS.items()]),
    st.text(st.sampled_from('a\n"\\, =') | st.characters(codec="utf-8")).map(
        lambda value: ('"' + re.sub(r'(["\\])', r"\\\1", value) + '"', value)
    ),
)


def escaped(name: str, specials: str = ", =") -> str:
    return re.sub(f"([{specials}])", r"\\\1", name)


@st.composite
def points(draw: st.DrawFn) -> tuple[str, tuple[str, dict[str, str], dict[str, object], int]]:
    """A line, and what it says."""
    measurement = draw(fitting)
    tags = {"host": draw(fitting), **draw(st.dictionaries(fitting, fitting, max_size=3))}
    said = draw(st.dictionaries(fitting, fields, min_size=1, max_size=4))
    stamp = draw(st.integers(0, 7 * 10**18))
    line = escaped(measurement, ", ") + "".join(f",{escaped(name)}={escaped(value)}" for name, value in tags.items())
    line += " " + ",".join(f"{escaped(name)}={text}" for name, (text, _) in said.items()) + f" {stamp}"
    return line, (measurement, tags, {name: value for name, (_, value) in said.items()}, stamp)


def typed(values: Mapping[str, object]) -> dict[str, str]:
    return {name: repr(value) for name, value in values.items()}


@given(drawn=points())
@settings(deadline=None, max_examples=500)
def test_a_point_survives_the_way_there_and_back(
    drawn: tuple[str, tuple[str, dict[str, str], dict[str, object], int]],
) -> None:
    line, (measurement, tags, values, stamp) = drawn
    # A channel of all tags could be too long; which tags make it has no part in the way back.
    reading = one(line, channel=["host"])
    assert reading.measurement == measurement
    assert reading.tags == tags
    assert typed(reading.values) == typed(values)
    assert reading.time == EPOCH + timedelta(microseconds=stamp // 1_000)
    again = influx_line.encode(reading)
    assert one(again.decode(), channel=["host"]) == reading
    assert influx_line.encode(one(again.decode(), channel=["host"])) == again


@given(drawn=st.lists(points(), min_size=1, max_size=5), newline=st.sampled_from(["\n", "\r\n", "\n\n# c\n"]))
@settings(deadline=None)
def test_points_in_one_payload_are_what_they_are_alone(drawn: list[tuple[str, Any]], newline: str) -> None:
    lines = [line for line, _ in drawn]
    assert decode(newline.join(lines), channel=[]) == [one(line, channel=[]) for line in lines]


@given(text=st.text(st.sampled_from('m,=" \\\n1f#'), max_size=60))
@settings(deadline=None, max_examples=1_000)
def test_any_arrangement_of_what_counts_gives_an_answer(text: str) -> None:
    setup = Setup(missing=True, unreadable=True)
    for outcome in decode(text, setup, device=["m", "f", "1"]):
        if isinstance(outcome, Reading):
            again = one(influx_line.encode(outcome).decode(), device=["m", "f", "1"])
            assert (again.measurement, again.tags, typed(again.values)) == (
                outcome.measurement,
                outcome.tags,
                typed(outcome.values),
            )


def test_a_simulated_device_is_its_own_tag() -> None:
    reading = influx_line.template("odd, name", 7)
    assert reading.device_id == "odd, name-007"
    assert decode(influx_line.encode(reading)) == [reading]


# -- as the stage uses it ----------------------------------------------------------------------------------------------


@dataclass
class Record:
    """A raw record."""

    value: bytes | None
    topic: str
    offset: int = 7
    key: bytes | None = None
    headers: Sequence[tuple[str, bytes | None]] = ()
    partition: int = 0
    timestamp: int = RECEIVED_MS


def test_a_topic_has_its_own_options() -> None:
    document = {
        "dialects": {"influx-line": {"options": {"device": ["unit"]}}},
        "topics": {
            "export": {"dialect": "influx-line"},
            "seconds": {
                "dialect": "influx-line",
                "options": {"precision": "s", "channel": ["port"]},
                "policy": {"time": {"missing": "receive"}},
            },
        },
    }
    stage = Decoder(
        inputs.parse(document, {"telegraf": "influx-line"}),
        partitions=1,
        stage="decode",
        version="1",
        max_message_bytes=1 << 20,
    )
    line = b"m,unit=u1,port=1,host=h f=1"
    outcomes = [
        stage.outcomes(Record(line + stamp, topic))[1][0]
        for topic, stamp in (("export", b" 1759667696123456789"), ("seconds", b" 1759667696"), ("seconds", b""))
    ]
    found = [(reading.device_id, reading.channel, reading.time, reading.flags) for reading in outcomes]
    assert found == [
        ("u1", "host=h,port=1", AT, []),
        ("u1", "port=1", AT.replace(microsecond=0), []),
        ("u1", "port=1", RECEIVED, [RECEIVE_TIME]),
    ]
    assert stage.outcomes(Record(line + b" 1759667696123456789", "telegraf"))[1][0].device_id == "u1"


def test_wrong_options_name_their_place() -> None:
    document = {"topics": {"t": {"dialect": "influx-line", "options": {"precision": "hours", "tag": "x"}}}}
    with pytest.raises(inputs.InputsError) as caught:
        inputs.parse(document, {})
    assert sorted(line.partition(": ")[0] for line in caught.value.problems) == [
        "topics.t.options.precision",
        "topics.t.options.tag",
    ]
