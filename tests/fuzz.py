"""`python -m tests.fuzz`: millions of damaged payloads through every dialect, as the decode stage runs them.

Whatever the bytes are, a record gives readings or refusals, and nothing else: no exception, no stall, no reading that
a store could not be given, none that changes on the wire, no reason that is not one. Exits 1 with the payloads that
broke a rule, written to a folder, and prints what was tried. The same seed tries the same.
"""

import argparse
import faulthandler
import json
import logging
import multiprocessing
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC
from pathlib import Path
from typing import Any

import cbor2
import msgspec

from schemas import dialects, wire
from schemas.decoding import Decoder
from schemas.inputs import Input, Inputs
from schemas.policy import Policy
from schemas.reading import FLAGS, Reading, Rejected, RejectedError, flaw
from schemas.reasons import REASONS

#: After so many broken payloads a process gives up: the rest would say the same.
_ENOUGH = 20
#: One payload may take this long on a machine that is busy with other things; decoding takes some µs.
_STALL_S = 5.0
_REPORT_EVERY = 20_000
_NOW_MS = 1_759_622_400_000
_ERROR_CHARS = 2_000
_BODIES = ("", "", "", "cbor", "msgpack")
#: Behind a dialect's name: its topic with a policy of the fuzzer's.
_STRICT = "!"

_NASTY: Sequence[Any] = (
    None, True, False, 0, -1, 2**53, 2**53 + 1, 2**63, 2**64, -(2**63) - 1, 10**30, 0.0, -0.0, 1e308, 5e-324, 0.1,
    "", " ", "\0", "\n", "'", '"', "`", "\\", "$", "..", "/", "root.iotflow.x", "'; DROP TABLE iot_measurements; --",
    "a,b=c d", "#", "%s", "{}", "\u202e", "\U0001f525", "\ufffd", "é" * 300, "x" * 5_000, "NaN", "Infinity", "-1e999",
    "2025-10-05T12:34:56Z", "2025-10-05 12:34:56", "0000-00-00", "9999-12-31T23:59:59Z", "27.93 °C", "0x12A",
    "01 03 0C 32", "zz", "1759667696", [], {}, [1], {"": 1}, {"a": {"b": [1, {"c": None}]}}, [[[[[[]]]]]],
    {"timestamp": 1, "ts": 2, "device_id": 3, "value": 4}, {"api_key": "k", "token": "t"},
)  # fmt: skip
_TOKENS: Sequence[bytes] = (
    b"{", b"}", b"[", b"]", b",", b":", b'"', b"\\", b"\0", b"\xff", b"\xc3", b"\xed\xa0\x80", b"\\ud800", b"null",
    b"NaN", b"Infinity", b"-", b"1e999", b"9" * 400, b"=", b" ", b"\n", b"\r\n", b"#", b"i", b"u",
    b"\x00\x00\x00\x00\x01", b"\x80", b"\xff\xff\xff\xff\x0f", b"\x9f", b"\xbf", b"\xd8\x1c", b"\xc2\x5a",
    b"[" * 2_000, b'{"a":' * 2_000,
)  # fmt: skip


class BrokenError(Exception):
    """A rule was broken."""


def _strict(name: str) -> Policy:
    """A policy that changes as much as it can of the metrics of a dialect's examples."""
    metrics = sorted(
        {
            metric
            for example in dialects.load()[name].EXAMPLES
            for each in example.gives
            if isinstance(each, Reading)
            for metric in each.values
        }
    )
    odd = [
        {"low": 0, "high": 50, "outside": "clamp", "unit": "°C", "said_in": "°F"},
        {"low": -1, "outside": "flag", "unit": "kW", "said_in": "W"},
        {"high": 1e6, "outside": "reject", "unit": "fraction", "said_in": "%"},
        {"low": 10, "high": 20, "outside": "clamp"},
    ]
    return dialects.policy_of(name).changed(
        {
            "metrics": {metric: odd[number % len(odd)] for number, metric in enumerate(metrics)},
            "required": metrics[:1],
            "unparsable": "reject",
            "time": {
                "zone": "Europe/Berlin",
                "missing": "receive",
                "unreadable": "receive",
                "behind": "30d",
                "outside": "receive",
            },
            "device_id": {"strip": True, "case": "upper", "prefix": "X-"},
        }
    )


def decoder() -> tuple[Decoder, dict[str, list[tuple[bytes, str]]]]:
    """A decoder with a topic for each dialect and body, and each dialect's examples with their original topics."""
    topics: dict[str, Input] = {}
    seeds: dict[str, list[tuple[bytes, str]]] = {}
    registry = None
    for name, module in dialects.load().items():
        registry = getattr(module, "EXAMPLE_REGISTRY", registry)
        for body in set(_BODIES):
            topics[name + body] = Input(name, options=getattr(module, "EXAMPLE_OPTIONS", None) or {}, body=body)  # type: ignore[arg-type]
        topics[name + _STRICT] = msgspec.structs.replace(topics[name], policy=_strict(name))
        seeds[name] = [
            (example.payload, example.origin) for example in module.EXAMPLES if len(example.payload) < 20_000
        ]
    made = Decoder(Inputs(topics), partitions=12, stage="fuzz", version="0", max_message_bytes=2**20, registry=registry)
    return made, seeds


class Record:
    """A raw record."""

    partition, offset, key, timestamp = 0, 0, b"key", _NOW_MS

    def __init__(self, topic: str, value: bytes, origin: str) -> None:
        self.topic = topic
        self.value = value
        self.headers = [(dialects.HEADER_ORIGIN, origin.encode("utf-8", "surrogatepass"))] if origin else []


class Fuzzer:
    """Makes damaged payloads out of examples."""

    def __init__(self, seed: int, seeds: dict[str, list[tuple[bytes, str]]]) -> None:
        self.random = random.Random(seed)
        self._seeds = seeds
        self._names = sorted(seeds)
        self._ways: Sequence[Callable[[bytes], bytes]] = (
            self.bytes_changed,
            self.members_changed,
            self.spliced,
            self.noise,
        )

    def record(self) -> Record:
        """The next one."""
        draw = self.random
        name = draw.choice(self._names)
        payload, origin = draw.choice(self._seeds[name])
        body = draw.choice(_BODIES)
        damage = draw.choices(self._ways, (4, 4, 2, 1))[0]
        if body:
            payload = self.encoded(damage(payload), body)
            if draw.random() < 0.5:
                payload = self.bytes_changed(payload)
        else:
            payload = damage(payload)
            body = _STRICT if draw.random() < 0.3 else ""
        if origin and draw.random() < 0.1:
            origin = self.bytes_changed(origin.encode()).decode("utf-8", "replace")
        return Record(name + body, payload, origin)

    def bytes_changed(self, payload: bytes) -> bytes:
        """Some bytes gone, changed, doubled, or others among them."""
        draw = self.random
        data = bytearray(payload)
        for _ in range(draw.randint(1, 4)):
            at = draw.randint(0, len(data))
            match draw.randrange(5):
                case 0:
                    del data[at : at + draw.randint(1, 8)]
                case 1:
                    data[at : at + 1] = bytes([draw.randrange(256)])
                case 2:
                    data[at:at] = draw.choice(_TOKENS)
                case 3:
                    data[at:at] = data[at : at + draw.randint(1, 30)]
                case _:
                    data[at:at] = draw.randbytes(draw.randint(1, 6))
        return bytes(data)

    def members_changed(self, payload: bytes) -> bytes:
        """A JSON object with other values, other members, or fewer of them; anything else as `bytes_changed`."""
        draw = self.random
        try:
            said = msgspec.json.decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return self.bytes_changed(payload)
        if not isinstance(said, dict) or not said:
            return self.bytes_changed(payload)
        inside = said
        inner = [value for value in said.values() if isinstance(value, dict) and value]
        if inner and draw.random() < 0.5:
            inside = draw.choice(inner)
        for _ in range(draw.randint(1, 3)):
            name = draw.choice([*inside, *inside, "channel", "metadata", "x", "", "a.b", "é'\"` ,=\\"])
            if draw.random() < 0.2:
                inside.pop(name, None)
            else:
                inside[name] = draw.choice(_NASTY)
        text = json.dumps(said) if draw.random() < 0.3 else json.dumps(said, ensure_ascii=False)
        return text.encode("utf-8", "surrogatepass")

    def spliced(self, payload: bytes) -> bytes:
        """The beginning of one example and the end of another."""
        draw = self.random
        other, _ = draw.choice(self._seeds[draw.choice(self._names)])
        return payload[: draw.randint(0, len(payload))] + other[draw.randint(0, len(other)) :]

    def noise(self, _: bytes) -> bytes:
        """Bytes of no meaning."""
        return self.random.randbytes(self.random.randint(0, 64))

    def encoded(self, payload: bytes, body: str) -> bytes:
        """A JSON payload in another encoding, nasty values included."""
        try:
            said = msgspec.json.decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return payload
        if isinstance(said, dict) and said and self.random.random() < 0.3:
            odd = (float("nan"), float("inf"), b"bytes", {1: 2}, {None: 1}, -(2**63), 2**64 - 1)
            said[self.random.choice([*said])] = self.random.choice(odd)
        try:
            return cbor2.dumps(said) if body == "cbor" else msgspec.msgpack.encode(said)
        except Exception:  # noqa: BLE001  integers beyond MessagePack's, for one
            return payload


def check(made: Decoder, record: Record) -> tuple[int, list[str]]:
    """How many readings a record gives, and why there are no more; raises `BrokenError`."""
    begun = time.monotonic()
    faulthandler.dump_traceback_later(_STALL_S)
    _, outcomes = made.outcomes(record)
    faulthandler.cancel_dump_traceback_later()
    if time.monotonic() - begun > _STALL_S:
        raise BrokenError("it stalled")
    if not outcomes:
        raise BrokenError("nothing came of it")
    readings, reasons = 0, []
    for outcome in outcomes:
        if outcome.__class__ is Rejected:
            reasons.append(_refusal(outcome))
        elif outcome.__class__ is Reading:
            _reading(outcome)
            readings += 1
        else:
            raise BrokenError(f"a {type(outcome).__name__} came of it")
    return readings, reasons


def _refusal(outcome: Rejected) -> str:
    if outcome.reason not in REASONS:
        raise BrokenError(f"the reason {outcome.reason!r} is none")
    if outcome.reason == "dialect_failed":
        raise BrokenError(outcome.error)
    if not outcome.error or len(outcome.error) > _ERROR_CHARS:
        raise BrokenError(f"its error has {len(outcome.error)} characters")
    outcome.error.encode()
    return outcome.reason


def _reading(outcome: Reading) -> None:
    if (why := flaw(outcome)) is not None:
        raise BrokenError(f"an impossible reading: {why.error}")
    if outcome.time.tzinfo is not UTC:
        raise BrokenError(f"its time is in {outcome.time.tzinfo}")
    if unknown := set(outcome.flags) - FLAGS.keys():
        raise BrokenError(f"the flags {unknown} are none")
    again = wire.read(wire.write(outcome))
    if repr(again) != repr(outcome):
        raise BrokenError(f"the wire changes it: {again}")


def work(seed: int, count: int, folder: str, report: Any) -> None:
    """One process's share."""
    logging.disable(logging.CRITICAL)
    made, seeds = decoder()
    fuzzer = Fuzzer(seed, seeds)
    tally: Counter[str] = Counter()
    broken = 0
    for number in range(1, count + 1):
        record = fuzzer.record()
        try:
            readings, reasons = check(made, record)
            tally["readings"] += readings
            tally.update(f"reason {reason}" for reason in reasons)
            tally[f"dialect {record.topic}"] += 1
            wired = fuzzer.random.random() < 0.1
            if wired:
                try:
                    _reading(wire.read(record.value))
                except RejectedError as error:
                    _refusal(error.rejected)
        except Exception as error:  # noqa: BLE001  whatever it is, it is what is looked for
            tally["broken"] += 1
            path = Path(folder) / f"{record.topic}-{seed}-{number}"
            path.write_bytes(record.value)
            report.put(("broken", f"{record.topic}: {type(error).__name__}: {error} ({path})"))
            if (broken := broken + 1) >= _ENOUGH:
                report.put(("tally", tally))
                break
        if number % _REPORT_EVERY == 0 or number == count:
            tally["inputs"] += _REPORT_EVERY if number % _REPORT_EVERY == 0 else number % _REPORT_EVERY
            report.put(("tally", tally))
            tally = Counter()
    report.put(("done", None))


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=5_000_000, metavar="N", help="how many payloads (5,000,000)")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="what is tried follows from it (1)")
    parser.add_argument("--folder", type=Path, default=Path(".iotflow/fuzz"), help="where broken payloads are kept")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    processes = os.cpu_count() or 1
    report: Any = multiprocessing.Queue()
    shares = [options.inputs // processes + (each < options.inputs % processes) for each in range(processes)]
    workers = [
        multiprocessing.Process(target=work, args=(options.seed * 1000 + each, share, str(options.folder), report))
        for each, share in enumerate(shares)
    ]
    begun = time.monotonic()
    for worker in workers:
        worker.start()
    tally: Counter[str] = Counter()
    left = len(workers)
    while left and any(worker.is_alive() or worker.exitcode == 0 for worker in workers):
        kind, what = report.get(timeout=600)
        if kind == "done":
            left -= 1
        elif kind == "broken":
            print(f"BROKEN {what}", flush=True)
        else:
            tally += what
            done, seconds = tally["inputs"], time.monotonic() - begun
            print(f"\r{done:,} of {options.inputs:,}, {done / seconds:,.0f}/s", end="", file=sys.stderr, flush=True)
    for worker in workers:
        worker.join()
    crashed = [worker.exitcode for worker in workers if worker.exitcode]
    print(file=sys.stderr)
    print(
        f"{tally['inputs']:,} inputs in {time.monotonic() - begun:.0f} s, seed {options.seed}; {tally['broken']} broken"
    )
    print(f"{tally['readings']:,} readings; refusals by reason:")
    for key, count in sorted(tally.items()):
        if key.startswith("reason "):
            print(f"  {key.removeprefix('reason '):20} {count:,}")
    by_dialect = {
        key.removeprefix("dialect "): count for key, count in sorted(tally.items()) if key.startswith("dialect ")
    }
    print("inputs by dialect and body: " + ", ".join(f"{name} {count:,}" for name, count in by_dialect.items()))
    if crashed:
        print(f"a process ended with {crashed}")
    return 1 if tally["broken"] or crashed else 0


if __name__ == "__main__":
    sys.exit(main())
