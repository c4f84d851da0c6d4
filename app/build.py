"""From settings to a Faust app that runs one stage. Building does no I/O but to read files; starting does."""

import gc
import sys
from collections.abc import Callable, Iterable
from typing import Any

import faust
from faust.web import Web

from app import health, logs, preflight, transport
from app.kafka import client_args, faust_args
from app.produce import BatchProducer
from app.runtime import Runtime
from app.settings import Settings
from app.stages import Stage, make, reads
from app.steady import hang_up
from app.telemetry import Telemetry

_MIN_FETCH_BYTES = 64 * 1024
_PREFETCH_BYTES = 16 * 1024 * 1024
#: In flight for a stage that sheds: some tenths of a second of records.
_SHED_BYTES = 8 * 1024 * 1024
_SHED_RECORDS = 10_000


class StageWorker(faust.Worker):
    """Faust's worker without its spinner, whose cursor codes would stand among the JSON of the log."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Batches make and drop many objects that hold no cycles: with Python's own thresholds a tenth of the time goes
        # into looking for some.
        gc.freeze()
        gc.set_threshold(100_000, 50, 100)
        self.spinner = None  # as Faust does itself for low log levels


class StageApp(faust.App):
    """A Faust app of one stage.

    Its web pages start first, so that they answer while the broker is away, then its runtime; both stop last.
    """

    runtime: Runtime
    transport_limits: dict[str, int]

    def on_init_dependencies(self) -> Iterable[Any]:
        """Faust's services, with ours among them."""
        services = list(super().on_init_dependencies())
        web = [service for service in services if isinstance(service, Web)]
        return [*web, self.runtime, *(service for service in services if service not in web)]

    def on_rebalance_end(self) -> None:
        """Partitions are given out and tables restored: whoever keeps state reads it, before a record comes."""
        super().on_rebalance_end()
        self.runtime.begin()

    async def on_stop(self) -> None:
        """Stop in bounded time."""
        self.runtime.limit_stop()
        await super().on_stop()


def app_options(stage: str, settings: Settings) -> dict[str, Any]:
    """How Faust is set for a stage; each value that is not Faust's default is measured or has its reason here."""
    partitions = settings.topics.partitions * max(1, len(reads(stage, settings)))
    return {
        "id": settings.app_id(stage),
        **faust_args(settings),
        "datadir": preflight.data_dir(stage, settings),
        "autodiscover": False,
        "broker_commit_interval": settings.commit_interval,
        "broker_commit_every": 1_000_000,  # a commit inside the fetch loop stalls intake
        "broker_max_poll_interval": transport.MAX_POLL_INTERVAL_S,
        "broker_max_poll_records": None,  # a number caps the sum over partitions
        "broker_session_timeout": settings.session_timeout,
        "broker_heartbeat_interval": settings.heartbeat_interval,
        "broker_rebalance_timeout": settings.rebalance_timeout,
        "broker_request_timeout": max(90.0, settings.session_timeout),
        "consumer_auto_offset_reset": "earliest",  # what was produced before the first start counts too
        "consumer_max_fetch_size": max(
            _MIN_FETCH_BYTES,
            min(settings.fetch_bytes, _PREFETCH_BYTES // partitions),
            settings.topics.max_message_bytes,
        ),
        "Worker": StageWorker,
        "logging_config": logs.config(settings, stage),
        "stream_buffer_maxsize": transport.QUEUED_CHUNKS,
        "stream_wait_empty": True,
        "table_standby_replicas": 0,
        "topic_allow_declare": False,
        "topic_disable_leader": True,
        "web_bind": settings.bind(stage),
        "web_port": settings.port(stage),
        "web_tables_enabled": False,
        "worker_redirect_stdouts": False,
    }


def transport_limits(settings: Settings, *, sheds: bool = False) -> dict[str, int]:
    """The transport's bounds, by the names of `app.transport.Consumer`.

    A stage that `sheds` its records as it takes them never waits with them, and needs few.
    """
    return {
        "chunk_records": settings.chunk_records,
        "chunk_bytes": settings.chunk_bytes,
        "max_inflight_bytes": min(settings.max_inflight_bytes, _SHED_BYTES if sheds else sys.maxsize),
        "max_inflight_records": min(settings.channel_size, _SHED_RECORDS if sheds else sys.maxsize),
    }


def build(stage: str, settings: Settings, parts_of: Callable[..., Stage] = make) -> StageApp:
    """The app of a stage, whose parts `parts_of` puts together. Raises `ValueError` for a name that is no stage."""
    hang_up()
    producer = BatchProducer(client_args(settings), max_message_bytes=settings.topics.max_message_bytes)
    app = StageApp(**app_options(stage, settings))
    telemetry = Telemetry(stage)

    def fault(error: BaseException) -> None:
        app.runtime.fault(error)

    parts = parts_of(stage, settings, producer, telemetry, fault)
    telemetry.sink = parts.sink
    app.transport_limits = transport_limits(settings, sheds=parts.stateful is not None)
    for table in parts.tables:
        table.bind(app, settings.topics.partitions)
    app.runtime = Runtime(app, stage, parts, settings, producer, telemetry)
    topic = app.topic(*parts.topics, schema=transport.ChunkSchema(), acks=True)
    app.agent(topic, name=stage, concurrency=1)(parts.agent)
    health.register(app, app.runtime)
    app.on_worker_init.connect(lambda *_args, **_kwargs: preflight.check(stage, settings), weak=False)
    return app
