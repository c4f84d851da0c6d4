"""The variables behind the models: their names in order, what they allow, and the sinks that add to them."""

import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from functools import cache
from types import ModuleType
from typing import Any, Final, Literal, NamedTuple, get_args, get_origin

from pydantic import AliasChoices, BaseModel, SecretStr
from pydantic.fields import FieldInfo
from pydantic.types import PathType

import sinks
from app.settings.models import PORTS, Settings
from sinks.base import SinkSettings

Sinks = Mapping[str, type[SinkSettings]]

GROUP: Final = "IOTFLOW_GROUP_"
#: Ends the name of a duration that is in minutes.
MINUTES: Final = "_MINUTES"
ENV_FILE: Final = "IOTFLOW_ENV_FILE"
#: The documents' names for what every sink has; the names of a sink's own fields are declared with the fields, and
#: those of a field that it has anew are instead of these.
GENERAL: Final[Mapping[str, tuple[str, ...]]] = {"batch_size": ("BATCH_SIZE",), "batch_timeout": ("BATCH_TIMEOUT",)}
#: Accepted, so the documents' commands run as they stand, but nothing here needs them.
IGNORED: Final[Mapping[str, str]] = {
    "REDIS_URL": "iotflow keeps its books in Kafka and needs no Redis",
}


class SettingsError(ValueError):
    """The settings cannot be used; `problems` has a line for each thing to correct."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class Variable(NamedTuple):
    """One setting: `names` in order of precedence; each also as `…_MS` if in seconds, as `…_FILE` if secret."""

    path: str
    names: tuple[str, ...]
    field: FieldInfo

    @property
    def secret(self) -> bool:
        """Whether its value may be shown to nobody."""
        return SecretStr in _types(self.field.annotation)

    @property
    def unit(self) -> str:
        """`s`, `bytes`, …, or empty."""
        extra = self.field.json_schema_extra
        unit = extra.get("unit") if isinstance(extra, dict) else None
        if (
            unit is None
            and self.names[0].endswith(("_TIMEOUT", "_INTERVAL"))
            and float in _types(self.field.annotation)
        ):
            return "s"
        return str(unit or "")

    def forms(self) -> Iterator[str]:
        """Every name it goes by."""
        for name in self.names:
            yield name
            if self.unit == "s" and not name.endswith(MINUTES):
                yield f"{name}_MS"
            if self.secret:
                yield f"{name}_FILE"

    def allowed(self) -> str:
        """What a value must be, in words that follow `must be`."""
        types = _types(self.field.annotation)
        if choices := [str(choice) for kind in types if get_origin(kind) is Literal for choice in get_args(kind)]:
            return f"one of {', '.join(choices)}"
        if paths := [kind.path_type for kind in types if isinstance(kind, PathType)]:
            return f"the path of a {'directory' if paths[0] == 'dir' else paths[0]} that exists"
        number = "a whole number" if int in types else "a number" if float in types else "text"
        words = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
        bounds = [
            f"{word} {getattr(item, bound)}"
            for item in self.field.metadata
            for bound, word in words.items()
            if getattr(item, bound, None) is not None
        ]
        unit = {"s": "of seconds", "bytes": "of bytes"}.get(self.unit, "")
        return " ".join(filter(None, [number, unit, " and ".join(bounds)]))


def _types(annotation: Any) -> list[Any]:
    if get_origin(annotation) is None or get_origin(annotation) is Literal:
        return [annotation]
    # The constraints of an Annotated come along: FilePath is told from Path by its own.
    return [kind for argument in get_args(annotation) for kind in _types(argument)]


@cache
def discover(package: ModuleType = sinks) -> Sinks:
    """Every module of the package with a `Settings` is a sink, by its module's name.

    Raises `SettingsError` naming a module that cannot be imported.
    """
    found = {}
    for info in pkgutil.iter_modules(package.__path__):
        module = f"{package.__name__}.{info.name}"
        try:
            cls = getattr(importlib.import_module(module), "Settings", None)
        except Exception as error:
            raise SettingsError([f"{module} cannot be imported: {error!r}; correct or remove that file"]) from error
        if isinstance(cls, type) and issubclass(cls, SinkSettings):
            found[info.name] = cls
    return found


def of(model: type[BaseModel], path: str = "") -> list[Variable]:
    """The variables of one model; `path` is where it stands in the settings, as `kafka.`."""
    prefix = getattr(model, "PREFIX", None)
    found = []
    for name, field in model.model_fields.items():
        names = [f"{prefix}_{name.upper()}"] if prefix else []
        alias = field.validation_alias
        choices = alias.choices if isinstance(alias, AliasChoices) else [alias]
        own = [choice for choice in choices if isinstance(choice, str)]
        names += own or (GENERAL.get(name, ()) if prefix else ())
        if names:
            found.append(Variable(f"{path}{name}", tuple(dict.fromkeys(names)), field))
    return found


def every(found: Sinks) -> list[Variable]:
    """All variables, in the order of the models, the sinks' last."""
    variables = of(Settings)
    for name, part in Settings.PARTS.items():
        variables += of(part, f"{name}.")
    for name, cls in found.items():
        variables += of(cls, f"sinks.{name}.")
    return variables


def groups(found: Sinks) -> dict[str, str]:
    """The variable that overrides each stage's app id, by stage."""
    stages = sorted([*PORTS, *(cls.STAGE for cls in found.values())])
    return {stage: GROUP + stage.upper().replace("-", "_") for stage in stages}


def urls(cls: type[SinkSettings]) -> tuple[str, ...]:
    """The variables that hold a sink's whole address as a URL, the first that is set being used."""
    return tuple(getattr(cls, "URLS", ()))
