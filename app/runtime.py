"""What lives as long as a worker: its work, its producer, its view of lag, and its watchdog."""

import asyncio
import logging
import os
import threading
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from aiokafka.errors import KafkaError
from faust.types import TP
from mode import Service as ModeService

from agents.decode import CannotWithdrawError
from app import health, kafka, lag, memory, topics
from app.control import Control
from app.produce import BatchProducer
from app.settings import Settings
from app.stages import Stage
from app.steering import Steering
from app.telemetry import Telemetry

if TYPE_CHECKING:
    import faust

log = logging.getLogger(__name__)

#: Exit codes, after sysexits: the supervisor starts a worker again after either.
EXIT_FAULT = 70
EXIT_CONFIG = 78
_GAUGES_EVERY_S = 1.0
#: A stop may take as long as what is held may take, and this for the rest.
_STOP_MARGIN_S = 5.0
#: For one question to the broker.
_ASK_S = 10.0
#: For what runs beside the work, when it is to finish: less than that.
_CLOSE_S = 2.0


def leave(code: int) -> None:
    """End the process now: what is not acknowledged is delivered again, so nothing is gained by a clean stop."""
    logging.shutdown()
    os._exit(code)


def _standstill_s(settings: Settings, sink: str) -> float:
    """How long records may wait: several writes, and a batch that is open."""
    if not sink:
        return health.STANDSTILL_S
    config = settings.sinks[sink]
    return max(health.STANDSTILL_S, 5 * config.write_timeout, 3 * config.batch_timeout)


class Source:
    """The topic that a stage with state reads; implements `agents.analyze.Source`."""

    def __init__(self, consumer: Any, topic: str, telemetry: Telemetry) -> None:
        self.topic = topic
        self._consumer = consumer
        self._telemetry = telemetry

    def caught_up(self, partition: int) -> bool:
        """Whether all of a partition has been read; not known while the broker is away."""
        read = self._consumer.caught_up(TP(self.topic, partition))
        return bool(read and self._telemetry.broker_answers)

    async def ends(self, partitions: Collection[int]) -> Mapping[int, int]:
        """Where partitions' logs end now; waits for a broker that is away."""
        if not partitions:
            return {}
        places = [TP(self.topic, partition) for partition in partitions]
        while True:
            try:
                async with asyncio.timeout(_ASK_S):
                    # At once: each question may have to wait behind a fetch that waits for records.
                    found = await self._consumer.highwaters(*places)
                return {place.partition: int(found[place]) for place in places}
            except (TimeoutError, KafkaError) as error:
                log.warning("cannot ask Kafka for the end of a topic; trying again", extra={"error": repr(error)})
                await asyncio.sleep(1.0)


class Runtime(ModeService):
    """Starts before Faust's services and stops after them, since stopping needs the work to finish what it holds."""

    def __init__(  # noqa: PLR0913  the parts of a worker
        self,
        app: "faust.App",
        stage: str,
        parts: Stage,
        settings: Settings,
        producer: BatchProducer,
        telemetry: Telemetry,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.app = app
        self.stage = stage
        self.parts = parts
        self.settings = settings
        self.producer = producer
        self.telemetry = telemetry
        steering = Steering(self)
        self._control = Control(settings, stage, producer, steering.perform, steering.describe)
        self.watchdog = health.Watchdog(
            settings.rebalance_timeout,
            standstill=_standstill_s(settings, parts.sink),
        )

    async def on_start(self) -> None:
        """Connect, check the topics and begin to work."""
        for notice in self.settings.notices:
            log.warning(notice)
        await self.producer.start()
        missing = await self._missing()
        if missing:
            log.critical("topics are missing", extra={"topics": missing, "remedy": "run iotflow topics apply"})
            leave(EXIT_CONFIG)
        consumer: Any = self.app.consumer
        consumer.on_drain.append(self.parts.work.drain)
        consumer.on_full.append(self.telemetry.backpressure)
        stateful = self.parts.stateful
        if stateful is not None:
            consumer.unfinished.append(lambda: stateful.busy)
        if self.parts.on_seek is not None:
            consumer.on_seek = self._on_seek
        self.add_future(self._guarded(self._control.run()))
        for feed in self.parts.feeds:
            self.add_future(self._guarded(feed.run()))
        for feed in self.parts.feeds:
            if (await self.wait(feed.read())).stopped:
                return
        await self.parts.work.start(self.producer)
        self.add_future(self._guarded(self.parts.work.run()))
        for service in self.parts.services:
            self.add_future(self._guarded(service.run()))
        self.add_future(self._guarded(self._watch_lag()))
        self.add_future(self._guarded(self._gauges()))
        self.add_future(self._guarded(memory.run()))
        self.add_future(self._guarded(health.watch(self, lambda: leave(EXIT_FAULT))))

    async def _on_seek(self, partitions: set[TP]) -> dict[TP, int]:
        assert self.parts.on_seek is not None  # noqa: S101  for mypy: it is what made this the consumer's hook
        kept = await self.parts.on_seek([(tp.topic, tp.partition) for tp in partitions])
        return {TP(topic, partition): offset for (topic, partition), offset in kept.items()}

    def begin(self) -> None:
        """A rebalance is over; called before a record of the new generation comes."""
        if self.parts.stateful is not None:
            app: Any = self.app
            source = Source(app.consumer, self.parts.topics[0], self.telemetry)
            partitions = {partition for topic, partition in self.assigned() if topic == source.topic}
            self.parts.stateful.begin(app.consumer_generation_id, partitions, source)

    async def _missing(self) -> list[str]:
        while True:
            try:
                return [topic for topic in await topics.missing(self.settings) if topic in self._wanted()]
            except kafka.ConfigError as error:
                log.critical("the settings for Kafka cannot be used", extra={"error": str(error)})
                leave(EXIT_CONFIG)
            except Exception as error:  # noqa: BLE001  the broker may not be there yet
                log.error("cannot ask Kafka for its topics", extra={"error": kafka.explain(error, self.settings)})  # noqa: TRY400
                await asyncio.sleep(1.0)

    def _wanted(self) -> set[str]:
        parts, topics = self.parts, self.settings.topics
        feeds = (feed.topic for feed in parts.feeds)
        changelogs = (table.changelog for table in parts.tables)
        return {*parts.topics, *parts.outputs, *feeds, *changelogs, topics.control, topics.status}

    async def _guarded(self, work: Any) -> None:
        """Run something that must not end; when it fails, this process has."""
        try:
            await work
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001  nothing may end unseen
            self.fault(error)

    def fault(self, error: BaseException) -> None:
        """End the process for an error after which it cannot go on; nothing was acknowledged for it."""
        stopping = self.should_stop or self.app.should_stop
        if stopping and not isinstance(error, CannotWithdrawError):
            return  # what is being taken down fails here and there
        if stopping:
            log.warning("the stop was cut short; what was not committed is delivered again", exc_info=error)
            self._leave_stopping()
        log.critical("worker failed", exc_info=error)
        leave(EXIT_FAULT)

    def limit_stop(self) -> None:
        """See to it that a stop ends, also while the broker is away and Faust waits for it."""

        def give_up() -> None:
            log.warning("the stop took too long and was cut short; what was not committed is delivered again")
            self._leave_stopping()

        seconds = self.settings.rebalance_timeout / 3 + _STOP_MARGIN_S
        timer = threading.Timer(seconds, give_up)
        timer.daemon = True
        timer.start()

    def _leave_stopping(self) -> None:
        # Faust stops by itself when one of its services has failed: whoever watches over this process must know.
        leave(EXIT_FAULT if self.app.crashed else 0)

    async def on_stop(self) -> None:
        """Finish what runs beside the work, and let go of the broker."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_S):
                closing = [self._control.close(), *(service.close() for service in self.parts.services)]
                await asyncio.gather(*closing, return_exceptions=True)
        await self.producer.stop()

    def assigned(self) -> set[tuple[str, int]]:
        """The data partitions this worker has now."""
        consumer: Any = self.app.consumer
        try:
            found = consumer.assignment()
        except Exception:  # noqa: BLE001  Faust raises its own error before the consumer thread has started
            return set()
        return {(tp.topic, tp.partition) for tp in found if tp.topic in self.parts.topics}

    async def _watch_lag(self) -> None:
        await lag.watch(
            kafka.client_args(self.settings), self.settings.app_id(self.stage), self.assigned, self.telemetry
        )

    async def _gauges(self) -> None:
        consumer: Any = self.app.consumer
        while True:
            oldest = consumer.oldest_unstored_ms()
            self.telemetry.oldest(0.0 if oldest is None else max(0.0, time.time() - oldest / 1000))
            self.telemetry.inflight(consumer.inflight_records, consumer.inflight_bytes)
            await asyncio.sleep(_GAUGES_EVERY_S)
