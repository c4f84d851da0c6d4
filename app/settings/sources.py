"""From an environment to values: names in order of precedence, `_MS`, `_FILE`, the env file, URLs."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

from pydantic.fields import FieldInfo
from pydantic_settings import PydanticBaseSettingsSource

from app.settings.models import Settings
from app.settings.variables import ENV_FILE, MINUTES, Variable

_SCHEMES: Final = frozenset({"postgres", "postgresql"})
_URL_FORM: Final = "postgres://USER:PASSWORD@HOST:PORT/DATABASE with special characters percent-encoded"
# libpq's names for what may stand behind the question mark.
_QUERY: Final[Mapping[str, str]] = {
    "host": "host",
    "port": "port",
    "dbname": "db",
    "user": "user",
    "password": "password",
    "sslmode": "sslmode",
    "sslrootcert": "ssl_ca",
    "sslcert": "ssl_cert",
    "sslkey": "ssl_key",
}


class Found(NamedTuple):
    """A value, the variable it came from, and in which place; `shown` is what may be repeated of it.

    `broken` is one that is set and could not be read, which has been said already.
    """

    value: Any
    name: str
    source: str
    shown: str | None = None
    broken: bool = False


class Url(NamedTuple):
    """A URL taken apart: what it says about each field, as text."""

    name: str
    source: str
    parts: Mapping[str, str]


def read_env_file(path: Path) -> dict[str, str]:
    """The KEY=value lines of a file: `export`, quotes, blank lines and ` # comments` as shells have them.

    Raises `OSError`, or `ValueError` that gives the line's number and nothing of its content.
    """
    found = {}
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        text = line.strip().removeprefix("export ").lstrip()
        if not text or text.startswith("#"):
            continue
        name, equals, value = text.partition("=")
        if not equals or not name.strip().isidentifier():
            raise ValueError(f"line {number} is not KEY=value")
        value = value.strip()
        if value[:1] in {"'", '"'}:
            end = value.find(value[0], 1)
            rest = value[end + 1 :].strip()
            if end < 0 or (rest and not rest.startswith("#")):
                raise ValueError(f"line {number} has a quote that does not end")
            value = value[1:end]
        elif value.startswith("#"):
            value = ""
        else:
            value = value.partition(" #")[0].partition("\t#")[0].rstrip()
        found[name.strip()] = value
    return found


def parse_url(url: str) -> tuple[dict[str, str], list[str]]:
    """A PostgreSQL URL as values by field name, and its parameters that mean nothing here.

    Raises `ValueError` without a word of the URL, which may hold a password.
    """
    try:
        split = urlsplit(url)
    except ValueError:
        raise ValueError(f"is not a URL; must be {_URL_FORM}") from None
    # An '@' or '#' further on is a password that was not percent-encoded: what looks like the rest would show it.
    rest = split.path + split.query
    if split.scheme not in _SCHEMES or "://" not in url or "#" in url or "@" in rest or split.netloc.count("@") > 1:
        raise ValueError(f"is not a PostgreSQL URL; must be {_URL_FORM}")
    login, _, server = split.netloc.rpartition("@")
    user, _, password = login.partition(":")
    if server.startswith("["):
        host, _, port = server[1:].partition("]")
        port = port.removeprefix(":")
    else:
        host, _, port = server.partition(":")
    if port and not port.isdecimal():
        raise ValueError(f"has no number as its port; must be {_URL_FORM}")
    parts = {"host": host, "port": port, "db": split.path.removeprefix("/"), "user": user, "password": password}
    parts = {name: unquote(part) for name, part in parts.items() if part}
    unknown = []
    for name, value in parse_qsl(split.query):
        if name in _QUERY:
            parts[_QUERY[name]] = value
        else:
            unknown.append(name)
    return parts, unknown


class Environment(PydanticBaseSettingsSource):
    """Finds the value of any setting in one mapping; notes problems and secrets on the way, and raises nothing."""

    def __init__(self, env: Mapping[str, str]) -> None:
        super().__init__(Settings)
        self.problems: list[str] = []
        self.notices: list[str] = []
        self.secrets: set[str] = set()
        self.values: dict[str, Any] = {}
        self._real = {name: value for name, value in env.items() if value}
        self._file = ""
        self._env = {**self._read_file(), **self._real}

    def __call__(self) -> dict[str, Any]:
        """What the loader has put together."""
        return self.values

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """One field of `Settings`, as pydantic-settings asks for it."""
        del field
        return self.values.get(field_name), field_name, False

    def _read_file(self) -> dict[str, str]:
        name = self._real.get(ENV_FILE)
        if name is None:
            return {}
        self._file = name
        try:
            return {key: value for key, value in read_env_file(Path(name)).items() if value}
        except OSError as error:
            self.problems.append(f"{ENV_FILE}: {name} cannot be read ({error.strerror}); correct or unset it")
        except UnicodeDecodeError:
            self.problems.append(f"{ENV_FILE}: {name} is not UTF-8 text")
        except ValueError as error:
            self.problems.append(f"{ENV_FILE}: {name}: {error}; only KEY=value lines and # comments are")
        return {}

    def get(self, name: str, *, secret: bool = False, seconds: bool = False) -> Found | None:
        """One name's value, or that of its `_MS` or `_FILE` form; both at once is a problem."""
        minutes = seconds and name.endswith(MINUTES)
        millis = [f"{name}_MS"] if seconds and not minutes else []
        forms = [name, *millis, *([f"{name}_FILE"] if secret else [])]
        present = [form for form in forms if form in self._real] or [form for form in forms if form in self._env]
        if not present:
            return None
        form = present[0]
        source = form if form in self._real else f"{form} in {self._file}"
        if len(present) > 1:
            self.problem(f"{' and '.join(present)} are both set; keep one of them")
            return Found(None, form, source, broken=True)
        text = self._env[form]
        if form == f"{name}_FILE" and secret:
            return self._from_file(form, text, source)
        if secret:
            self.secrets.add(text)
            return Found(text, form, source)
        if form == name and not minutes:
            return Found(text, form, source, shown=text)
        try:
            return Found(float(text) * 60 if minutes else float(text) / 1000, form, source, shown=text)
        except ValueError:
            self.problem(f"{form} is {text!r}: must be a number of {'minutes' if minutes else 'milliseconds'}")
            return Found(None, form, source, broken=True)

    def _from_file(self, form: str, path: str, source: str) -> Found:
        try:
            secret = Path(path).read_text("utf-8").rstrip("\r\n")
            flaw = "" if secret else "is empty"
        except OSError as error:
            secret, flaw = "", f"cannot be read ({error.strerror})"
        except ValueError:
            secret, flaw = "", "is not UTF-8 text"
        if flaw:
            self.problem(f"{form}: {path} {flaw}; it must be a file that holds nothing but the secret")
            return Found(None, form, source, broken=True)
        self.secrets.add(secret)
        return Found(secret, form, source)

    def find(self, variable: Variable, url: Url | None = None) -> Found | None:
        """A setting's value: the first of its names that is set, then its part of the URL."""
        for name in variable.names:
            found = self.get(name, secret=variable.secret, seconds=variable.unit == "s")
            if found is not None:
                return found
        field = variable.path.rpartition(".")[2]
        if url is not None and field in url.parts:
            return Found(url.parts[field], url.name, url.source)
        return None

    def url(self, names: tuple[str, ...]) -> Url | None:
        """The first of these URLs that is set; never parts of two, one's password is not for the other's host."""
        found = [(name, item) for name in names if (item := self.get(name, secret=True)) is not None]
        if not found:
            return None
        (name, first), *others = found
        for other, item in others:
            if item.value != first.value:
                self.notice(f"{other} is not used: {name} is set")
        if first.broken:
            return None
        try:
            parts, unknown = parse_url(first.value)
        except ValueError as error:
            self.problem(f"{first.name} {error}")
            return None
        if password := parts.get("password"):
            self.secrets.add(password)
        if unknown:
            self.notice(f"{first.name} has parameters that are ignored: {', '.join(sorted(unknown))}")
        return Url(first.name, first.source, parts)

    def note_secrets(self, names: Iterable[str]) -> None:
        """Know the values of these too, though another name may win: nothing may repeat them."""
        self.secrets.update(self._env[name] for name in names if name in self._env)

    def names(self) -> list[str]:
        """Every variable that is set."""
        return sorted(self._env)

    def problem(self, line: str) -> None:
        """Note a thing to correct, once."""
        if line not in self.problems:
            self.problems.append(line)

    def notice(self, line: str) -> None:
        """Note a thing to know, once."""
        if line not in self.notices:
            self.notices.append(line)
