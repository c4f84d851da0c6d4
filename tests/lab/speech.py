"""Dialects as the decode stage uses them: with their own policy, options and registry."""

import functools
from collections.abc import Sequence

from schemas import dialects
from schemas.dialects import Meta
from schemas.reading import Reading, Rejected

RECEIVED_MS = 1_759_622_400_000


@functools.cache
def speaker(name: str) -> tuple[dialects.Decode, dialects.Setup]:
    """What decodes a dialect's examples."""
    module = dialects.load()[name]
    setup = dialects.setup_of(dialects.policy_of(name), getattr(module, "EXAMPLE_REGISTRY", None))
    return dialects.speaker(name, options=getattr(module, "EXAMPLE_OPTIONS", None)), setup


def decode(
    name: str, payload: bytes, origin: str | None = None, received_ms: int = RECEIVED_MS
) -> Sequence[Reading | Rejected]:
    """What a payload gives; the original topic is the first example's where none is said."""
    if origin is None:
        origin = dialects.load()[name].EXAMPLES[0].origin
    speak, setup = speaker(name)
    headers = [("original_topic", origin.encode())] if origin else []
    return speak(payload, Meta("raw_iot_data", b"key", headers, received_ms, setup))
