"""How gateways' controllers are named, and what their topics say."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import gateway
from schemas.reading import Rejected, RejectedError

MAC = "e4fd45f654be"
macs = st.integers(0, 2**48 - 1).map("{:012x}".format)
prefixes = st.sampled_from(["cmnd", "stat", "tele"])
modes = st.text("abcXYZ019_.-", min_size=1, max_size=20)
numbers = st.integers(0, gateway.LAST_NUMBER)


def outcome(topic: str) -> gateway.Address | Rejected:
    try:
        return gateway.address(topic)
    except RejectedError as error:
        return error.rejected


def cut(text: str, size: int, separator: str) -> str:
    return separator.join(text[at : at + size] for at in range(0, len(text), size))


@given(mac=macs)
@pytest.mark.parametrize("separator", [":", "-", ".", " "])
@pytest.mark.parametrize("size", [2, 4, 12])
@pytest.mark.parametrize("prefix", ["", "f2-", "F2-"])
@pytest.mark.parametrize("upper", [False, True])
def test_a_mac_address_has_one_form(*, mac: str, separator: str, size: int, prefix: str, upper: bool) -> None:
    said = prefix + cut(mac.upper() if upper else mac, size, separator)
    assert gateway.controller(said) == mac
    assert gateway.controller(gateway.device_id(mac)) == mac


@pytest.mark.parametrize(
    "text",
    [
        "",
        "f2-",
        MAC[:-1],
        MAC + "0",
        f" {MAC}",
        f"{MAC}\n",
        "e4:fd-45:f6:54:be",
        "e4:fd45f654be",
        "e4_fd_45_f6_54_be",
        "e4fd:45f6.54be",
        "g4fd45f654be",
        "f2-f2-e4fd45f654be",
        "\u0661\u0662\u0663\u0664\u0665\u0666\u0667\u0668\u0669\u0660\u0661\u0662",
        f"f3-{MAC}",
    ],
)
def test_what_is_no_mac_address(text: str) -> None:
    assert gateway.controller(text) is None


def test_an_address_may_begin_like_the_prefix() -> None:
    assert gateway.controller("f2-e4-fd-45-f6-54") == "f2e4fd45f654"


@pytest.mark.parametrize(
    ("text", "number"),
    [("1", "1"), ("01", "1"), ("J1", "1"), ("j09", "9"), ("0", "0"), ("00", "0"), ("99", "99")]
    + [(text, None) for text in ("", "J", "100", "001", "-1", "1.0", " 1", "\u0661", "K1", "1\n")],
)
def test_numbers_of_connectors_and_pins(text: str, number: str | None) -> None:
    assert gateway.number(text) == number


@given(
    prefix=prefixes,
    mac=macs,
    mode=modes,
    connector=numbers,
    kind=st.sampled_from(["sensor", "strike", "reader", "motion-sensor", "siren"]),
    count=numbers,
    written=st.sampled_from([("{}", "{}"), ("J{}", "{:02}"), ("{:02}", "{}")]),
)
def test_an_address_is_what_its_topic_was_made_of(
    *, prefix: str, mac: str, mode: str, connector: int, kind: str, count: int, written: tuple[str, str]
) -> None:
    topic = f"{prefix}/f2-{mac.upper()}/{mode}/{written[0].format(connector)}/{kind}-{written[1].format(count)}"
    pin = str(count) if kind == "sensor" else f"{kind}-{count}"
    assert gateway.controller_of(topic) == mac
    assert gateway.address(topic) == gateway.Address(
        topic=topic,
        command=prefix == "cmnd",
        controller=mac,
        device_id=f"f2-{mac}",
        mode=mode,
        connector=str(connector),
        component=f"{kind}-{count}",
        number=str(count),
        sensor=kind == "sensor",
        pin=pin,
        channel=f"{mode}/{connector}/{pin}",
    )


@pytest.mark.parametrize("component", ["door-sensors", "exit-buttons"])
def test_components_without_a_number(component: str) -> None:
    found = gateway.address(f"stat/f2-{MAC}/access-control-mode/J2/{component}")
    assert (found.component, found.number, found.sensor, found.pin) == (component, "", False, component)
    assert found.channel == f"access-control-mode/2/{component}"


@given(topic=st.text() | st.from_regex(re.compile(r"(cmnd|tele)/f2-[0-9a-f]{12}/[a-z/]*-?[0-9/]*"), fullmatch=True))
def test_any_text_is_an_address_or_refused(topic: str) -> None:
    found = outcome(topic)
    if isinstance(found, Rejected):
        assert found.reason in {"bad_type", "not_telemetry", "too_large"}
        assert len(found.error) < 300
    else:
        assert gateway.controller_of(topic) == found.controller
        assert found.channel.count("/") == 2


@pytest.mark.parametrize("count", [0, 1, 2**24 - 1, 2**24])
def test_simulated_controllers_are_named_as_real_ones(count: int) -> None:
    device_id = gateway.simulated("sensor", count)
    mac = gateway.controller(device_id)
    assert mac is not None
    assert mac.startswith("02")  # locally administered
    assert gateway.device_id(mac) == device_id
