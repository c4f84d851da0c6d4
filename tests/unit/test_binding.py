"""The databases of tables: that their limits hold, also for one that is opened again."""

from pathlib import Path
from typing import Any

import pytest

from tables.binding import CACHE_BYTES, LIMITS, Options


def cache_of(database: Any) -> tuple[int, int]:
    """What it says of its cache: how large that may be, and how large it is."""
    return database.property_int_value("rocksdb.block-cache-capacity"), database.property_int_value(
        "rocksdb.block-cache-usage"
    )


@pytest.mark.parametrize("times", [1, 2], ids=["made", "opened again"])
def test_all_databases_of_a_process_share_one_cache(tmp_path: Path, times: int) -> None:
    """Each would have one of its own, as large as RocksDB likes."""
    options = Options(**LIMITS, use_rocksdict=True)
    for _ in range(times):
        databases = [options.open(tmp_path / name) for name in ("one", "other")]
        for number in range(2000):
            databases[0][b"%d" % number] = bytes(1000)
        databases[0].flush()
        assert [databases[0][b"%d" % number] for number in range(2000)] == [bytes(1000)] * 2000
        one, other = (cache_of(database) for database in databases)
        assert one == other
        assert one[0] == CACHE_BYTES
        assert 0 < one[1] <= CACHE_BYTES
        for database in databases:
            database.close()


def test_an_opened_database_goes_on_with_bloom_filters(tmp_path: Path) -> None:
    """Keys that are not there must not cost a read of each file."""
    options = Options(**LIMITS, use_rocksdict=True)
    options.open(tmp_path / "one").close()
    options.open(tmp_path / "one").close()
    log = (tmp_path / "one" / "LOG").read_text()
    assert "filter_policy: bloomfilter" in log
