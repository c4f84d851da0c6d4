import asyncio, sys, time
from tests.lab.apps import *
from tests.acceptance.test_transport import *
from tests.lab.table_worker import table_lab
import logging
async def test_x(kafka_servers, tmp_path):
    topic, group = unique("t"), unique("g")
    await create(kafka_servers, topic)
    await create_changelog(kafka_servers, group)
    await fill(kafka_servers, topic, 40000)
    for i in range(4):
        command = (sys.executable, "-c", """
import logging,sys
logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
sys.argv[0]="x"
import asyncio
from tests.lab import table_worker
asyncio.run(table_worker._main(*sys.argv[1:]))
""", kafka_servers, topic, group, str(tmp_path))
        w = await asyncio.create_subprocess_exec(*command, stdin=-1, stdout=-1, cwd="/work/main")
        w.stdin.write(b"\n")
        await w.stdout.readline()
        await asyncio.sleep(5)
        w.kill(); await w.wait()
        print("KILLED", file=sys.stderr)
