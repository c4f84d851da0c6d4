"""Bodies: payloads in another encoding than their dialect's, made what it reads.

CBOR and MessagePack hold what JSON holds, so their payloads become JSON and every JSON dialect reads them. What they
hold besides is said here: times become ISO 8601 text in UTC, to the microsecond, finer cut off; byte strings become
base64 text (the standard alphabet, with padding), as Protobuf's JSON has them. The rest refuses its payload: keys that
are no text, NaN and Infinity, CBOR's other tags, undefined and simple values, MessagePack's other extensions.
References to what stands elsewhere in a payload are refused too: a short payload could become an endless text.
"""

import io
from base64 import b64encode
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from math import isfinite
from typing import Any, Final, NoReturn

import cbor2
import msgspec

from schemas.confluent import Schemas
from schemas.payload import DEPTH, quoted
from schemas.reading import RejectedError
from schemas.record import Headers

#: The body that a `content-type` header names; any other header says nothing about it.
CONTENT_TYPES: Final[Mapping[bytes, str]] = {
    b"application/json": "json",
    b"application/cbor": "cbor",
    b"application/msgpack": "msgpack",
    b"application/x-msgpack": "msgpack",
    b"application/vnd.msgpack": "msgpack",
}
HEADER: Final = "content-type"
#: The body of payloads whose schemas are in a schema registry.
CONFLUENT: Final = "confluent"

_PLACE: Final = "the payload"
#: Python converts no integer of more digits to text or back, and msgspec counts the sign as one.
_TOO_LARGE: Final = 10**4299
#: Says of what follows that it is CBOR.
_SELF_DESCRIBED: Final = b"\xd9\xd9\xf7"
#: What `cbor2` would make objects of, or follow, but times and big integers.
_REFUSED_TAGS: Final = (4, 5, 25, 28, 29, 30, 35, 36, 37, 52, 54, 100, 256, 258, 260, 261, 1004, 43000, 55799)
#: Deeper than what is accepted, so that most of what is too deep is told by the walk, and far from any stack's end.
_CBOR_DEPTH: Final = 4 * DEPTH


def named(headers: Headers, body: str) -> str:
    """The body that a `content-type` header names, else `body`, the topic's own.

    `application/json` does not say that nothing frames it: a topic that is `confluent` stays so.
    """
    for name, value in headers:
        if value is not None and name.lower() == HEADER:
            said = CONTENT_TYPES.get(value.partition(b";")[0].strip().lower(), body)
            return CONFLUENT if (said, body) == ("json", CONFLUENT) else said
    return body


def plain(payload: bytes, body: str, schemas: Schemas | None = None) -> bytes:
    """The payload as its dialect reads it. Raises `RejectedError`."""
    if body in {"", "json"}:
        return payload
    if body == CONFLUENT:
        if schemas is None:
            raise RejectedError("unknown_schema", "no schema registry is configured; set SCHEMA_REGISTRY_URL")
        return schemas.as_json(payload)
    return as_json(body, payload)


def as_json(body: str, payload: bytes) -> bytes:
    """A CBOR or MessagePack payload as JSON.

    Raises `RejectedError`: `undecodable` (not of that encoding, or more than one item), `too_large` (too deep, or an
    integer of more than 4299 digits), `not_finite`, `bad_timestamp`, or `bad_type` for what else JSON cannot hold.
    """
    return msgspec.json.encode(_cbor(payload) if body == "cbor" else _msgpack(payload))


# -- CBOR --------------------------------------------------------------------------------------------------------------


def _refused_tag(tag: int) -> Any:
    def refuse(value: object, immutable: bool) -> NoReturn:  # noqa: ARG001, FBT001  as cbor2 calls it
        raise RejectedError("bad_type", f"CBOR's tag {tag} has no form in JSON")

    return refuse


def _other_tag(tag: cbor2.CBORTag, immutable: bool) -> NoReturn:  # noqa: ARG001, FBT001  as cbor2 calls it
    raise RejectedError("bad_type", f"CBOR's tag {tag.tag} is not known here")


_HOOKS: Final = {tag: _refused_tag(tag) for tag in _REFUSED_TAGS}


def _cbor(payload: bytes) -> object:
    stream = io.BytesIO(payload.removeprefix(_SELF_DESCRIBED))
    try:
        # Only keys whose hashes nobody can foresee: others could be chosen to collide, each with all before it.
        found = cbor2.CBORDecoder(
            stream, semantic_decoders=_HOOKS, tag_hook=_other_tag, max_depth=_CBOR_DEPTH, strict_hashable_types=True
        ).decode()
    except Exception as error:
        raise _explained(error) from error
    if stream.read(1):
        raise RejectedError("undecodable", "more bytes follow CBOR's only item")
    return _walked(found, _PLACE, DEPTH)


def _explained(error: BaseException) -> RejectedError:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, RejectedError):
            return cause
        cause = cause.__cause__
    text = str(error)
    if "nesting depth" in text or isinstance(error, RecursionError):
        return RejectedError("too_large", f"the payload is nested deeper than {DEPTH}")
    if "map key must be" in text:
        return RejectedError("bad_type", "a map has a key that is not text")
    return RejectedError("undecodable", f"the payload is not CBOR: {text[:120]}")


def _walked(value: object, place: str, depth: int) -> object:
    """A value as JSON can hold it, changed in place where that can be; `place` is what an error calls it."""
    kind = value.__class__
    if kind is str or kind is bool or value is None:
        return value
    if kind is float:
        if isfinite(value):  # type: ignore[arg-type]
            return value
        raise RejectedError("not_finite", f"{_named(place)} is {value}, not a number that JSON has")
    if kind is int:
        if -_TOO_LARGE < value < _TOO_LARGE:  # type: ignore[operator]
            return value
        raise RejectedError("too_large", f"{_named(place)} is an integer of more than 4299 digits")
    if isinstance(value, dict | list):
        _walk(value, place, depth)
        return value
    if isinstance(value, bytes):
        return b64encode(value).decode()
    if isinstance(value, datetime):
        return _instant(value, place)
    raise RejectedError("bad_type", f"{_named(place)} is {_what(value)}, which JSON does not have")


def _walk(held: dict[Any, Any] | list[Any], place: str, depth: int) -> None:
    if depth == 0:
        raise RejectedError("too_large", f"the payload is nested deeper than {DEPTH}")
    # A payload of empty arrays is a hundred times as large in memory: no second copy of it is made.
    if isinstance(held, list):
        for index, item in enumerate(held):
            value = _walked(item, place, depth - 1)
            if value is not item:
                held[index] = value
        return
    for key, item in held.items():
        if key.__class__ is not str:
            raise RejectedError("bad_type", f"a key in {_named(place)} is not text")
        value = _walked(item, key, depth - 1)
        if value is not item:
            held[key] = value


def _instant(value: datetime, place: str) -> str:
    try:
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    except (ValueError, OverflowError) as error:
        raise RejectedError("bad_timestamp", f"{_named(place)} is outside the calendar") from error


def _what(value: object) -> str:
    return "undefined" if value is cbor2.undefined else f"a {type(value).__name__}"


def _named(place: str) -> str:
    return place if place is _PLACE else quoted(place)


# -- MessagePack -------------------------------------------------------------------------------------------------------

_Scalar = str | bool | int | float | None
_any: Final = msgspec.msgpack.Decoder().decode
_extension: Final = msgspec.msgpack.Decoder(msgspec.msgpack.Ext).decode
# Maps with typed keys only: keys that are arrays of chosen numbers would collide, each with all before it.
_flat_map: Final = msgspec.msgpack.Decoder(dict[str, _Scalar]).decode
_map: Final = msgspec.msgpack.Decoder(dict[str, msgspec.Raw]).decode
_flat_array: Final = msgspec.msgpack.Decoder(list[_Scalar]).decode
_array: Final = msgspec.msgpack.Decoder(list[msgspec.Raw]).decode

_MAPS: Final = frozenset(bytes([head]) for head in (*range(0x80, 0x90), 0xDE, 0xDF))
_ARRAYS: Final = frozenset(bytes([head]) for head in (*range(0x90, 0xA0), 0xDC, 0xDD))
_EXTENSIONS: Final = frozenset(bytes([head]) for head in (*range(0xC7, 0xCA), *range(0xD4, 0xD9)))

_TIMESTAMP: Final = -1
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_NANOS: Final = 1_000_000_000


def _msgpack(payload: bytes) -> object:
    try:
        return _unpacked(payload, _PLACE, DEPTH)
    except RejectedError:
        raise
    except RecursionError as error:
        raise RejectedError("too_large", f"the payload is nested deeper than {DEPTH}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RejectedError("undecodable", f"the payload is not MessagePack: {str(error)[:120]}") from error


def _unpacked(data: bytes | msgspec.Raw, place: str, depth: int) -> object:
    """The value in `data`, one whole item, as JSON can hold it."""
    head = bytes(memoryview(data)[:1])
    if head in _MAPS or head in _ARRAYS:
        if depth == 0:
            raise RejectedError("too_large", f"the payload is nested deeper than {DEPTH}")
        flat, nested = (_flat_map, _unpacked_map) if head in _MAPS else (_flat_array, _unpacked_array)
        try:
            found = flat(data)
        except msgspec.ValidationError:
            return nested(data, place, depth)  # something in it is no scalar
        _walk(found, place, depth)
        return found
    if head in _EXTENSIONS:
        return _extended(_extension(data), place)
    return _walked(_any(data), place, 0)


def _extended(found: msgspec.msgpack.Ext, place: str) -> str:
    """The timestamp in an extension; read here because msgspec rounds its nanoseconds, even into the next second."""
    if found.code != _TIMESTAMP:
        raise RejectedError("bad_type", f"{_named(place)} is MessagePack's extension {found.code}, not known here")
    data = bytes(found.data)
    match len(data):
        case 4:
            seconds, nanos = int.from_bytes(data, "big"), 0
        case 8:
            nanos, seconds = divmod(int.from_bytes(data, "big"), 1 << 34)
        case 12:
            seconds, nanos = int.from_bytes(data[4:], "big", signed=True), int.from_bytes(data[:4], "big")
        case size:
            raise RejectedError("bad_timestamp", f"{_named(place)} is a timestamp of {size} bytes, not of 4, 8 or 12")
    if nanos >= _NANOS:
        raise RejectedError("bad_timestamp", f"{_named(place)} has {nanos} ns, which is no part of a second")
    try:
        return _instant(_EPOCH + timedelta(seconds=seconds, microseconds=nanos // 1000), place)
    except OverflowError as error:
        raise RejectedError("bad_timestamp", f"{_named(place)} is outside the calendar") from error


def _unpacked_array(data: bytes | msgspec.Raw, place: str, depth: int) -> object:
    return [_unpacked(item, place, depth - 1) for item in _array(data)]


def _unpacked_map(data: bytes | msgspec.Raw, place: str, depth: int) -> object:
    try:
        parts = _map(data)
    except msgspec.ValidationError as error:
        raise RejectedError("bad_type", f"a key in {_named(place)} is not text") from error
    return {key: _unpacked(part, key, depth - 1) for key, part in parts.items()}
