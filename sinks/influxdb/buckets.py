"""The file that INFLUXDB_BUCKETS names: a list of buckets to make, as JSON or YAML."""

from pathlib import Path
from typing import Annotated

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError


def bucket_name(value: str) -> str:
    """A name that InfluxDB takes for a bucket; raises `ValueError` saying what is wrong with another."""
    if not value.strip() or value.startswith("_") or '"' in value or not value.isprintable():
        raise ValueError(f"{value!r} cannot be a bucket's name: no leading underscore, quotation mark or line break")
    return value


class Listed(BaseModel):
    """A bucket of the file; None leaves a part of it to whoever made it."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    name: Annotated[str, AfterValidator(bucket_name)]
    description: str = ""
    retention_days: int | None = Field(None, ge=0, le=36_500)
    shard_hours: int | None = Field(None, ge=1, le=876_000)


def read(path: Path) -> list[Listed]:
    """The buckets that it lists; raises `ValueError` saying what is wrong with it."""
    what = f"INFLUXDB_BUCKETS: {path}"
    try:
        found = TypeAdapter(list[Listed]).validate_python(yaml.safe_load(path.read_text("utf-8")))
    except ValidationError as error:
        flaw = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(str(part) for part in flaw["loc"]) or "the file"
        raise ValueError(f"{what} must be a list of buckets with `name`: {place}: {flaw['msg']}") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{what} cannot be read as JSON or YAML: {' '.join(str(error).split())}") from error
    names = [each.name for each in found]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"{what} names bucket {min(twice)!r} twice")
    return found
