"""Readings that hypothesis draws."""

from datetime import UTC, datetime, timedelta

from hypothesis import strategies as st

from schemas.reading import Reading, Value

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

values: st.SearchStrategy[Value] = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
)


def readings(
    names: st.SearchStrategy[str], flags: st.SearchStrategy[str], last_micros: int
) -> st.SearchStrategy[Reading]:
    """Readings of every kind, with such names and flags, from 1970 to so many µs after its beginning."""
    return st.builds(
        Reading,
        measurement=names,
        device_id=names,
        time=st.integers(0, last_micros).map(lambda micros: _EPOCH + timedelta(microseconds=micros)),
        values=st.dictionaries(names, values, min_size=1),
        channel=st.text(),
        units=st.dictionaries(names, st.text()),
        tags=st.dictionaries(names, st.text()),
        raw=st.dictionaries(names, values),
        dialect=st.text(),
        flags=st.lists(flags),
    )
