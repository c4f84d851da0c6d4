"""A worker process with a table, to be killed: `python -m tests.lab.table_worker SERVERS TOPIC GROUP FOLDER`.

It starts when a line comes on its standard input and says `assigned` when its recovery begins. For each chunk it counts
the keys in the table and appends `partition first last` to the file `handled` in its folder before acknowledging it.
"""

import asyncio
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.lab.apps import Lab, until

#: Different keys in one partition.
KEYS = 50
#: A chunk takes this long, so that the work outlives most kills.
CHUNK_S = 0.04
CHUNK_RECORDS = 100


def table_lab(servers: str, topic: str, group: str, folder: Path) -> Lab:
    """The worker: a member of the group that a restart replaces at once instead of after the session time-out."""
    log = os.open(folder / "handled", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    async def count(lab: Lab, event: Any, records: Sequence[Any]) -> None:
        partition = records[0].partition
        for key, more in Counter(record.offset % KEYS for record in records).items():
            name = b"%d/%d" % (partition, key)
            lab.write(event, name, b"%d" % (int(lab.table.get(name) or 0) + more))
        await asyncio.sleep(CHUNK_S)
        lab.seen.extend(records)
        # Gaps within a chunk would show: this topic has none.
        os.write(log, b"%d %d %d\n" % (partition, records[0].offset, records[-1].offset))
        event.ack()

    limits = {"chunk_records": CHUNK_RECORDS}
    return Lab(servers, topic, group, folder, count, limits=limits, table=True, consumer_group_instance_id="only")


async def _main(servers: str, topic: str, group: str, folder: str) -> None:
    await asyncio.to_thread(sys.stdin.readline)
    async with table_lab(servers, topic, group, Path(folder)) as lab:
        await until(lambda: lab.assigned)
        print("assigned", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))
