"""Which partition a device's records live in: the one place that decides."""

from functools import lru_cache

from aiokafka.partitioner import murmur2


@lru_cache(maxsize=200_000)
def _hash(device_id: str) -> int:
    return _murmur(device_id.encode("utf-8", "surrogatepass"))


def _murmur(key: bytes) -> int:
    return int(murmur2(key)) & 0x7FFFFFFF


def partition_of(device_id: str, partitions: int) -> int:
    """The partition (0-based, of `partitions`) that owns a device, whatever its records' keys say.

    The same as Kafka's own default partitioner for a record keyed by the device id, so any producer that keys by
    device agrees with it.
    """
    return _hash(device_id) % partitions


def partition_of_key(key: bytes, partitions: int) -> int:
    """The partition of a record that no device owns, by its key."""
    return _murmur(key) % partitions
