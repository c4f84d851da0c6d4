"""Why something was refused: every reason code there is, each with a sentence for a person.

A reason labels a metric and a dead letter, so the set is closed: a word that is not here is a type error.
"""

from collections.abc import Mapping
from typing import Final, Literal

Reason = Literal[
    "bad_timestamp",
    "bad_type",
    "bad_unit",
    "bad_value",
    "contradiction",
    "dialect_failed",
    "empty",
    "future",
    "integer_too_large",
    "missing_field",
    "not_finite",
    "not_json",
    "not_telemetry",
    "nul",
    "old",
    "out_of_range",
    "prepare_failed",
    "refused",
    "reserved",
    "too_large",
    "too_old",
    "type_conflict",
    "undecodable",
    "unknown_alias",
    "unknown_device",
    "unknown_dialect",
    "unknown_schema",
    "unparsable",
    "wire",
]

#: What each means.
REASONS: Final[Mapping[Reason, str]] = {
    "bad_timestamp": "the time is missing a zone, unreadable, or outside the calendar that is believed",
    "bad_type": "a field holds another kind of value than it must",
    "bad_unit": "a value's unit is not known, or cannot be converted to the one that is wanted",
    "bad_value": "a store has no form for the value",
    "contradiction": "two parts of the message say different things, as its topic and its payload of the device",
    "dialect_failed": "a fault of iotflow's: a dialect did what it must not; the payload is kept until it is mended",
    "empty": "there is nothing in the record, or nothing in it is a reading",
    "future": "the time lies further ahead of the record's than the policy allows",
    "integer_too_large": "an integer beyond 2^53 without a type of its own, or beyond the type that it has",
    "missing_field": "a field that must be there is missing or empty",
    "not_finite": "a number is NaN or infinite",
    "not_json": "the payload is not JSON",
    "not_telemetry": "the message is of a kind that holds no readings, as a command",
    "nul": "a store cannot hold the character NUL (U+0000) in a text",
    "old": "the time lies further behind the record's than the policy allows",
    "out_of_range": "a number lies outside what is physically possible, or is larger than can be held exactly",
    "prepare_failed": "a fault of iotflow's: a sink could not encode the reading; it is kept until it is mended",
    "refused": "the database refused this reading, and its words are in the error",
    "reserved": "the measurement is one of iotflow's own, as aggregates or alarms, which no device may write",
    "too_large": "longer, deeper or larger than what fits",
    "too_old": "the time lies before what the store still keeps (its retention, or TTL)",
    "type_conflict": "the store holds another type for this metric, as a text where numbers are",
    "undecodable": "the payload is not of the binary or line form that its dialect or content type says",
    "unknown_alias": "a metric is named by an alias that no birth message has explained yet; replay it after one has",
    "unknown_device": "the registry does not know the device; replay it once it does",
    "unknown_dialect": "nothing says which dialect the record speaks, or no dialect is called that",
    "unknown_schema": "the schema that the record names is not known to the schema registry, or cannot be had",
    "unparsable": "a value's text is not a value of the kind that it should be",
    "wire": "a record of the decoded topic is no reading",
}
