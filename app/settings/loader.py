"""One load: finds every value, checks every model, and says everything that is wrong in the variables' names."""

import difflib
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ValidationError

from app import yaml
from app.settings import variables
from app.settings.fields import raw_topics
from app.settings.models import Settings
from app.settings.sources import Environment, Found, Url
from app.settings.variables import Sinks, Variable
from schemas import dialects, inputs
from sinks.base import SinkSettings

Model = TypeVar("Model", bound=BaseModel)

INPUTS: Final = "IOTFLOW_INPUTS"
_FIELD: Final = re.compile(r"`([a-z0-9_.-]+)`")
_SHOWN_CHARS: Final = 80
_SHORT_CHARS: Final = 4


class Loader:
    """Reads one environment; `settings` is called once, and `problems` says afterwards why it gave None."""

    def __init__(self, env: Mapping[str, str], sinks: Sinks) -> None:
        self._source = Environment(env)
        self._sinks = sinks
        self._found: dict[str, Found] = {}
        self._read: object = None
        self._variables = {variable.path: variable for variable in variables.every(sinks)}
        for variable in self._variables.values():
            if variable.secret:
                self._source.note_secrets(variable.names)

    @property
    def problems(self) -> list[str]:
        """Each thing to correct, once; without the secrets that strayed into other variables."""
        lines = self._source.problems
        for secret in sorted(self._source.secrets, key=len, reverse=True):
            if len(secret) >= _SHORT_CHARS:  # a shorter one would tear the sentences apart
                lines = [line.replace(secret, "***") for line in lines]
        return lines

    def settings(self) -> Settings | None:
        """The settings, or None when there are problems."""
        values: dict[str, Any] = {"sinks": {}}
        self._read = self._document()
        for name, part in Settings.PARTS.items():
            values[name] = self._part(part, f"{name}.") or part.model_construct()
        for name, cls in self._sinks.items():
            # A sink whose settings are wrong has a stage all the same, so naming that stage is no second mistake.
            values["sinks"][name] = self._part(cls, f"sinks.{name}.") or cls.model_construct()
        values |= self._values(variables.of(Settings), None)
        values["group_ids"] = self._groups()
        self._unused()
        values["notices"] = self._source.notices
        values["sources"] = {path: found.source for path, found in self._found.items() if not found.broken}
        settings = self._check(self._build, "", values)
        if settings is None or self._source.problems:
            return None
        try:
            found = inputs.parse(self._read, settings.topics.raw, settings.ranges)
        except inputs.InputsError as error:
            name = INPUTS if settings.inputs_file else self._name("topics.raw")
            for problem in error.problems:
                self._source.problem(f"{name}: {problem}")
            return None
        settings.remember(self._source.secrets, found)
        return settings

    def _document(self) -> object:
        """What the file of inputs says."""
        found = self._source.get(INPUTS)
        if found is None:
            return None
        try:
            return yaml.read(Path(found.value))
        except (FileNotFoundError, IsADirectoryError):
            pass  # said of the setting itself
        except OSError as error:
            self._source.problem(f"{found.source}: {found.value} cannot be read ({error.strerror})")
        except ValueError as error:
            self._source.problem(f"{found.source}: {found.value}: {error}")
        return None

    def _raw_topics(self, found: Found | None) -> Found | None:
        """The topics of the file of inputs, besides the environment's, or instead of the default."""
        named = self._read.get("topics") if isinstance(self._read, dict) else None
        if not isinstance(named, dict) or not named:
            return found
        # What is wrong with its other parts is said with them.
        said = {str(name): own.get("dialect") if isinstance(own, dict) else "" for name, own in named.items()}
        said = {name: dialect if dialect in {*dialects.load(), dialects.AUTO} else "" for name, dialect in said.items()}
        if found is None:
            return Found(said, INPUTS, INPUTS)
        try:
            return Found({**said, **raw_topics(found.value)}, found.name, f"{found.source} and {INPUTS}")
        except ValueError:
            return found

    def _build(self, values: dict[str, Any]) -> Settings:
        self._source.values = values
        # A parameter of pydantic-settings that its own checker plug-in knows, and mypy alone does not.
        sources: dict[str, Any] = {"_build_sources": ((self._source,), {})}
        return Settings(**sources)

    def _part(self, model: type[Model], path: str) -> Model | None:
        url = self._source.url(variables.urls(model)) if issubclass(model, SinkSettings) else None
        values = self._values(variables.of(model, path), url)
        return self._check(lambda kept: model.model_validate(kept, by_alias=False, by_name=True), path, values)

    def _values(self, wanted: list[Variable], url: Url | None) -> dict[str, Any]:
        values = {}
        for variable in wanted:
            found = self._source.find(variable, url)
            if variable.path == "topics.raw":
                found = self._raw_topics(found)
            if found is None:
                continue
            self._found[variable.path] = found
            if not found.broken:
                values[variable.path.rpartition(".")[2]] = found.value
        return values

    def _groups(self) -> dict[str, str]:
        groups = {}
        for stage, name in variables.groups(self._sinks).items():
            found = self._source.get(name)
            if found is not None:
                self._found[f"group_ids.{stage}"] = found
                groups[stage] = found.value
        return groups

    def _check(self, build: Callable[[dict[str, Any]], Model], path: str, values: dict[str, Any]) -> Model | None:
        # Pydantic looks at fields together only when each is right by itself. What is wrong is taken out and the rest
        # looked at again, so that all of it is said at once; what then only follows from the first is left unsaid.
        wrong = {name for name, found in self._found.items() if found.broken}
        while True:
            try:
                return build(dict(values))
            except ValidationError as error:
                errors = error.errors(include_input=False, include_url=False, include_context=False)
            fields = {str(item["loc"][0]) for item in errors if item["loc"]}
            for item in errors:
                loc = [str(step) for step in item["loc"]]
                if item["type"] == "default_factory_not_called":
                    continue  # its default would come from a field that is wrong, which is said
                if loc:
                    self._flaw(path + self._path_of(loc), item["type"], item["msg"])
                else:
                    for line in item["msg"].removeprefix("Value error, ").splitlines():
                        self._conflict(line, path, wrong)
            if not fields & values.keys():
                return None
            wrong |= {path + field for field in fields}
            values = {name: value for name, value in values.items() if name not in fields}

    def _path_of(self, loc: list[str]) -> str:
        return ".".join(loc[:2]) if loc[0] == "group_ids" else loc[0]

    def _flaw(self, path: str, kind: str, message: str) -> None:
        found, variable = self._found.get(path), self._variables.get(path)
        name = self._name(path)
        if kind == "value_error":
            text = message.removeprefix("Value error, ")
        elif variable is not None:
            text = f"must be {variable.allowed()}"
        else:
            text = message
        if found is None:
            self._source.problem(f"{name} is not set: {text}")
        elif found.value.__class__ is str and found.value.startswith("tcp://"):
            # A classic: a Service called `timescale` makes Kubernetes set TIMESCALE_PORT in every pod.
            self._source.problem(f"{name}{self._shown(found)}: {text}; if Kubernetes set it: enableServiceLinks: false")
        else:
            self._source.problem(f"{name}{self._shown(found)}: {text}")

    def _shown(self, found: Found) -> str:
        text = found.shown
        if text is None or any(secret in text for secret in self._source.secrets):
            return ""
        # Whatever looks like a log-in is not repeated, whichever variable it strayed into.
        return "" if "@" in text or len(text) > _SHOWN_CHARS else f" is {text!r}"

    def _conflict(self, line: str, path: str, wrong: Collection[str]) -> None:
        if not any(path + field in wrong for field in _FIELD.findall(line)):
            self._source.problem(_FIELD.sub(lambda match: self._name(path + match[1]), line))

    def _name(self, path: str) -> str:
        if path in self._found:
            source, variable = self._found[path].source, self._variables.get(path)
            of_url = variable is not None and self._found[path].name not in variable.forms()
            return f"{source} ({path.rpartition('.')[2]})" if of_url else source
        if path in self._variables:
            return self._variables[path].names[0]
        stage = path.removeprefix("group_ids.")
        return variables.groups(self._sinks).get(stage, path)

    def _unused(self) -> None:
        """Say which variables mean nothing here, and which were probably meant."""
        known = set(self._known())
        prefixes = ("IOTFLOW_", *(f"{cls.PREFIX}_" for cls in self._sinks.values()))
        for name in self._source.names():
            if name in variables.IGNORED:
                self._source.notice(f"{name} is ignored: {variables.IGNORED[name]}")
            elif name.startswith(prefixes) and name not in known:
                close = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.75)
                self._source.notice(f"{name} is not known" + (f"; did you mean {close[0]}?" if close else ""))

    def _known(self) -> Iterator[str]:
        yield variables.ENV_FILE
        yield from variables.groups(self._sinks).values()
        for variable in self._variables.values():
            yield from variable.forms()
