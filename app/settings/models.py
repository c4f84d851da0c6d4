"""What can be set: one model for each part, and the names of its environment variables beside each field."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    DirectoryPath,
    Field,
    FilePath,
    PrivateAttr,
    SecretStr,
    SerializeAsAny,
    model_validator,
)
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from app.settings.fields import (
    MECHANISMS,
    Address,
    Lateness,
    LogLevel,
    Mechanism,
    Name,
    Protocol,
    Ranges,
    RawTopics,
    Servers,
    Size,
    Stores,
    TokenUrl,
    ValueTypes,
    Windows,
    parse_levels,
    setting,
)
from schemas import inputs
from schemas.inputs import Inputs
from sinks.base import SinkSettings

#: Stages that are not a sink's, with the port each prefers; a sink's file declares its own.
PORTS: Final[Mapping[str, int]] = {
    "decode": 6066,
    "analyze": 6071,
    "ingest-mqtt": 6072,
    "ingest-poll": 6073,
    "api": 8080,
}


class Part(BaseModel):
    """A part of the settings.

    A problem of several fields together is a `ValueError` with one line for each, field names in back-ticks: the
    loader puts the variables' names there.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,
        validate_by_name=True,
        validate_by_alias=False,
        allow_inf_nan=False,
    )


class Kafka(Part):
    """How to reach the broker."""

    bootstrap_servers: Servers = setting(
        "localhost:9092", "KAFKA_BOOTSTRAP_SERVERS", "KAFKA_BROKERS", text="brokers to begin with: HOST:PORT,HOST:PORT"
    )
    security_protocol: Protocol = setting("PLAINTEXT", "KAFKA_SECURITY_PROTOCOL", text="encryption and log-in")
    sasl_mechanism: Mechanism | None = setting(None, "KAFKA_SASL_MECHANISM", text="how SASL_* protocols log in")
    sasl_username: str | None = setting(None, "KAFKA_SASL_USERNAME", text="user for PLAIN and SCRAM")
    sasl_password: SecretStr | None = setting(None, "KAFKA_SASL_PASSWORD", text="password for PLAIN and SCRAM")
    sasl_oauth_token_url: TokenUrl | None = setting(
        None, "KAFKA_SASL_OAUTH_TOKEN_URL", text="where OAUTHBEARER gets its tokens"
    )
    sasl_oauth_client_id: str | None = setting(None, "KAFKA_SASL_OAUTH_CLIENT_ID", text="client id for OAUTHBEARER")
    sasl_oauth_client_secret: SecretStr | None = setting(
        None, "KAFKA_SASL_OAUTH_CLIENT_SECRET", text="client secret for OAUTHBEARER"
    )
    ssl_ca: FilePath | None = setting(None, "KAFKA_SSL_CA", text="certificates to trust instead of the system's")
    ssl_cert: FilePath | None = setting(None, "KAFKA_SSL_CERT", text="client certificate")
    ssl_key: FilePath | None = setting(None, "KAFKA_SSL_KEY", text="key of the client certificate")
    ssl_key_password: SecretStr | None = setting(None, "KAFKA_SSL_KEY_PASSWORD", text="password of that key")

    @model_validator(mode="after")
    def _agree(self) -> "Kafka":
        if flaws := [*self._sasl_flaws(), *self._ssl_flaws()]:
            raise ValueError("\n".join(flaws))
        return self

    def _sasl_flaws(self) -> Iterator[str]:
        fields = [name for name in Kafka.model_fields if name.startswith("sasl_")]
        if not self.security_protocol.startswith("SASL_"):
            # Set and unused would be worse than an error: somebody believes the connection is authenticated.
            for name in fields:
                if getattr(self, name) is not None:
                    yield f"`{name}` is set, but `security_protocol` {self.security_protocol} does not use it"
            return
        if self.sasl_mechanism is None:
            allowed = ", ".join(MECHANISMS)
            yield f"`sasl_mechanism` is not set, but `security_protocol` is {self.security_protocol}: one of {allowed}"
            return
        oauth = self.sasl_mechanism == "OAUTHBEARER"
        for name in fields[1:]:
            if getattr(self, name) is None and name.startswith("sasl_oauth_") is oauth:
                yield f"`{name}` is not set, but `sasl_mechanism` {self.sasl_mechanism} needs it"

    def _ssl_flaws(self) -> Iterator[str]:
        if not self.security_protocol.endswith("SSL"):
            for name in ("ssl_ca", "ssl_cert", "ssl_key", "ssl_key_password"):
                if getattr(self, name) is not None:
                    yield f"`{name}` is set, but `security_protocol` {self.security_protocol} does not use it"
            return
        if (self.ssl_cert is None) is not (self.ssl_key is None):
            yield "`ssl_cert` and `ssl_key` go together: set both or neither"
        elif self.ssl_key_password is not None and self.ssl_key is None:
            yield "`ssl_key_password` is set without `ssl_key`"


class Topics(Part):
    """The topics, and how they are created."""

    raw: RawTopics = setting(
        {"raw_iot_data": "telemetry"}, "KAFKA_RAW_TOPICS", text="what decode reads: TOPIC:DIALECT,TOPIC:DIALECT"
    )
    decoded: Name = setting("decoded_iot_data", "KAFKA_INPUT_TOPIC", text="what the stores read; never decode's input")
    decode_output: Name = Field(
        default_factory=lambda data: str(data["decoded"]),
        validation_alias=AliasChoices("KAFKA_OUTPUT_TOPIC"),
        description="what decode writes",
        json_schema_extra={"default": "as KAFKA_INPUT_TOPIC"},
    )
    dead_letters: Name = setting("iotflow.dead_letters", "IOTFLOW_DEAD_LETTER_TOPIC", text="where dead letters go")
    dead_letter_state: Name = setting(
        "iotflow.dead_letter_state", "IOTFLOW_DEAD_LETTER_STATE_TOPIC", text="what became of dead letters"
    )
    registry: Name = setting("iotflow.registry", "IOTFLOW_REGISTRY_TOPIC", text="the data points' own topic")
    control: Name = setting("iotflow.control", "IOTFLOW_CONTROL_TOPIC", text="what commands ask of the stages")
    status: Name = setting("iotflow.status", "IOTFLOW_STATUS_TOPIC", text="what the stages say of themselves")
    storage_metadata: Name = setting(
        "iotflow.storage_metadata", "IOTFLOW_STORAGE_METADATA_TOPIC", text="what was stored, summed up by interval"
    )
    saved: Name = setting(
        "datalake.sensorDataSaved", "IOTFLOW_SAVED_TOPIC", text="an event for each batch that was stored"
    )
    aggregates: Name = setting("iotflow.aggregates", "IOTFLOW_AGGREGATES_TOPIC", text="closed windows")
    alarms: Name = setting("iotflow.alarms", "IOTFLOW_ALARMS_TOPIC", text="the state of each alarm")
    anomalies: Name = setting(
        "datalake.sensorDataAnomalyDetected",
        "IOTFLOW_ANOMALIES_TOPIC",
        text="an event for each anomalous value, at once",
    )
    warnings: Name = setting(
        "controlTower.warningAlertIssued", "IOTFLOW_WARNINGS_TOPIC", text="alarms of severity WARN, where escalated"
    )
    emergencies: Name = setting(
        "controlTower.emergencyAlertIssued",
        "IOTFLOW_EMERGENCIES_TOPIC",
        text="alarms of severity EMERGENCY, where escalated",
    )
    latest: Name = setting("iotflow.latest", "IOTFLOW_LATEST_TOPIC", text="the last values of each device")
    rules: Name = setting("iotflow.rules", "IOTFLOW_RULES_TOPIC", text="the rules' own topic")
    late: Name = setting("iotflow.late", "IOTFLOW_LATE_TOPIC", text="readings that came too late for their windows")
    quality: Name = setting("iotflow.quality", "IOTFLOW_QUALITY_TOPIC", text="what is wrong with devices' data")
    quarantine: Name = setting(
        "iotflow.quarantine", "IOTFLOW_QUARANTINE_TOPIC", text="readings of devices that are over their budget"
    )
    partitions: int = setting(
        4, "IOTFLOW_PARTITIONS", text="partitions of a topic that iotflow creates; never changed after", ge=1, le=10_000
    )
    replication: int = setting(1, "IOTFLOW_REPLICATION", text="replicas of such a topic", ge=1, le=15)
    max_message_bytes: Size = setting(
        1_048_588, "IOTFLOW_MAX_MESSAGE_BYTES", text="largest record of such a topic", unit="bytes", ge=1024
    )

    @model_validator(mode="after")
    def _apart(self) -> "Topics":
        written = {self.decode_output: "decode_output"} | {self.decoded: "decoded"}
        flaws = [
            f"`raw` and `{field}` both name {topic!r}: a stage would read what it writes; give them different topics"
            for topic, field in written.items()
            if topic in self.raw
        ]
        written |= dict.fromkeys(self.raw, "raw")
        for own, what in (
            ("dead_letters", "dead letters"),
            ("dead_letter_state", "their state"),
            ("registry", "the registry"),
            ("control", "commands"),
            ("status", "the stages' status"),
            ("storage_metadata", "the bookkeeping"),
            ("saved", "what was stored"),
            ("aggregates", "closed windows"),
            ("alarms", "alarms"),
            ("anomalies", "anomalies"),
            ("warnings", "warnings"),
            ("emergencies", "emergencies"),
            ("latest", "the last values"),
            ("rules", "the rules"),
            ("late", "late readings"),
            ("quality", "data quality"),
            ("quarantine", "withheld readings"),
        ):
            name = getattr(self, own)
            if field := written.get(name):
                flaws.append(f"`{own}` and `{field}` both name {name!r}: give {what} a topic of their own")
            written[name] = own
        if flaws:
            raise ValueError("\n".join(flaws))
        return self


class Ceiling(Part):
    """When so much is rejected that a mistake of ours is likelier than bad devices."""

    window: int = setting(
        10_000, "IOTFLOW_CEILING_WINDOW", text="how many of the last records are looked at", unit="records", ge=1
    )
    devices: int = setting(
        20, "IOTFLOW_CEILING_DEVICES", text="rejected records of more devices than this trip it", unit="devices", ge=0
    )
    ratio: float = setting(0.5, "IOTFLOW_CEILING_RATIO", text="a larger share of rejected records trips it", gt=0, le=1)


class Retry(Part):
    """The back-off while a destination is away; there is no last try."""

    first: float = setting(0.1, "IOTFLOW_RETRY_FIRST", text="first wait", unit="s", gt=0, le=3600)
    cap: float = setting(5.0, "IOTFLOW_RETRY_CAP", text="longest wait", unit="s", gt=0, le=3600)

    @model_validator(mode="after")
    def _ordered(self) -> "Retry":
        if self.cap < self.first:
            raise ValueError(f"`cap` ({self.cap} s) must be at least `first` ({self.first} s)")
        return self


class Analysis(Part):
    """What the stage `analyze` does with readings' times."""

    windows: Windows = setting(
        ("1m", "5m", "1h", "1d"), "IOTFLOW_WINDOWS", text="spans that are summed up, aligned to UTC: 1m,5m,1h,1d"
    )
    lateness: Lateness = setting(
        {"1m": "10m", "5m": "30m", "1h": "6h", "1d": "2d"},
        "IOTFLOW_LATENESS",
        text="how long after its end a window is still corrected: WINDOW=SPAN,…; ten times the window where not said",
    )
    grace: float = setting(
        2.0, "IOTFLOW_WINDOW_GRACE", text="so far behind its device's newest a reading is in time", unit="s", ge=0
    )
    idle: float = setting(
        60.0, "IOTFLOW_IDLE", text="after this silence a device's windows close by the clock", unit="s", gt=0
    )
    skew: float = setting(
        300.0, "IOTFLOW_FUTURE_SKEW", text="a device's clock may be ahead by so much", unit="s", ge=0, le=86_400
    )
    checkpoint: float = setting(
        5.0, "IOTFLOW_CHECKPOINT", text="time between checkpoints of the tables", unit="s", gt=0, le=120
    )
    checkpoint_age: float = setting(
        30.0,
        "IOTFLOW_CHECKPOINT_AGE",
        text="a checkpoint leaves states alone that have nothing to say and changed less than this ago",
        unit="s",
        ge=0,
        le=120,
    )
    replay_after: float = setting(
        3600.0, "IOTFLOW_REPLAY_AFTER", text="readings older than this page nobody", unit="s", gt=0
    )
    forget: float = setting(
        2_592_000.0, "IOTFLOW_FORGET", text="a channel that is silent for so long is forgotten", unit="s", ge=3600
    )
    replay: bool = setting(False, "IOTFLOW_REPLAY", text="page nobody at all: everything read is a replay")
    escalate: bool = setting(False, "IOTFLOW_ESCALATE", text="send new alarms to the control tower's topics too")


class Budget(Part):
    """What one device may send before it counts as noisy."""

    mode: Literal["off", "report", "quarantine"] = setting(
        "report", "IOTFLOW_BUDGET", text="what is done with devices that are over their budget: off, report, quarantine"
    )
    rate: float = setting(100.0, "IOTFLOW_BUDGET_RATE", text="readings of a device", unit="readings/s", gt=0)
    burst: int = setting(1000, "IOTFLOW_BUDGET_BURST", text="so many more at once", unit="readings", ge=1)
    series: int = setting(
        2000, "IOTFLOW_BUDGET_SERIES", text="different metrics of a device, by channel", unit="series", ge=1
    )
    devices: int = setting(
        100_000, "IOTFLOW_BUDGET_DEVICES", text="devices whose budget is kept in mind", unit="devices", ge=1
    )
    release: float = setting(
        60.0, "IOTFLOW_BUDGET_RELEASE", text="within its budget for so long, a device is released", unit="s", ge=0
    )


class SchemaRegistry(Part):
    """Where the schemas of topics with the body `confluent` are."""

    url: TokenUrl | None = setting(None, "SCHEMA_REGISTRY_URL", text="schema registry, for topics of body confluent")
    user: str | None = setting(None, "SCHEMA_REGISTRY_USER", text="its user")
    password: SecretStr | None = setting(None, "SCHEMA_REGISTRY_PASSWORD", text="its password")
    directory: DirectoryPath | None = setting(
        None, "SCHEMA_REGISTRY_DIR", text="instead of one: directory with ID.avsc, ID.json, ID.desc"
    )

    @model_validator(mode="after")
    def _agree(self) -> "SchemaRegistry":
        flaws = []
        if self.url is not None and self.directory is not None:
            flaws.append("`url` and `directory` are both set: keep one of them")
        if (self.user is None) is not (self.password is None):
            flaws.append("`user` and `password` go together: set both or neither")
        elif self.user is not None and self.url is None:
            flaws.append("`user` is set without `url`")
        if flaws:
            raise ValueError("\n".join(flaws))
        return self


class Settings(BaseSettings):
    """Everything a process is told, checked; made by `app.settings.load`. `sources` says where each value came from."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,
        validate_by_name=True,
        validate_by_alias=False,
        allow_inf_nan=False,
    )
    PARTS: ClassVar[Mapping[str, type[Part]]] = {
        "kafka": Kafka,
        "topics": Topics,
        "ceiling": Ceiling,
        "retry": Retry,
        "analysis": Analysis,
        "budget": Budget,
        "schema_registry": SchemaRegistry,
    }

    stage: str = setting("", "IOTFLOW_STAGE", text="the stage that `faust -A app.main worker` runs")
    app_prefix: Name = setting("iotflow", "IOTFLOW_APP_PREFIX", text="app ids and consumer groups are PREFIX-STAGE")
    group_ids: dict[str, Name] = {}
    data_dir: Path = setting(Path(".iotflow/data"), "IOTFLOW_DATA_DIR", text="where tables keep their state")
    log_level: LogLevel = setting(
        "INFO", "LOG_LEVEL", "RUST_LOG", text="LEVEL, or LEVEL,MODULE=LEVEL,… as `info,app.transport=debug`"
    )
    web_bind: str = setting("0.0.0.0", "IOTFLOW_WEB_BIND", text="address that health and metrics listen on")  # noqa: S104
    web_port: int | None = setting(
        None, "IOTFLOW_WEB_PORT", text="their port; each stage has its own when unset", ge=1, le=65535
    )
    http_addr: Address | None = setting(
        None, "HTTP_ADDR", text="HOST:PORT of the stage `api`, over IOTFLOW_WEB_BIND and IOTFLOW_WEB_PORT"
    )
    channel_size: int = setting(
        50_000,
        "CHANNEL_SIZE",
        "CHANNEL_CAPACITY",
        text="intake waits at this many in flight; analyze takes at most 10,000",
        unit="records",
        ge=1,
    )
    max_inflight_bytes: Size = setting(
        64 * 2**20,
        "IOTFLOW_MAX_INFLIGHT_BYTES",
        text="intake waits at this much in flight; analyze takes at most 8 MiB",
        unit="bytes",
        ge=64 * 1024,
    )
    chunk_records: int = setting(
        1000, "IOTFLOW_CHUNK_RECORDS", text="a chunk ends at this many", unit="records", ge=1, le=1_000_000
    )
    chunk_bytes: Size = setting(
        256 * 1024, "IOTFLOW_CHUNK_BYTES", text="a chunk ends at this much of values", unit="bytes", ge=1024
    )
    fetch_bytes: Size = setting(
        2**20, "IOTFLOW_FETCH_BYTES", text="most that one fetch takes of a partition", unit="bytes", ge=1024
    )
    rebalance_timeout: float = setting(
        60.0, "IOTFLOW_REBALANCE_TIMEOUT", text="longest that a worker may take to hand over", unit="s", gt=0, le=3600
    )
    session_timeout: float = setting(
        30.0, "IOTFLOW_SESSION_TIMEOUT", text="silence after which a worker counts as dead", unit="s", gt=0, le=1800
    )
    commit_interval: float = setting(
        1.0, "IOTFLOW_COMMIT_INTERVAL", text="time between commits of offsets", unit="s", gt=0, le=3600
    )
    saved_events: Literal["batch", "reading", "off"] = setting(
        "batch", "IOTFLOW_SAVED_EVENTS", text="events of what was stored: one for each batch, or reading, or off"
    )
    books_interval: float = setting(
        60.0,
        "IOTFLOW_BOOKS_INTERVAL",
        "REDIS_FLUSH_INTERVAL_SECONDS",
        text="what was stored is summed up over this time",
        unit="s",
        ge=1,
        le=86_400,
    )
    types: ValueTypes = setting(
        {}, "IOTFLOW_VALUE_TYPES", text="METRIC=TYPE or MEASUREMENT.METRIC=TYPE,…; INT32, INT64, FLOAT or DOUBLE"
    )
    ranges: Ranges = setting(
        {},
        "IOTFLOW_RANGES",
        text="what counts as possible: DIALECT.METRIC=LOW..HIGH,…, as telemetry.temperature=-20..50",
    )
    inputs_file: FilePath | None = setting(
        None, "IOTFLOW_INPUTS", text="YAML file of what each topic and dialect is believed to say (docs/inputs.md)"
    )
    registry_file: FilePath | None = setting(
        None, "IOTFLOW_REGISTRY", text="YAML file of data points; what their topic says wins over it"
    )
    rules: str = setting(
        "fire",
        "IOTFLOW_RULES",
        text="a profile of rules (fire, display, fraction, none) or a YAML file; their topic wins",
    )
    kafka: Kafka = Kafka()
    topics: Topics = Topics()
    ceiling: Ceiling = Ceiling()
    retry: Retry = Retry()
    analysis: Analysis = Analysis()
    budget: Budget = Budget()
    schema_registry: SchemaRegistry = SchemaRegistry()
    sinks: dict[str, SerializeAsAny[SinkSettings]] = {}
    # Behind `sinks`, which its default is made from.
    stores: Stores = Field(
        default_factory=lambda data: tuple(name for name, sink in data["sinks"].items() if sink.DEFAULT),
        validation_alias=AliasChoices("STORES"),
        description="the stores that are used: NAME,NAME",
        json_schema_extra={"default": "every database"},
    )
    notices: list[str] = []
    sources: dict[str, str] = {}
    # Of everything secret that was met, used or not: a password in a URL that something else overrode, for one.
    _secrets: frozenset[str] = PrivateAttr(default=frozenset())
    _inputs: Inputs | None = PrivateAttr(default=None)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        *others: PydanticBaseSettingsSource,
        **named: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """`Settings(…)` itself reads no environment: `load` hands its own source over."""
        del settings_cls, others, named
        return (init_settings,)

    @model_validator(mode="after")
    def _agree(self) -> "Settings":
        flaws = []
        flaws += [
            f"`stores` names {name!r}, which is no store; there are: {', '.join(self.sinks)}"
            for name in self.stores
            if name not in self.sinks
        ]
        if self.stage and self.stage not in self.stages:
            flaws.append(f"`stage` is {self.stage!r}, which is no stage; stages: {', '.join(self.stages)}")
        users: dict[str, str] = {}
        for stage in self.stages:
            other = users.setdefault(self.app_id(stage), stage)
            if other != stage:
                flaws.append(
                    f"`group_ids.{other}` and `group_ids.{stage}` make both stages the consumer group"
                    f" {self.app_id(stage)!r}: they would take each other's partitions"
                )
        if flaws:
            raise ValueError("\n".join(flaws))
        return self

    @property
    def inputs(self) -> Inputs:
        """What decode reads, and what is believed of it."""
        return self._inputs or inputs.parse(None, self.topics.raw, self.ranges)

    @property
    def stages(self) -> list[str]:
        """Every stage there is: the built-in ones and one for each sink."""
        return sorted([*PORTS, *(sink.STAGE for sink in self.sinks.values())])

    @property
    def heartbeat_interval(self) -> float:
        """Seconds between signs of life to the broker."""
        return self.session_timeout / 10

    @property
    def log_levels(self) -> tuple[str, dict[str, str]]:
        """The overall level, and the level of each module that has its own."""
        return parse_levels(self.log_level)

    def app_id(self, stage: str) -> str:
        """The Faust app id of a stage, which is its consumer group too."""
        return self.group_ids.get(stage) or f"{self.app_prefix}-{stage}"

    def bind(self, stage: str) -> str:
        """The address that a stage's web server listens on."""
        if stage == "api" and self.http_addr is not None:
            return self.http_addr.rpartition(":")[0]
        return self.web_bind

    def port(self, stage: str) -> int:
        """The port of a stage's web server; raises `ValueError` for a stage that does not exist."""
        ports = {**PORTS, **{sink.STAGE: sink.PORT for sink in self.sinks.values()}}
        if stage not in ports:
            raise ValueError(f"no stage is called {stage!r}; stages: {', '.join(self.stages)}")
        if stage == "api" and self.http_addr is not None:
            return int(self.http_addr.rpartition(":")[2])
        return self.web_port or ports[stage]

    def remember(self, secrets: Iterable[str], inputs: Inputs) -> None:
        """Take note of secrets that stand in no field, and of what the file of inputs says."""
        self._secrets = frozenset(secrets)
        self._inputs = inputs

    def secrets(self) -> frozenset[str]:
        """Every secret's value, for `app.logs` to strike out; what is a default is known to everybody anyway."""
        parts: list[BaseModel] = [*(getattr(self, name) for name in self.PARTS), *self.sinks.values()]
        fields = [
            (getattr(part, name), field.default) for part in parts for name, field in type(part).model_fields.items()
        ]
        values = {value.get_secret_value() for value, _ in fields if isinstance(value, SecretStr)}
        public = {default.get_secret_value() for _, default in fields if isinstance(default, SecretStr)}
        return (self._secrets | values) - public - {""}

    def public(self) -> dict[str, dict[str, Any]]:
        """Each setting by its dotted path, as `{"value", "source"}`; a secret is `***`, or None when unset."""
        shown: dict[str, dict[str, Any]] = {}
        parts: dict[str, BaseModel] = {"": self}
        parts |= {f"{name}.": getattr(self, name) for name in self.PARTS}
        parts |= {f"sinks.{name}.": sink for name, sink in self.sinks.items()}
        for prefix, part in parts.items():
            for name in type(part).model_fields:
                if part is self and (name in self.PARTS or name in {"sinks", "notices", "sources", "group_ids"}):
                    continue
                value = getattr(part, name)
                if isinstance(value, SecretStr):
                    value = "***"
                elif isinstance(value, Path):
                    value = str(value)
                path = f"{prefix}{name}"
                shown[path] = {"value": value, "source": self.sources.get(path, "default")}
        for stage in self.stages:
            path = f"group_ids.{stage}"
            shown[path] = {"value": self.app_id(stage), "source": self.sources.get(path, "default")}
        return shown
