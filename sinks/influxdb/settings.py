"""What can be set about InfluxDB: where it is, which buckets there are, and what goes where."""

from typing import Annotated, Any, ClassVar, Final, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, FilePath, SecretStr, model_validator

from sinks.base import SinkSettings, unpaired
from sinks.influxdb.buckets import Listed, bucket_name, read
from sinks.influxdb.lines import CHANNEL, DEVICE, stored

_HOURS_OF_A_DAY: Final = 24


def _url(value: str) -> str:
    try:
        parts = urlsplit(value)
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and "@" not in parts.netloc
        usable = usable and (parts.port is None or parts.port > 0) and not (parts.query or parts.fragment)
    except ValueError:
        usable = False
    if not usable:
        raise ValueError("must be an http or https URL without a user, password or query in it")
    return value.rstrip("/")


def _tags(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    names = tuple(dict.fromkeys(name.strip() for name in value.split(",") if name.strip()))
    for name in names:
        if name in {DEVICE, CHANNEL, "time"} or stored(name) != name:
            raise ValueError(f"cannot make {name!r} a tag: the name is reserved")
    return names


def _routes(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    routes: dict[str, str] = {}
    for part in filter(None, map(str.strip, value.split(","))):
        measurement, equals, bucket = map(str.strip, part.partition("="))
        if not (measurement and equals and bucket):
            raise ValueError(f"must be MEASUREMENT=BUCKET, several separated by commas; not {part!r}")
        if measurement in routes:
            raise ValueError(f"names {measurement!r} twice")
        routes[measurement] = bucket_name(bucket)
    return routes


class Settings(SinkSettings):
    """Where the server is and what goes there."""

    PREFIX: ClassVar[str] = "INFLUXDB"
    STAGE: ClassVar[str] = "store-influxdb"
    PORT: ClassVar[int] = 6069

    url: Annotated[str, AfterValidator(_url)] = Field("http://localhost:8086", description="address of the server")
    token: SecretStr | None = Field(None, description="API token that may write to the bucket")
    org: str = Field("iotflow", min_length=1, description="organization")
    bucket: Annotated[str, AfterValidator(bucket_name)] = Field(
        "iotflow", description="bucket, or InfluxDB 3's database"
    )
    bucket_by_measurement: Annotated[dict[str, str], BeforeValidator(_routes)] = Field(
        {}, description="measurements with a bucket of their own: MEASUREMENT=BUCKET,…"
    )
    buckets: FilePath | None = Field(
        None, description="JSON or YAML list of more buckets to make: name, description, retention_days, shard_hours"
    )
    version: Literal["2", "3"] = Field("2", description="InfluxDB's major version")
    gzip: bool = Field(False, description="compress what is sent: a fifth of the bytes for a fifth more CPU time")
    tags: Annotated[tuple[str, ...], BeforeValidator(_tags)] = Field(
        (),
        description="reading tags that become InfluxDB tags, and so part of a series: NAME,NAME; "
        "a value sent again with another tag is a second point",
    )
    retention_days: int | None = Field(
        None, ge=0, le=36_500, description="days that points are kept, 0 for ever; not set, a bucket stays as it is"
    )
    shard_hours: int | None = Field(
        None, ge=1, le=876_000, description="hours that a shard spans; not set, InfluxDB chooses by the retention"
    )
    ssl_verify: bool = Field(True, description="check the server's certificate")
    ssl_ca: FilePath | None = Field(None, description="certificates to trust instead of the system's")
    ssl_cert: FilePath | None = Field(None, description="client certificate")
    ssl_key: FilePath | None = Field(None, description="key of the client certificate")
    ssl_key_password: SecretStr | None = Field(None, description="password of that key")

    @model_validator(mode="after")
    def _agree(self) -> "Settings":
        flaws = unpaired(self.ssl_cert, self.ssl_key)
        if (self.ssl_ca or self.ssl_cert) and not self.url.startswith("https:"):
            flaws.append("`ssl_ca` and `ssl_cert` need a `url` that begins with https://")
        if self.ssl_ca and not self.ssl_verify:
            flaws.append("`ssl_ca` is of no use while `ssl_verify` is off: set one of them")
        if self.version == "2" and any("/" in name for name in self.stores):
            flaws.append(
                "`bucket` and `bucket_by_measurement` cannot name one with a slash: InfluxQL could not read it"
            )
        if shards_too_long(self.retention_days, self.shard_hours):
            flaws.append("`shard_hours` is longer than `retention_days`")
        if flaws:
            raise ValueError("\n".join(flaws))
        return self

    def listed(self) -> list[Listed]:
        """The buckets of the file; raises `ValueError` saying what is wrong with it."""
        return [] if self.buckets is None else read(self.buckets)

    def unusable(self) -> list[str]:
        """What is wrong with the files that are named, a line each."""
        try:
            self.listed()
        except ValueError as error:
            return [str(error)]
        return []

    def bucket_of(self, measurement: str) -> str:
        """Where a measurement's readings are."""
        return self.bucket_by_measurement.get(measurement, self.bucket)

    @property
    def stores(self) -> tuple[str, ...]:
        """The buckets that readings go to."""
        return tuple(dict.fromkeys([self.bucket, *self.bucket_by_measurement.values()]))


def shards_too_long(retention_days: int | None, shard_hours: int | None) -> bool:
    """Whether InfluxDB would refuse the two together."""
    return bool(retention_days and shard_hours and shard_hours > retention_days * _HOURS_OF_A_DAY)
