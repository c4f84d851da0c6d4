"""What every configuration of the pure code is made of: strict models, and errors that say where."""

from pydantic import BaseModel, ConfigDict, ValidationError


class Model(BaseModel):
    """A part of a configuration: what it does not know is an error, and so is a number that is none."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def explained(error: ValidationError) -> list[str]:
    """A line for each thing that is wrong: where, and what it must be."""
    lines = []
    for item in error.errors(include_url=False, include_input=False, include_context=False):
        place = ".".join(str(step) for step in item["loc"])
        text = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            text = "is not known here"
        lines.append(f"{place}: {text}" if place else text)
    return lines
