"""Partitions agree with Kafka's."""

import random

import pytest
from aiokafka.partitioner import DefaultPartitioner
from hypothesis import given
from hypothesis import strategies as st

from schemas.partition import partition_of


@given(device_id=st.text(), partitions=st.integers(1, 200))
def test_agrees_with_kafkas_own_partitioner(device_id: str, partitions: int) -> None:
    everyone = list(range(partitions))
    random.seed(0)
    assert partition_of(device_id, partitions) == DefaultPartitioner()(device_id.encode(), everyone, everyone)


# From Kafka's own UtilsTest, as positive numbers.
@pytest.mark.parametrize(
    ("key", "murmur2"), [("21", -973932308), ("foobar", -790332482), ("a-little-bit-long-string", -985981536)]
)
def test_agrees_with_kafka_itself(key: str, murmur2: int) -> None:
    assert partition_of(key, 2**31) == murmur2 & 0x7FFFFFFF


def test_a_device_id_that_is_not_unicode_has_a_partition() -> None:
    assert 0 <= partition_of("\ud800", 12) < 12
