"""Arrays of numbers, and how they are stored: a fraction of the memory of a list, for what is kept of each channel."""

import sys
from array import array
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

if TYPE_CHECKING:
    Integers = array[int]
    Floats = array[float]
else:  # Python 3.11 has no types for what is in an array
    Integers = Floats = array

_Kind = TypeVar("_Kind")


def integers() -> Integers:
    """An empty array of 64 bits each."""
    return array("q")


def floats() -> Floats:
    """An empty array of doubles."""
    return array("d")


def little(numbers: "array[Any]") -> "array[Any]":
    """An array's numbers little-endian, and back."""
    if sys.byteorder == "big":
        numbers = numbers[:]
        numbers.byteswap()
    return numbers


def _pack(found: "array[Any]") -> bytes:
    """What kind of array it is, and its numbers."""
    return found.typecode.encode() + little(found).tobytes()


def _unpack(_: type, packed: Any) -> Any:
    found: array[Any] = array(chr(packed[0]))
    found.frombytes(memoryview(packed)[1:])
    return little(found)


#: Makes msgpack of structures with arrays in them.
encode: Final[Callable[[object], bytes]] = msgspec.msgpack.Encoder(enc_hook=_pack).encode


def decoder(kind: type[_Kind]) -> Callable[[bytes], _Kind]:
    """What reads such structures. Raises `ValueError`."""
    return msgspec.msgpack.Decoder(kind, dec_hook=_unpack).decode
