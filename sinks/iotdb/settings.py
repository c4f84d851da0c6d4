"""The settings of the sink for Apache IoTDB, and how the server is reached with them."""

import re
import ssl
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Final

from pydantic import AliasChoices, BeforeValidator, ConfigDict, Field, FilePath, SecretStr, model_validator

from sinks.base import SinkSettings, unpaired
from sinks.iotdb.mapping import nodes_of, quoted
from sinks.iotdb.rpc import Address

#: `PATH=MS`, where a node in back-ticks may hold anything.
_PLACE: Final = r"(?:`(?:[^`]|``)+`|[^`,=.*\s]+)"
_TTL: Final = re.compile(rf"\s*({_PLACE}(?:\.{_PLACE})*)\s*=\s*(\d+)\s*(?:,|$)")
#: What the server takes as a password.
_PASSWORD: Final = re.compile(r"[A-Za-z0-9!@#$%^*()_+=-]{4,32}")


def _ttls(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    found: dict[str, int] = {}
    at = 0
    while value[at:].strip():
        entry = _TTL.match(value, at)
        if entry is None:
            raise ValueError(f"{value[at:]!r} does not begin with PATH=MS; odd nodes stand in back-ticks")
        path = quoted(f"root.{entry[1]}").removeprefix("root.")
        if path in found:
            raise ValueError(f"{entry[1]!r} is there twice")
        found[path] = int(entry[2])
        at = entry.end()
    return found


class Settings(SinkSettings):
    """Where the server is, and what the schema is to be."""

    model_config = ConfigDict(validate_by_name=True)

    PREFIX: ClassVar[str] = "IOTDB"
    STAGE: ClassVar[str] = "store-iotdb"
    PORT: ClassVar[int] = 6068

    host: str = Field("localhost", description="host name or address of a DataNode")
    port: int = Field(6667, ge=1, le=65535, description="its RPC port")
    user: str = Field("root", validation_alias=AliasChoices("IOTDB_USERNAME"), description="user to log in as")
    password: SecretStr = Field(SecretStr("root"), description="its password")
    database: str = Field(
        "root.iotflow", pattern=r"^root(\.[A-Za-z_][A-Za-z0-9_]*)+$", description="database that all devices are in"
    )
    default_measurement: str = Field("telemetry", min_length=1, description="measurement whose name is not in the path")
    tablet_rows: int = Field(
        500,
        ge=2,
        description="rows of a device in a batch from which on they go as a tablet; 5 where wal_mode is ASYNC",
    )
    ttl_ms: int = Field(
        0, ge=0, lt=2**63, description="milliseconds that rows are kept, by their own time; 0: for ever"
    )
    ttls: Annotated[dict[str, int], BeforeValidator(_ttls)] = Field(
        {}, description="other TTLs as PATH=MS,…: a path below the database, with all that is below it"
    )
    app_user: str = Field(
        "",
        pattern=r"^([A-Za-z_][A-Za-z0-9_]{3,31})?$",
        description="user that `iotflow schema apply`, run as an administrator, makes for the workers",
    )
    app_password: SecretStr | None = Field(None, description="password that this user is made with")
    rpc_compression: bool = Field(
        False, description="compact protocol: as the server's dn_rpc_thrift_compression_enable is"
    )
    ssl: bool = Field(False, description="TLS, with the server's certificate and name verified")
    ssl_ca: FilePath | None = Field(None, description="certificates to trust instead of the system's")
    ssl_cert: FilePath | None = Field(None, description="client certificate")
    ssl_key: FilePath | None = Field(None, description="key of the client certificate")
    ssl_key_password: SecretStr | None = Field(None, description="password of that key")

    @model_validator(mode="after")
    def _agree(self) -> "Settings":
        flaws = unpaired(self.ssl_cert, self.ssl_key)
        if not self.ssl and (self.ssl_ca or self.ssl_cert):
            flaws.append("`ssl_ca` and `ssl_cert` need `ssl`: true")
        if self.app_password and not _PASSWORD.fullmatch(self.app_password.get_secret_value()):
            flaws.append("`app_password` must be 4 to 32 letters, digits or !@#$%^*()_+-=, as IoTDB takes no others")
        if flaws:
            raise ValueError("\n".join(flaws))
        return self

    def wanted_ttls(self) -> Mapping[tuple[str, ...], int | None]:
        """The TTL in milliseconds, None for ever, that each node of the tree is to have with all that is below it."""
        found = {tuple(nodes_of(self.database)): self.ttl_ms or None}
        for path, ttl_ms in self.ttls.items():
            found[tuple(nodes_of(f"{self.database}.{path}"))] = ttl_ms or None
        return found


class CertificateFilesError(Exception):
    """A file with a certificate or a key cannot be used."""


def _tls(settings: Settings) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=settings.ssl_ca)
        if settings.ssl_cert is not None:
            # Without a password OpenSSL would ask for one at the terminal.
            password = settings.ssl_key_password.get_secret_value() if settings.ssl_key_password else ""
            context.load_cert_chain(settings.ssl_cert, settings.ssl_key, password)
    except OSError as error:  # ssl.SSLError is one
        what = "IOTDB_SSL_CA, IOTDB_SSL_CERT and IOTDB_SSL_KEY"
        raise CertificateFilesError(f"{what} do not work ({error})") from error
    return context


def address(settings: Settings) -> Address:
    """How to reach the server. Raises `CertificateFilesError`."""
    context = _tls(settings) if settings.ssl else None
    return Address(
        host=settings.host,
        port=settings.port,
        user=settings.user,
        password=settings.password.get_secret_value(),
        timeout_s=settings.write_timeout,
        tls=context,
        compact=settings.rpc_compression,
    )
