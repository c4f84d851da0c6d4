"""One session with an Apache IoTDB server: the driver's generated RPC code over asyncio streams.

The driver's own `Session` is not used. It blocks, connects and tries again by itself, joins the server's status codes
into one text, and loads pandas (62 MB, half a second). This can be cancelled at any await.
"""

import asyncio
import re
import ssl
import struct
from collections.abc import Iterable, Iterator
from functools import cache
from types import SimpleNamespace
from typing import Any, Final

from msgspec import Struct

#: The numbers of the server's types, and how `struct` calls all but the last.
BOOLEAN, INT32, INT64, FLOAT, DOUBLE, TEXT = range(6)
TYPES: Final = ("BOOLEAN", "INT32", "INT64", "FLOAT", "DOUBLE", "TEXT")
FORMAT: Final = "?iqfd"
LENGTH: Final = struct.Struct(">i")

NO_DATABASE: Final = 500
NO_PERMISSION: Final = 803
TOO_OLD: Final = 607
_NOT_LOGGED_IN: Final = 802
_SUCCESS: Final = frozenset({200, 400})
_MANY: Final = 302
_FAILED: Final = 301
#: The driver's number for the third version of the protocol, the one of every IoTDB since 0.10.
_PROTOCOL: Final = 2
_CONNECT_S: Final = 10.0
#: More rows than any answer has: it comes in one piece, and the server keeps nothing for a next one.
_WHOLE: Final = 2**31 - 1
#: How the status of another node is told: it is the message.
_INNER: Final = re.compile(r"(?:TSStatus\(code:(\d+), message:)+")


class Address(Struct, frozen=True):
    """Where a server is, who logs in, and how long an answer may take."""

    host: str
    port: int
    user: str
    password: str
    timeout_s: float
    tls: ssl.SSLContext | None = None
    compact: bool = False


class StatusError(Exception):
    """The server's answer is not success: the status codes of what failed, and what it says."""

    def __init__(self, codes: Iterable[int], message: str) -> None:
        super().__init__(message)
        self.codes = frozenset(codes)


def _refusal(status: Any) -> StatusError:
    failed = [part for part in status.subStatus or () if part.code not in _SUCCESS] or [status]
    said = [(part.code, part.message or "") for part in failed]
    return StatusError((_cause(*part) for part in said), "; ".join(f"{code}: {message}" for code, message in said))


def _cause(code: int, message: str) -> int:
    """The innermost code: a 507 for a new series may hide the 600 of a read-only system, a 301 a missing privilege.

    Further on in the message are the data's own words, which must not decide anything.
    """
    inner = _INNER.match(message)
    if inner:
        return int(inner[1])
    return NO_PERMISSION if code == _FAILED and "please add privilege" in message else code


@cache
def driver() -> SimpleNamespace:
    """The driver's RPC code. Every worker imports this module; only who talks to a server pays for loading that."""
    from iotdb.thrift.rpc import IClientRPCService, ttypes  # noqa: PLC0415
    from thrift.protocol import TBinaryProtocol, TCompactProtocol  # noqa: PLC0415
    from thrift.transport import TTransport  # noqa: PLC0415

    return SimpleNamespace(
        client=IClientRPCService.Client,
        types=ttypes,
        buffer=TTransport.TMemoryBuffer,
        binary=TBinaryProtocol.TBinaryProtocolAccelerated,
        compact=TCompactProtocol.TCompactProtocolAccelerated,
    )


class Link:
    """A session: made when it is needed, cut by whatever leaves an answer unread, then made anew."""

    def __init__(self, address: Address) -> None:
        self.address = address
        #: How the server counts time (ms, us, ns); '' before the first session.
        self.precision = ""
        #: How many sessions there have been.
        self.sessions = 0
        self._session = self._statement = 0
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._lock = asyncio.Lock()

    def close(self) -> None:
        """Cut the connection at once, with what is on its way."""
        streams, self._streams = self._streams, None
        if streams is not None:
            streams[1].transport.abort()

    async def connect(self) -> None:
        """Make the session if there is none."""
        async with self._lock:
            await self._connect()

    async def call(self, name: str, request: Any) -> Any:
        """The answer to a request; raises `StatusError` where it is not success."""
        async with self._lock:
            await self._connect()
            request.sessionId = self._session
            if hasattr(request, "statementId"):
                request.statementId = self._statement
            return await self._ask(name, request)

    async def execute(self, statement: str) -> tuple[list[str], Iterator[tuple[Any, ...]]]:
        """Run a statement: its columns' names, and its rows with the time first (0 where there is none)."""
        request = driver().types.TSExecuteStatementReq(statement=statement, fetchSize=_WHOLE, timeout=0)
        answer = await self.call("executeStatementV2", request)
        names: list[str] = answer.columns or []
        places = answer.columnIndex2TsBlockColumnIndexList or range(len(names))  # equal columns are sent once
        rows = (row for block in answer.queryResult or () for row in decoded(block))
        return names, ((row[0], *(row[place + 1] for place in places)) for row in rows)

    async def _connect(self) -> None:
        if self._streams is not None:
            return
        address = self.address
        async with asyncio.timeout(min(_CONNECT_S, address.timeout_s)):
            self._streams = await asyncio.open_connection(address.host, address.port, ssl=address.tls)
        request = driver().types.TSOpenSessionReq(
            client_protocol=_PROTOCOL,
            zoneId="UTC",
            username=address.user,
            password=address.password,
            configuration={"version": "V_1_0", "sql_dialect": "tree"},
        )
        try:
            opened = await self._ask("openSession", request)
            self._session = opened.sessionId
            self._statement = await self._ask("requestStatementId", self._session)
        except (asyncio.IncompleteReadError, ConnectionResetError) as error:
            raise ConnectionError(
                "the server hung up: are IOTDB_SSL and IOTDB_RPC_COMPRESSION as it has them?"
            ) from error
        except BaseException:
            self.close()
            raise
        self.precision = (opened.configuration or {}).get("timestamp_precision", "ms")
        self.sessions += 1

    async def _ask(self, name: str, request: Any) -> Any:
        """Send one frame and receive one."""
        if self._streams is None:
            raise ConnectionError("not connected")
        reader, writer = self._streams
        protocol = driver().compact if self.address.compact else driver().binary
        sent = driver().buffer()
        getattr(driver().client(protocol(sent)), f"send_{name}")(request)
        try:
            async with asyncio.timeout(self.address.timeout_s):
                writer.writelines((LENGTH.pack(len(sent.getvalue())), sent.getvalue()))
                await writer.drain()
                (size,) = LENGTH.unpack(await reader.readexactly(LENGTH.size))
                received = driver().buffer(await reader.readexactly(size))
        except BaseException:
            self.close()  # the answer, if it comes, would be taken for that of the next request
            raise
        answer = getattr(driver().client(protocol(received)), f"recv_{name}")()
        status = getattr(answer, "status", answer)
        if isinstance(status, int) or status.code in _SUCCESS:
            return answer
        if status.code == _MANY and all(part.code in _SUCCESS for part in status.subStatus or ()):
            return answer
        if status.code == _NOT_LOGGED_IN:
            self.close()
        raise _refusal(status)


def decoded(block: bytes) -> Iterator[tuple[Any, ...]]:
    """The rows of a block of an answer, the time first."""
    (width,) = LENGTH.unpack_from(block)
    (count,) = LENGTH.unpack_from(block, 4 + width)
    kinds = bytes((INT64,)) + block[4 : 4 + width]
    encodings = block[8 + width :]
    at = 8 + width + len(kinds)
    columns = []
    for encoding, kind in zip(encodings, kinds, strict=False):
        column, at = _column(block, at, encoding, kind, count)
        columns.append(column)
    return zip(*columns, strict=True)


_OF_1_BYTE, _OF_4_BYTES, _OF_8_BYTES, _OF_TEXT, _A_RUN = range(5)


def _column(block: bytes, at: int, encoding: int, kind: int, count: int) -> tuple[list[Any], int]:
    """The values of a column that begins at `at`, and where it ends."""
    if encoding == _A_RUN:
        values, at = _column(block, at + 1, block[at], kind, 1)
        return values * count, at
    nulls, at = _bits(block, at + 1, count) if block[at] else ([False] * count, at + 1)
    if encoding == _OF_1_BYTE:
        values, at = _bits(block, at, count)
        return [None if null else value for value, null in zip(values, nulls, strict=True)], at
    present = count - sum(nulls)
    if encoding == _OF_TEXT:
        values = []
        for _ in range(present):
            start = at + LENGTH.size
            at = start + LENGTH.unpack_from(block, at)[0]
            values.append(block[start:at].decode())
    else:
        form = f">{present}{FORMAT[kind] if kind < TEXT else '?iq'[encoding]}"
        values = list(struct.unpack_from(form, block, at))
        at += struct.calcsize(form)
    given = iter(values)
    return [None if null else next(given) for null in nulls], at


def _bits(block: bytes, at: int, count: int) -> tuple[list[bool], int]:
    return [bool(block[at + i // 8] & (128 >> i % 8)) for i in range(count)], at + (count + 7) // 8
