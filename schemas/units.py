"""Units: what a value is measured in, as devices write it, and how one is made the other.

The conversions are Pint's (https://pint.readthedocs.io); each pair is asked for once, and is a factor and an offset
from then on. Pint is loaded with the first conversion, not before.
"""

import math
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
    # Pint takes hertz for radians a second.
    "Hz": "1 / second",
    "kHz": "1 / millisecond",
    "MHz": "1 / microsecond",
    "rpm": "1 / minute",
    "°": "degree",
    "µg/m³": "microgram / meter ** 3",
    "Ω": "ohm",
}
#: What may stand right behind a number, besides signs: other letters there, as in `1st`, are no unit.
_TIGHT: Final = r"[kmMµμ]?(?:VA|V|A|Wh|W|Hz|Pa|m|g|s|l|L)|C|F|K|hPa|bar|ppm|ppb|lux|lx|dBm|dB|rpm"
_NUMBER: Final = re.compile(
    r"\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d{1,3})?)"
    rf"(?:({_TIGHT}|[%°º℃℉‰][^\d]{{0,31}})|\s+([^\d\s][^\d]{{0,31}}))?\s*",
    re.ASCII,
)
_INTEGER: Final = re.compile(r"[-+]?\d+", re.ASCII)
_PLAIN: Final = re.compile(r"[^\W\d_]{1,24}[²³]?(?:/[^\W\d_]{1,24}[²³]?)?")
_DIGITS: Final = 13
#: No unit that is looked up is longer, so none that is remembered is.
_CHARS: Final = 64
_POINTS: Final = (0.0, 5e5, 1e6)


@cache
def _registry() -> Any:
    import pint  # noqa: PLC0415  a fifth of a second, and most installations convert nothing

    return pint.UnitRegistry(cache_folder=None)


def converter(said: str, wanted: str) -> Callable[[float], float]:
    """What makes a value in one unit a value in another.

    Raises `ValueError` when one of them is not known, they do not measure the same, or one counts by its logarithm.
    What it makes raises `OverflowError` for what no double can hold.
    """
    found = _converter(said, wanted) if len(said) <= _CHARS else None
    if found is None:
        raise ValueError(f"{quoted(said)} cannot be converted to {quoted(wanted)}")
    return found


@lru_cache(maxsize=1024)
def _converter(said: str, wanted: str) -> Callable[[float], float] | None:
    if said == wanted:
        return float
    try:
        offset, half, whole = (float(_quantity(number, said).to(_unit(wanted)).magnitude) for number in _POINTS)
    except Exception:  # noqa: BLE001  Pint raises errors of many kinds for what is no unit
        return None
    if not math.isclose((offset + whole) / 2, half, rel_tol=1e-9):
        return None  # logarithmic, as dBm: not a factor and an offset
    # Taken over a wide span, so that the offset's digits take none from the factor's.
    factor = (whole - offset) / _POINTS[2]

    def convert(value: float) -> float:
        # Thirteen digits are more than any sensor has, and hide what binary fractions add.
        converted = float(f"{value * factor + offset:.{_DIGITS}g}")
        if math.isinf(converted):
            raise OverflowError
        return converted

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
    """A number and the unit behind it, as in `27.93 °C`; None when the text is not that, the unit `''` without one.

    Letters right behind a number are one of the usual units: `230V`, but `1st` is no number. An integer of so many
    digits that no double holds it is none either.
    """
    found = _NUMBER.fullmatch(text) if len(text) <= _CHARS else None
    if found is None:
        return None
    number, unit = found[1], found[2] or found[3] or ""
    value = float(number)
    if _INTEGER.fullmatch(number) is not None and int(value) != int(number):
        return None
    return value, unit.strip()
