"""The ledger, torn or whole."""

import base64
import hashlib
import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from app import ledger
from app.ledger import Bad, Good, Ledger
from schemas import wire
from schemas.reading import Reading

READING = Reading("telemetry", "d", datetime(2025, 10, 5, 12, 34, 56, 123456, tzinfo=UTC), {"t": 1.5, "n": None})
PAYLOAD = b'{"device_id":\xff'
ENTRIES = [Good("raw", 3, 17, READING), ledger.bad("not_json", "raw", 0, 18, PAYLOAD)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "ledger.jsonl"


def test_what_is_written_is_read(path: Path) -> None:
    with Ledger(path) as book:
        book.write(ENTRIES)
        book.write([])
        book.write(ENTRIES[:1])
    assert list(ledger.read(path)) == [*ENTRIES, ENTRIES[0]]
    assert list(ledger.readings(path)) == [READING, READING]
    assert list(ledger.rejects(path)) == [ENTRIES[1]]
    assert next(ledger.readings(path)).time.tzinfo is UTC


def test_the_lines_are_what_others_may_rely_on(path: Path) -> None:
    with Ledger(path) as book:
        book.write(ENTRIES)
    good, bad = map(json.loads, path.read_text().splitlines())
    assert good == {"k": "good", "t": "raw", "p": 3, "o": 17, "r": json.loads(wire.write(READING))}
    assert bad == {
        "k": "bad",
        "why": "not_json",
        "t": "raw",
        "p": 0,
        "o": 18,
        "sha256": hashlib.sha256(PAYLOAD).hexdigest(),
        "payload_b64": base64.b64encode(PAYLOAD).decode(),
    }


def test_one_topic_of_several(path: Path) -> None:
    other = [ledger.bad("not_json", "other", 0, 18, PAYLOAD), Good("other", 3, 17, READING, late=True)]
    with Ledger(path) as book:
        book.write([*ENTRIES, *other])
    assert list(ledger.read(path)) == [*ENTRIES, *other]
    assert list(ledger.read(path, "other")) == other
    assert list(ledger.readings(path, "raw")) == [READING]
    assert list(ledger.rejects(path, "raw")) == [ENTRIES[1]]
    assert list(ledger.read(path, "neither")) == []


def test_it_begins_with_the_first_reading_that_was_not_late(path: Path) -> None:
    early, late = (msgspec.structs.replace(READING, time=READING.time - timedelta(hours=hours)) for hours in (1, 2))
    with Ledger(path) as book:
        book.write([Good("raw", 0, 0, READING), Good("raw", 0, 1, early), Good("raw", 0, 2, late, late=True)])
        book.write([Good("late", 0, 0, late, late=True)])
    assert ledger.begin(path) == ledger.begin(path, "raw") == early.time
    assert ledger.begin(path, "late") is None


def test_a_ledger_is_continued(path: Path) -> None:
    for _ in range(2):
        with Ledger(path) as book:
            book.write(ENTRIES)
    assert list(ledger.read(path)) == ENTRIES * 2


@pytest.mark.parametrize("torn", [b"{", b'{"k":"good"', b"x" * 200_000])
@pytest.mark.parametrize("whole", [0, 1, 2])
def test_a_torn_last_line_is_passed_over_and_later_removed(path: Path, torn: bytes, whole: int) -> None:
    with Ledger(path) as book:
        book.write(ENTRIES[:whole])
    with path.open("ab") as file:
        file.write(torn)
    assert list(ledger.read(path)) == ENTRIES[:whole]
    with Ledger(path) as book:
        book.write(ENTRIES)
    assert list(ledger.read(path)) == ENTRIES[:whole] + ENTRIES


def test_any_other_damage_is_an_error(path: Path) -> None:
    with Ledger(path) as book:
        book.write(ENTRIES)
    path.write_bytes(b'{"k":"good"}\n' + path.read_bytes())
    with pytest.raises(msgspec.DecodeError):
        list(ledger.read(path))


def test_a_kill_loses_nothing_that_was_written(path: Path) -> None:
    program = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from app.ledger import Ledger, bad\n"
        "with Ledger(Path(sys.argv[1])) as book:\n"
        "    book.write([bad('not_json', 'raw', 0, offset, b'x') for offset in range(1000)])\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    root = str(Path(ledger.__file__).parents[1])
    done = subprocess.run([sys.executable, "-c", program, path], cwd=root, check=False)
    assert done.returncode == -9
    assert [entry.offset for entry in ledger.read(path) if isinstance(entry, Bad)] == list(range(1000))
