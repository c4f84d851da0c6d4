"""What each stage is made of: the topics it reads, what it must know, and the piece of work that its agent feeds."""

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from agents import analyze
from agents.analyze import Source
from agents.decode import Forwarder, decode
from agents.store import store
from app import __version__, analysis, rules
from app.bookkeeping import Books
from app.maintenance import Maintenance
from app.produce import BatchProducer, LetterProducer
from app.registry import feed, from_file
from app.schema_registry import SchemaSource, place
from app.settings import Settings
from app.telemetry import Telemetry
from app.topics import TABLES
from schemas.bodies import CONFLUENT
from schemas.budget import Budget, Limits
from schemas.confluent import Schemas
from schemas.decoding import Decoder
from sinks import registry
from sinks.ceiling import Ceiling
from sinks.contracts import Options
from sinks.delivery import Delivery
from tables.binding import Table
from tables.rules import Rulebook

#: Room for a record's headers and framing.
_FRAME_BYTES = 2048
DECODE = "decode"
ANALYZE = "analyze"
#: What the stage `analyze` writes, by the names of `app.settings.models.Topics`.
_SAID = ("aggregates", "alarms", "anomalies", "late", "quality", "latest", "warnings", "emergencies")


class Work(Protocol):
    """What a stage's runtime starts, drains and asks about."""

    ceiling: Ceiling

    @property
    def ready(self) -> bool:
        """Whether what it is given now can be expected to be done soon."""

    def drain(self, deadline: float) -> None:
        """Finish by `deadline` (of `time.monotonic`) and let the rest go."""

    async def start(self, producer: BatchProducer) -> None:
        """Prepare, with the broker there."""

    async def run(self) -> None:
        """Work until cancelled."""


class Feed(Protocol):
    """A topic that a stage must have read whole before it works, and follows from then on."""

    topic: str

    @property
    def ready(self) -> bool:
        """Whether it has been read whole."""

    async def read(self) -> None:
        """Return when it has been read whole."""

    async def run(self) -> None:
        """Read and follow until cancelled."""


class Service(Protocol):
    """Something that runs beside the work, as the books."""

    async def run(self) -> None:
        """Until cancelled; while the broker or a store is away it waits."""

    async def close(self) -> None:
        """Finish, when the work has ended."""


class Stateful(Protocol):
    """Work that keeps state of the partitions it has, in tables."""

    @property
    def busy(self) -> bool:
        """Whether something is still to be finished before partitions are given up."""

    def begin(self, generation: int, partitions: Collection[int], source: Source) -> None:
        """Partitions are given out and tables restored: read the state."""


#: Asked at each seek with the partitions that are assigned: the offsets that the destination keeps of them.
OnSeek = Callable[[Collection[tuple[str, int]]], Awaitable[Mapping[tuple[str, int], int]]]


class Stage:
    """One stage: its topics, its work and its agent.

    `feeds` are what it must know before it works, `services` what runs beside the work; `on_seek` is there where the
    destination keeps the offsets, `stateful` and `tables` where the work keeps state.
    """

    def __init__(  # noqa: PLR0913  the parts of a stage
        self,
        topics: list[str],
        sink: str,
        work: Work,
        agent: Callable[[Any], Awaitable[None]],
        outputs: list[str],
        feeds: Sequence[Feed] = (),
        services: Sequence[Service] = (),
        on_seek: OnSeek | None = None,
        stateful: Stateful | None = None,
        tables: Sequence[Table] = (),
    ) -> None:
        self.topics = topics
        self.sink = sink
        self.work = work
        self.agent = agent
        self.outputs = outputs
        self.feeds = feeds
        self.services = services
        self.on_seek = on_seek
        self.stateful = stateful
        self.tables = tables


def known() -> list[str]:
    """Every stage that can be run."""
    return [DECODE, ANALYZE, *(module.Settings.STAGE for module in registry.load().values())]


def names(settings: Settings) -> list[str]:
    """The stages of a whole installation: decode, analyze, and one for each store that is used."""
    return [DECODE, ANALYZE, *(settings.sinks[store].STAGE for store in settings.stores)]


def reads(name: str, settings: Settings) -> list[str]:
    """The topics that a stage reads: a store those of readings and of iotflow's own findings.

    Raises `ValueError` for a name that is no stage.
    """
    topics = settings.topics
    if name == DECODE:
        return list(topics.raw)
    if name == ANALYZE:
        return [topics.decoded]
    books = [topics.storage_metadata] if settings.sinks[_sink_of(name)].BOOKS else []
    return [topics.decoded, topics.aggregates, topics.alarms, topics.quality, *books]


def make(
    name: str,
    settings: Settings,
    producer: BatchProducer,
    telemetry: Telemetry,
    fault: Callable[[BaseException], None],
) -> Stage:
    """Put a stage together; of I/O it only reads the registry's file.

    Raises `ValueError` for a name that is no stage, for what is wrong in that file, and where schemas are needed and
    the settings do not say where they are, or the packages that read them are not there.
    """
    topics = settings.topics
    letters = LetterProducer(producer, topics.dead_letters)
    ceiling = Ceiling(settings.ceiling.window, settings.ceiling.devices, settings.ceiling.ratio)
    if name == DECODE:
        points = from_file(settings.registry_file)
        schemas = schema_source(settings)
        decoder = Decoder(
            settings.inputs,
            partitions=topics.partitions,
            stage=name,
            version=__version__,
            max_message_bytes=topics.max_message_bytes,
            registry=points,
            schemas=schemas.schemas if schemas is not None else None,
            budget=budget_of(settings),
        )
        forwarder = Forwarder(
            decoder,
            topics.decode_output,
            producer,
            letters,
            telemetry,
            fault,
            ceiling=ceiling,
            fetch=schemas.fetch if schemas is not None else None,
            quality=topics.quality,
            quarantine=topics.quarantine,
        )
        outputs = [topics.decode_output, topics.dead_letters, topics.quality, topics.quarantine]
        feeds = [feed(settings, points, telemetry)]
        return Stage(reads(name, settings), "", forwarder, decode(forwarder), outputs, feeds)
    if name == ANALYZE:
        return _analysis(settings, telemetry, fault, ceiling)
    sink = _sink_of(name)
    module, config = registry.load()[sink], settings.sinks[sink]
    once = settings.app_id(name) if getattr(config, "exactly_once", False) else ""
    options = Options(
        stage=name,
        version=__version__,
        batch_size=config.batch_size,
        batch_timeout=config.batch_timeout,
        write_timeout=config.write_timeout,
        retry_first=settings.retry.first,
        retry_cap=settings.retry.cap,
        max_letter_bytes=topics.max_message_bytes,
        open_topic=topics.decoded,
        exactly_once=once,
    )
    destination = module.Sink(config, settings.types)
    books = Books(settings, sink, destination.place, producer)
    delivery = Delivery(destination, options, letters, telemetry, ceiling=ceiling, books=books, fault=fault)
    services: list[Service] = [books]
    if hasattr(module, "maintain"):
        services.append(Maintenance(partial(module.maintain, config, settings.types)))
    return Stage(
        reads(name, settings),
        sink,
        delivery,
        store(delivery),
        [topics.dead_letters, topics.saved, topics.storage_metadata],
        services=services,
        on_seek=delivery.positions if once else None,
    )


def _analysis(
    settings: Settings, telemetry: Telemetry, fault: Callable[[BaseException], None], ceiling: Ceiling
) -> Stage:
    rulebook = Rulebook(rules.from_file(settings.rules))
    # The state has positions, by which a late write of an earlier owner is known.
    tables = {name: Table(name, keeps_highest=name == analyze.STATE) for name in TABLES}
    said = {name: getattr(settings.topics, name) for name in _SAID}
    analyzer = analyze.Analyzer(
        tables,
        settings.topics.decoded,
        partial(analysis.factory, settings, rulebook),
        said,
        telemetry,
        fault,
        limits=analyze.Limits(every=settings.analysis.checkpoint, age=settings.analysis.checkpoint_age),
        max_bytes=settings.topics.max_message_bytes - _FRAME_BYTES,
        ceiling=ceiling,
    )
    return Stage(
        reads(ANALYZE, settings),
        "",
        analyzer,
        analyze.analyze(analyzer),
        list(said.values()),
        [rules.feed(settings, rulebook, telemetry)],
        stateful=analyzer,
        tables=list(tables.values()),
    )


def _sink_of(stage: str) -> str:
    sink = registry.of_stage(stage)
    if sink is None:
        raise ValueError(f"no stage is called {stage!r}; stages: {', '.join(known())}")
    return sink


def budget_of(settings: Settings) -> Budget | None:
    """What a device may send, and a memory of what it sent; None where nobody asks."""
    own = settings.budget
    if own.mode == "off":
        return None
    limits = Limits(own.rate, own.burst, own.series, own.devices, round(own.release * 1000))
    return Budget(limits, withholds=own.mode == "quarantine")


def schema_source(settings: Settings) -> SchemaSource | None:
    """What learns schemas, where a topic's payloads name theirs.

    Raises `ValueError` where the settings do not say where schemas are, or the packages that read them are not there.
    """
    if all(own.body != CONFLUENT for own in settings.inputs.topics.values()):
        return None
    return SchemaSource(Schemas(), place(settings.schema_registry), settings.retry)
