"""What a worker counts and shows: one catalogue of metrics, and lean counters updated per batch.

Faust's own Prometheus sensor costs 27 % of a worker's CPU, because it counts per message. Here a batch costs a few
additions, and the text that Prometheus reads is only made when it asks.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, Literal, get_args

from msgspec import Struct
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from app import __version__
from schemas.budget import Excess
from sinks.contracts import Breaker

Kind = Literal["counter", "gauge", "histogram"]
#: What a stage does, as the first word of its name: `store-timescale` is a `store`.
Role = Literal["decode", "store", "analyze", "ingest", "api"]

#: Stages that read a topic as members of a group.
_READERS: Final[tuple[Role, ...]] = ("decode", "store", "analyze")
_EVERY: Final[tuple[Role, ...]] = (*_READERS, "ingest", "api")
_DECODE: Final[tuple[Role, ...]] = ("decode",)
_STORE: Final[tuple[Role, ...]] = ("store",)
_ANALYZE: Final[tuple[Role, ...]] = ("analyze",)

#: The documents' range, .001 to 5 seconds.
_WRITE_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
#: Close together where the targets are (p95 below 80 ms, p99 below 150 ms); long enough to tell of an outage.
_DURABLE_SECONDS: Final = (
    *(0.005, 0.01, 0.02, 0.03, 0.04, 0.06, 0.08, 0.1, 0.15, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0),
)


class Metric(Struct, frozen=True, gc=False):
    """One entry of the catalogue. The labels `stage` and `sink` have one value in a process, which it fills in."""

    name: str
    kind: Kind
    help: str
    roles: tuple[Role, ...]
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    #: Read from the operating system when asked, instead of counted.
    of_process: bool = False

    @property
    def own_labels(self) -> tuple[str, ...]:
        """The labels whose values come with each number."""
        return tuple(label for label in self.labels if label not in {"stage", "sink"})


#: Every metric a process of ours can export, by name. Dashboards and alerts are generated from it.
CATALOGUE: Final[dict[str, Metric]] = {}


def _metric(  # noqa: PLR0913  the fields of an entry
    kind: Kind,
    name: str,
    text: str,
    roles: tuple[Role, ...],
    *labels: str,
    buckets: tuple[float, ...] = (),
    of_process: bool = False,
) -> Metric:
    metric = Metric(name, kind, text, roles, labels, buckets, of_process)
    if CATALOGUE.setdefault(name, metric) is not metric:
        raise ValueError(f"{name} is in the catalogue already")
    return metric


# -- the documents' names, exactly -------------------------------------------------------------------------------------

MESSAGES = _metric("counter", "ingestor_messages_total", "Raw messages handled.", _DECODE)
VALID = _metric(
    "counter", "ingestor_valid_messages_total", "Messages that passed validation: all but the invalid ones.", _DECODE
)
INVALID = _metric(
    "counter",
    "ingestor_invalid_messages_total",
    "Messages rejected by validation. One refused reading counts as one message.",
    _DECODE,
)
INSERTS = _metric("counter", "ingestor_db_inserts_total", "Rows the database took.", _STORE)
FAILURES = _metric(
    "counter", "ingestor_db_failures_total", "Writes, probes and log-ins that failed, retried or not.", _STORE
)
BATCH_SIZE = _metric("gauge", "ingestor_batch_size", "Readings in the last batch written.", _STORE)
INGEST_LATENCY = _metric(
    "histogram",
    "ingestor_ingest_latency_seconds",
    "Batch insert latency: from the start of a write to its commit.",
    _STORE,
    buckets=_WRITE_SECONDS,
)
BACKPRESSURE = _metric(
    "counter",
    "ingest_backpressure_total",
    "Times that intake stopped because as much was in flight as may be.",
    _READERS,
)
SINK_UP = _metric("gauge", "sink_up", "1 while the destination is taken to be there, else 0.", _STORE, "sink")
SINK_SECONDS = _metric(
    "histogram",
    "sink_query_seconds",
    "Duration of the queries that write batches, successful ones only.",
    _STORE,
    "sink",
    buckets=_WRITE_SECONDS,
)
UTILISATION = _metric(
    "gauge",
    "sink_batch_utilisation",
    "Readings in the last batch written, as a share of the batch size aimed at.",
    _STORE,
    "sink",
)

# -- ours: all labelled with the stage, so that workers can be told apart and summed -----------------------------------

RECORDS = _metric("counter", "iotflow_records_total", "Records taken in.", ("decode", "store", "analyze"), "stage")
READINGS = _metric(
    "counter",
    "iotflow_readings_total",
    "Readings by what became of them: decoded, stored, dead (sent to the dead-letter topic) or quarantined; in the "
    "analysis repeated (known already), duplicate (a second value of one time), corrected (a closed window), late (too "
    "late for one), ahead (of all windows), foreign (of another partition's device) or unreadable.",
    ("decode", "store", "analyze"),
    "stage",
    "outcome",
)
DEAD_LETTERS = _metric(
    "counter",
    "iotflow_dead_letters_total",
    "Letters sent to the dead-letter topic; the dialect is empty where none was recognised, and in the stores.",
    _READERS,
    "stage",
    "dialect",
    "reason",
)
FLAGS = _metric(
    "counter",
    "iotflow_flags_total",
    "Flags that decoded readings have: something about them was mended, or is not as expected.",
    ("decode",),
    "stage",
    "dialect",
    "flag",
)
OVER_BUDGET = _metric(
    "counter",
    "iotflow_over_budget_total",
    "Readings over their devices' budgets, by why: rate, or series; held back only where IOTFLOW_BUDGET=quarantine.",
    _DECODE,
    "stage",
    "reason",
)
NOISY = _metric(
    "gauge",
    "iotflow_noisy_devices",
    "Devices of whose readings some were over budget in the last minute.",
    _DECODE,
    "stage",
)
SAID = _metric("counter", "iotflow_said_total", "Records that the analysis sent.", _ANALYZE, "stage", "topic")
CHANNELS = _metric("gauge", "iotflow_channels", "Channels of devices whose state is kept.", _ANALYZE, "stage")
CHECKPOINT = _metric(
    "histogram",
    "iotflow_checkpoint_seconds",
    "Duration of a checkpoint: from what was said to the acknowledgement of what was read.",
    _ANALYZE,
    "stage",
    buckets=_DURABLE_SECONDS,
)
STATES = _metric("counter", "iotflow_states_total", "States written to the changelog.", _ANALYZE, "stage")
RULES = _metric(
    "gauge",
    "iotflow_rules",
    "Rules in force that are not switched off, by where they are from.",
    _ANALYZE,
    "stage",
    "source",
)
RULES_REFUSED = _metric(
    "gauge", "iotflow_rules_refused", "Records of the rules' topic that are wrong.", _ANALYZE, "stage"
)
RULES_STALE = _metric(
    "gauge", "iotflow_rules_stale", "1 while the rules' topic was not read or cannot be, else 0.", _ANALYZE, "stage"
)
REGISTRY = _metric(
    "gauge",
    "iotflow_registry_entries",
    "Pins whose data points are known, by where these come from: file or topic.",
    _DECODE,
    "stage",
    "source",
)
REGISTRY_REFUSED = _metric(
    "counter",
    "iotflow_registry_refused_total",
    "Records of the registry's topic that were refused; what was known before stays until a restart.",
    _DECODE,
    "stage",
)
REGISTRY_STALE = _metric(
    "gauge",
    "iotflow_registry_stale",
    "1 while the registry's topic cannot be read, and until it has been read once: what was known of it is used.",
    _DECODE,
    "stage",
)
ROWS = _metric("counter", "iotflow_rows_total", "Rows stored.", _STORE, "stage", "sink")
BATCHES = _metric("counter", "iotflow_batches_total", "Batches stored.", _STORE, "stage", "sink")
WRITE_FAILURES = _metric(
    "counter",
    "iotflow_write_failures_total",
    "Failed writes, probes and log-ins by what follows: retry, reject (by halves, to find the culprit) or fatal.",
    _STORE,
    "stage",
    "sink",
    "kind",
)
BREAKER = _metric(
    "gauge", "iotflow_breaker", "1 for the state the breaker is in, 0 for the others.", _STORE, "stage", "sink", "state"
)
CEILING = _metric(
    "gauge",
    "iotflow_ceiling_tripped",
    "1 while intake is stopped because most records were refused.",
    ("decode", "store"),
    "stage",
)
DURABLE = _metric(
    "histogram",
    "iotflow_durable_seconds",
    "From the receipt of a reading to its being durable in the store.",
    _STORE,
    "stage",
    "sink",
    buckets=_DURABLE_SECONDS,
)
FRESHNESS = _metric(
    "histogram",
    "iotflow_freshness_seconds",
    "From the time that a reading is of to its being durable, by up to 16 samples of a batch; never less than 0.",
    _STORE,
    "stage",
    "sink",
    buckets=(*_DURABLE_SECONDS, 3600.0, 21_600.0, 86_400.0, 604_800.0),
)
SKIPPED = _metric(
    "counter",
    "iotflow_skipped_total",
    "Records acknowledged without being handled: dead letters replayed to others, tombstones of compacted topics.",
    ("decode", "store"),
    "stage",
)
STOPPED = _metric(
    "gauge",
    "iotflow_intake_stopped",
    "1 while intake is stopped because somebody asked for it.",
    ("decode", "store", "analyze"),
    "stage",
)
LAG = _metric(
    "gauge",
    "iotflow_lag_records",
    "Records of an assigned partition that are not committed yet.",
    _READERS,
    "stage",
    "topic",
    "partition",
)
LAG_STALE = _metric(
    "gauge", "iotflow_lag_stale", "1 while the lag could not be measured: the last known is shown.", _READERS, "stage"
)
BROKER_UP = _metric("gauge", "iotflow_broker_up", "1 while the broker answers questions about lag.", _READERS, "stage")
OLDEST = _metric(
    "gauge",
    "iotflow_oldest_unstored_seconds",
    "Age of the oldest record taken in and not acknowledged; 0 when there is none.",
    _READERS,
    "stage",
)
INFLIGHT_RECORDS = _metric(
    "gauge", "iotflow_inflight_records", "Records taken in and not acknowledged.", _READERS, "stage"
)
INFLIGHT_BYTES = _metric(
    "gauge", "iotflow_inflight_bytes", "Memory that the records in flight are taken to need.", _READERS, "stage"
)
PARTITIONS = _metric("gauge", "iotflow_assigned_partitions", "Partitions this worker reads.", _READERS, "stage")
FROZEN = _metric(
    "gauge", "iotflow_frozen_partitions", "Partitions whose commits stand still though work goes on.", _READERS, "stage"
)
GENERATION = _metric(
    "gauge", "iotflow_group_generation", "Generation of the consumer group, -1 outside it.", _READERS, "stage"
)
REBALANCING = _metric(
    "gauge", "iotflow_rebalancing", "1 while partitions are being given out or state is restored.", _READERS, "stage"
)
READY = _metric("gauge", "iotflow_ready", "1 when /health/ready says so.", _EVERY, "stage")
BUILD = _metric("gauge", "iotflow_build_info", "Always 1; the labels say what runs.", _EVERY, "stage", "version")

# -- the process -------------------------------------------------------------------------------------------------------

_metric("counter", "process_cpu_seconds_total", "CPU time spent, user and system.", _EVERY, of_process=True)
_metric("gauge", "process_resident_memory_bytes", "Resident memory.", _EVERY, of_process=True)
_metric("gauge", "process_start_time_seconds", "When the process started, since the epoch.", _EVERY, of_process=True)
_metric("gauge", "process_open_fds", "Open file descriptors.", _EVERY, of_process=True)

#: Numbers that are shown before they are first counted, so that a rate over them starts at zero.
_KNOWN: Final[Mapping[Metric, tuple[str, ...]]] = {
    WRITE_FAILURES: ("retry", "reject", "fatal"),
    BREAKER: tuple(Breaker),
    REGISTRY: ("file", "topic"),
    RULES: ("profile", "file", "topic"),
    SAID: ("aggregates", "alarms", "anomalies", "emergencies", "late", "latest", "quality", "warnings"),
    OVER_BUDGET: get_args(Excess),
}
_OUTCOMES: Final[Mapping[Role, tuple[str, ...]]] = {
    "decode": ("decoded", "dead", "quarantined"),
    "store": ("stored", "dead"),
    "analyze": ("repeated", "duplicate", "corrected", "late", "ahead", "foreign", "unreadable"),
}


class Histogram:
    """Counts of values per bucket. A bound belongs to the bucket below it; the last count is for what is above all."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float, n: int = 1) -> None:
        """Count a value `n` times."""
        self.counts[bisect_left(self.bounds, value)] += n
        self.total += value * n

    def cumulative(self) -> Iterator[tuple[str, int]]:
        """The buckets as Prometheus has them: each bound with all that is not above it."""
        running = 0
        for bound, count in zip(self.bounds, self.counts, strict=False):
            running += count
            yield repr(bound), running
        yield "+Inf", running + self.counts[-1]


def quantile(buckets: Sequence[float], counts: Sequence[float], q: float) -> float | None:
    """Estimate the value below which the share `q` (0 to 1) of all values lies; None when there are none.

    `counts` has one number per bucket (not cumulative) and one more for what is above the last bound. Values are
    taken to be spread evenly inside their bucket, and those above the last bound to lie at it.
    """
    rank = q * sum(counts)
    if rank <= 0 and not any(counts):
        return None
    below = 0.0
    lower = 0.0
    for upper, count in zip(buckets, counts, strict=False):
        if count and below + count >= rank:
            return lower + (upper - lower) * (rank - below) / count
        below += count
        lower = upper
    return buckets[-1]


class Telemetry:
    """The numbers of one worker; implements what delivery and decode tell of themselves.

    A number that is not in the catalogue for the role of this stage raises `KeyError`.
    """

    def __init__(self, stage: str, sink: str = "") -> None:
        self.stage = stage
        self.sink = sink
        self.role = _role(stage)
        exported = [metric for metric in CATALOGUE.values() if self.role in metric.roles]
        self._numbers: dict[str, dict[tuple[str, ...], float]] = {}
        self._histograms: dict[str, Histogram] = {}
        for metric in exported:
            if metric.kind == "histogram":
                self._histograms[metric.name] = Histogram(metric.buckets)
            elif not metric.of_process:
                known = [(label,) for label in _KNOWN.get(metric, ())] if metric.own_labels else [()]
                self._numbers[metric.name] = dict.fromkeys(known, 0.0)
        for outcome in _OUTCOMES.get(self.role, ()):
            self._set(READINGS, 0, outcome)
        self._set(BUILD, 1, __version__)
        #: Lag of each assigned partition when it was last measured.
        self.lag_records: Mapping[tuple[str, int], int] = {}
        #: Nothing is known of the broker until it was first asked.
        self.lag_is_stale = True
        self.broker_answers = False
        if self.role in _READERS:
            self.lag_measured(stale=True, answers=False)
            self.generation(-1)
        if self.role == "store":
            self._set(BREAKER, 1, Breaker.CLOSED)
        self._registry = CollectorRegistry()
        self._registry.register(_Numbers(self, exported, self._numbers, self._histograms))

    # -- what delivery tells -------------------------------------------------------------------------------------------

    def taken(self, records: int) -> None:
        """Records came in."""
        self._add(RECORDS, records)

    def stored(self, readings: int, rows: int, seconds: float, size: int) -> None:
        """A write of a batch succeeded; `size` is the batch size aimed at."""
        self._add(INSERTS, rows)
        self._add(ROWS, rows)
        self._add(BATCHES, 1)
        self._add(READINGS, readings, "stored")
        self._set(BATCH_SIZE, readings)
        self._set(UTILISATION, readings / size)
        self.up(up=True)
        self._histograms[INGEST_LATENCY.name].observe(seconds)
        self._histograms[SINK_SECONDS.name].observe(seconds)

    def durable(self, seconds: float, records: int) -> None:
        """So many records became durable this long after they were received; clocks that disagree count as 0."""
        self._histograms[DURABLE.name].observe(max(0.0, seconds), records)

    def fresh(self, seconds: float, readings: int) -> None:
        """So many readings became durable this long after the time that they are of."""
        self._histograms[FRESHNESS.name].observe(seconds, readings)

    def skipped(self, records: int) -> None:
        """Records were acknowledged that are meant for another stage, or that let go of a key (tombstones)."""
        self._add(SKIPPED, records)

    def failed(self, kind: str) -> None:
        """A write or probe failed; `kind` is retry, reject or fatal."""
        self._add(FAILURES, 1)
        self._add(WRITE_FAILURES, 1, kind)

    def dead(self, reason: str, letters: int, dialect: str = "") -> None:
        """Letters were sent."""
        self._add(DEAD_LETTERS, letters, dialect, reason)
        if self.role in _OUTCOMES:
            self._add(READINGS, letters, "dead")

    def breaker(self, state: Breaker) -> None:
        """The breaker changed."""
        for each in Breaker:
            self._set(BREAKER, each is state, each)
        self.up(up=state is Breaker.CLOSED)

    def ceiling(self, tripped: bool) -> None:  # noqa: FBT001  a gauge's value
        """The ceiling tripped or was reset."""
        self._set(CEILING, tripped)

    def stopped(self, stopped: bool) -> None:  # noqa: FBT001  a gauge's value
        """Intake was stopped, or goes on."""
        self._set(STOPPED, stopped)

    # -- what decode tells ---------------------------------------------------------------------------------------------

    def decoded(self, records: int, readings: int, rejected: int) -> None:
        """A chunk was decoded, produced and acknowledged; `rejected` counts letters, which `dead` counts by reason.

        The documents count messages where we count readings: each letter makes one message invalid there.
        """
        invalid = min(rejected, records)
        self._add(RECORDS, records)
        self._add(READINGS, readings, "decoded")
        self._add(MESSAGES, records)
        self._add(INVALID, invalid)
        self._add(VALID, records - invalid)

    def flagged(self, dialect: str, flag: str, readings: int) -> None:
        """Readings were decoded that have a flag."""
        self._add(FLAGS, readings, dialect, flag)

    def over_budget(self, by_excess: Mapping[str, int], withheld: int, devices: int) -> None:
        """Readings were over budget, by why; so many were sent to the quarantine. So many devices are noisy now."""
        for excess, readings in by_excess.items():
            self._add(OVER_BUDGET, readings, excess)
        self._add(READINGS, withheld, "quarantined")
        self._set(NOISY, devices)

    def registry(self, by_source: Mapping[str, int], refused: int, *, stale: bool) -> None:
        """Of how many pins the data points are known, by where these come from; how many records were refused so far.

        It is stale while its topic cannot be read, and until that was read once.
        """
        for source, pins in by_source.items():
            self._set(REGISTRY, pins, source)
        self._set(REGISTRY_REFUSED, refused)
        self._set(REGISTRY_STALE, stale)

    # -- what the analysis tells ---------------------------------------------------------------------------------------

    def analysed(self, records: int, by_outcome: Mapping[str, int]) -> None:
        """Records were folded; of their readings so many had another outcome than usual."""
        self._add(RECORDS, records)
        for outcome, readings in by_outcome.items():
            self._add(READINGS, readings, outcome)

    def said(self, by_topic: Mapping[str, int]) -> None:
        """Records were handed over to be sent, by their topics' names in `Topics`."""
        for topic, records in by_topic.items():
            self._add(SAID, records, topic)

    def checkpoint(self, seconds: float, states: int) -> None:
        """A checkpoint was made, of so many states."""
        self._histograms[CHECKPOINT.name].observe(seconds, 1)
        self._add(STATES, states)

    def channels(self, channels: int) -> None:
        """Of so many channels state is kept."""
        self._set(CHANNELS, channels)

    def rules(self, by_source: Mapping[str, int], refused: int, *, stale: bool) -> None:
        """How many rules hold, by where they are from; how many records of their topic were refused so far."""
        for source, count in by_source.items():
            self._set(RULES, count, source)
        self._set(RULES_REFUSED, refused)
        self._set(RULES_STALE, stale)

    # -- what the transport and the watches tell -----------------------------------------------------------------------

    def backpressure(self) -> None:
        """Intake stopped once."""
        self._add(BACKPRESSURE, 1)

    def lag(self, by_partition: Mapping[tuple[str, int], int]) -> None:
        """The lag of all assigned partitions, now; others are forgotten."""
        self.lag_records = dict(by_partition)
        numbers = self._numbers[LAG.name]
        numbers.clear()
        numbers.update({(topic, str(partition)): lag for (topic, partition), lag in by_partition.items()})

    def lag_measured(self, *, stale: bool, answers: bool) -> None:
        """Whether the lag shown is old, and whether the broker answers at all."""
        self.lag_is_stale, self.broker_answers = stale, answers
        self._set(LAG_STALE, stale)
        self._set(BROKER_UP, answers)

    def oldest(self, seconds: float) -> None:
        """Age of the oldest record that is not acknowledged; 0 when there is none."""
        self._set(OLDEST, max(0.0, seconds))

    def inflight(self, records: int, size_bytes: int) -> None:
        """What was taken in and is not acknowledged."""
        self._set(INFLIGHT_RECORDS, records)
        self._set(INFLIGHT_BYTES, size_bytes)

    def partitions(self, assigned: int, frozen: int) -> None:
        """How many partitions are assigned, and how many of them stand still."""
        self._set(PARTITIONS, assigned)
        self._set(FROZEN, frozen)

    def generation(self, generation: int) -> None:
        """The group's generation, -1 outside the group."""
        self._set(GENERATION, generation)

    def rebalancing(self, rebalancing: bool) -> None:  # noqa: FBT001  a gauge's value
        """Whether a rebalance or a recovery is under way."""
        self._set(REBALANCING, rebalancing)

    def ready(self, ready: bool) -> None:  # noqa: FBT001  a gauge's value
        """What the readiness page says."""
        self._set(READY, ready)

    def up(self, *, up: bool) -> None:
        """Whether the destination is taken to be there."""
        self._set(SINK_UP, up)

    # -- reading -------------------------------------------------------------------------------------------------------

    def value(self, metric: Metric, *labels: str) -> float:
        """A counter's or gauge's number; `labels` are the values of its own labels."""
        return self._numbers[metric.name].get(labels, 0)

    def histogram(self, metric: Metric) -> Histogram:
        """A histogram's counts."""
        return self._histograms[metric.name]

    def render(self) -> tuple[bytes, str]:
        """All of it in Prometheus' text format, and that format's content type."""
        return generate_latest(self._registry), CONTENT_TYPE_PLAIN_0_0_4

    def _add(self, metric: Metric, n: float, *labels: str) -> None:
        numbers = self._numbers[metric.name]
        numbers[labels] = numbers.get(labels, 0) + n

    def _set(self, metric: Metric, value: float, *labels: str) -> None:
        self._numbers[metric.name][labels] = value


def _role(stage: str) -> Role:
    name = stage.partition("-")[0]
    for role in _EVERY:
        if role == name:
            return role
    raise ValueError(f"stage {stage!r} begins with none of {', '.join(_EVERY)}")


class _Numbers(Collector):
    """Makes Prometheus' families of the numbers, in the catalogue's order."""

    def __init__(
        self,
        of: Telemetry,
        exported: Iterable[Metric],
        numbers: Mapping[str, Mapping[tuple[str, ...], float]],
        histograms: Mapping[str, Histogram],
    ) -> None:
        self._of = of
        self._exported = tuple(exported)
        self._numbers = numbers
        self._histograms = histograms
        self._process = ProcessCollector(registry=None)

    def collect(self) -> Iterator[Family]:
        process = {_full_name(family): family for family in self._process.collect()}
        for metric in self._exported:
            if metric.of_process:
                # Not every operating system tells.
                if metric.name in process:
                    yield process[metric.name]
            elif metric.kind == "histogram":
                yield self._histogram(metric)
            else:
                yield self._family(metric)

    @property
    def _fixed(self) -> dict[str, str]:
        return {"stage": self._of.stage, "sink": self._of.sink}

    def _family(self, metric: Metric) -> Family:
        make: Callable[..., Any] = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
        family: Family = make(metric.name, metric.help, labels=metric.labels)
        add = family.add_metric  # type: ignore[attr-defined]  # each kind of family has one, the base has not
        for own, value in list(self._numbers[metric.name].items()):
            labels = {**self._fixed, **dict(zip(metric.own_labels, own, strict=True))}
            add([labels[label] for label in metric.labels], float(value))
        return family

    def _histogram(self, metric: Metric) -> Family:
        family = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
        histogram = self._histograms[metric.name]
        family.add_metric(
            [self._fixed[label] for label in metric.labels], list(histogram.cumulative()), histogram.total
        )
        return family


def _full_name(family: Family) -> str:
    return f"{family.name}_total" if family.type == "counter" else family.name
