"""Adaptive histograms of one series: how usual a symbol is, at all, after the one before it, and at its hour."""

import struct
from array import array
from math import log
from typing import Final

from tables.arrays import little

#: A value is one of this many symbols.
BINS: Final = 16
HOURS: Final = 24
#: No probability is taken to be less, so that one value cannot outweigh all others.
LEAST: Final = 1e-5

_AFTER: Final = BINS
_AT: Final = BINS + BINS * BINS
_COUNTERS: Final = BINS + BINS * BINS + HOURS * BINS
_MOST: Final = 0xFFFF
_VERSION: Final = 1
_HEAD: Final = struct.Struct("<BQ")


class Histograms:
    """Counters of 16 bits: 16 of symbols, 16 x 16 of symbols after a symbol, 24 x 16 of symbols in an hour of the day.

    When one would overflow, all are halved (rounded down), so that what was long ago slowly counts for less. `n` is how
    many updates there were, halved or not. Two that were given the same updates are equal, and pack to equal bytes.
    """

    __slots__ = ("_counts", "n")

    def __init__(self) -> None:
        self.n = 0
        self._counts = array("H", bytes(2 * _COUNTERS))

    def update(self, symbol: int, previous: int, hour: int) -> float:
        """Count a symbol; how unexpected it was before that, in nats: the mean of -ln p in the three histograms.

        In the one without a context p0 = (count + 1/2) / (total + BINS / 2), in the others p = (p0 + count) /
        (total + 1), each at least `LEAST`.
        """
        counts = self._counts
        row, hour_row = _AFTER + previous * BINS, _AT + hour * BINS
        after, at = row + symbol, hour_row + symbol
        count, count_after, count_at = counts[symbol], counts[after], counts[at]
        # Adding them up takes a fifth of a microsecond each; to keep the sums would take a tenth of the memory.
        total, total_after, total_at = (
            sum(counts[:BINS]),
            sum(counts[row : row + BINS]),
            sum(counts[hour_row : hour_row + BINS]),
        )
        p0 = (count + 0.5) / (total + BINS / 2)
        p1 = (p0 + count_after) / (total_after + 1)
        p2 = (p0 + count_at) / (total_at + 1)
        self.n += 1
        if count == _MOST:  # no other counter is ever greater than this one
            counts = self._counts = array("H", [each >> 1 for each in counts])
            count, count_after, count_at = counts[symbol], counts[after], counts[at]
        counts[symbol], counts[after], counts[at] = count + 1, count_after + 1, count_at + 1
        if p0 < LEAST or p1 < LEAST or p2 < LEAST:
            p0, p1, p2 = max(p0, LEAST), max(p1, LEAST), max(p2, LEAST)
        return -log(p0 * p1 * p2) / 3.0

    def pack(self) -> bytes:
        """As bytes to store, about 1.3 kB."""
        return _HEAD.pack(_VERSION, self.n) + little(self._counts).tobytes()

    @classmethod
    def unpack(cls, packed: bytes) -> "Histograms":
        """What `pack` made bytes of; raises `ValueError`."""
        if len(packed) != _HEAD.size + 2 * _COUNTERS or packed[0] != _VERSION:
            raise ValueError(f"these {len(packed)} bytes are no histograms of version {_VERSION}")
        made = cls()
        _, made.n = _HEAD.unpack_from(packed)
        made._counts = little(array("H", packed[_HEAD.size :]))
        return made
