"""Units: what a value is measured in, as devices write it, and how one is made the other.

The conversions are Pint's (https://pint.readthedocs.io); each pair is asked for once, and is a factor and an offset
from then on. Pint is loaded with the first conversion, not before.
"""

import re
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any, Final

from schemas.payload import quoted

#: What devices write, as Pint calls it; letter case counts where it tells units apart.
_SPELLINGS: Final = {
    "°C": "degC",
    "ºC": "degC",
    "℃": "degC",
    "C": "degC",
    "celsius": "degC",
    "Celsius": "degC",
    "°F": "degF",
    "ºF": "degF",
    "℉": "degF",
    "F": "degF",
    "fahrenheit": "degF",
    "Fahrenheit": "degF",
    "K": "kelvin",
    "°K": "kelvin",
    "%": "percent",
    "%RH": "percent",
    "fraction": "dimensionless",
    "": "dimensionless",
    "°": "degree",
    "µg/m³": "microgram / meter ** 3",
    "Ω": "ohm",
}
_NUMBER: Final = re.compile(r"\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d{1,3})?)\s*([^\d\s][^\d]{0,31}?)?\s*", re.ASCII)
_PLAIN: Final = re.compile(r"[^\W\d_]{1,24}[²³]?(?:/[^\W\d_]{1,24}[²³]?)?")
_DIGITS: Final = 12


@cache
def _registry() -> Any:
    import pint  # noqa: PLC0415  a fifth of a second, and most installations convert nothing

    return pint.UnitRegistry(cache_folder=None)


def converter(said: str, wanted: str) -> Callable[[float], float]:
    """What makes a value in one unit a value in another.

    Raises `ValueError` when one of them is not known, or they do not measure the same.
    """
    found = _converter(said, wanted)
    if found is None:
        raise ValueError(f"{quoted(said)} cannot be converted to {quoted(wanted)}")
    return found


@lru_cache(maxsize=1024)
def _converter(said: str, wanted: str) -> Callable[[float], float] | None:
    if said == wanted:
        return float
    try:
        at_zero, at_one = (float(_quantity(number, said).to(_unit(wanted)).magnitude) for number in (0.0, 1.0))
    except Exception:  # noqa: BLE001  Pint raises errors of many kinds for what is no unit
        return None
    factor = at_one - at_zero

    def convert(value: float) -> float:
        # Twelve digits are more than any sensor has, and hide what binary fractions add.
        return float(f"{value * factor + at_zero:.{_DIGITS}g}")

    return convert


def _quantity(number: float, unit: str) -> Any:
    return _registry().Quantity(number, _unit(unit))


def _unit(text: str) -> Any:
    name = _SPELLINGS.get(text, text)
    # A payload's text goes no further than this: Pint's own grammar has powers of powers.
    if text not in _SPELLINGS and _PLAIN.fullmatch(text) is None:
        raise ValueError(text)
    return _registry().Unit(name)


def split(text: str) -> tuple[float, str] | None:
    """A number and the unit behind it, as in `27.93 °C`; None when the text is not that, the unit `''` without one."""
    found = _NUMBER.fullmatch(text[:64]) if len(text) <= 64 else None  # noqa: PLR2004  no number is longer
    return (float(found[1]), (found[2] or "").strip()) if found else None
