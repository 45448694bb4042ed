"""A batch of writes folds into one change that equals them one after the other."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftcore.core.types import Entry, EntryType, HardState
from raftcore.encoding import GENESIS_CHAIN
from raftcore.storage.base import Write
from raftcore.storage.plan import (
    Batch,
    Link,
    Shape,
    check_value,
    plan_batch,
    split_value,
    stored_value,
)
from raftcore.testing.storage_model import command, commands


def test_golden_bytes() -> None:
    """These bytes are in logs: a change here needs a new format version."""
    entry = Entry(2, 3, EntryType.COMMAND, b"data", b"client", 4, 5, 6)
    value, chain = stored_value(entry, GENESIS_CHAIN)
    assert value.hex() == (
        "01010000000000000002000000000000000306000000000000000400000000000000050006000000"
        "0000000004636c69656e7464617461849c2d95c54110315e328b6979a52f765ee4db8ceb5ca36b2a"
        "67025cc3c1ebc7de6d18d8"
    )
    assert split_value(value)[1] == chain


def test_every_single_bit_flip_of_a_stored_entry_is_found() -> None:
    value, _ = stored_value(command(2, 3), GENESIS_CHAIN)
    assert check_value(value)
    for position in range(len(value) * 8):
        damaged = bytearray(value)
        damaged[position // 8] ^= 1 << position % 8
        assert not check_value(bytes(damaged))
    assert not check_value(b"")


class Replay:
    """A list of stored values that batches are applied to."""

    def __init__(self) -> None:
        self.shape = Shape(HardState(9))
        self.values: list[bytes] = []
        self.links = [self.shape.before]

    def apply(self, writes: list[Write]) -> Batch:
        batch = plan_batch(self.shape, writes, self.links.__getitem__)
        if batch.truncate_from is not None:
            del self.values[batch.truncate_from - 1 :]
            del self.links[batch.truncate_from :]
        assert batch.first == len(self.values) + 1
        self.values.extend(batch.values)
        for number, value in enumerate(batch.values, batch.first):
            canonical, chain = split_value(value)
            self.links.append(Link(number, int.from_bytes(canonical[10:18], "big"), chain))
        self.shape = batch.after
        return batch


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 4)), max_size=8))
def test_one_batch_equals_its_writes_one_by_one(steps: list[tuple[int, int]]) -> None:
    writes, last = [], 0
    for term, (cut_back, added) in enumerate(steps, 1):
        cut = max(1, last + 1 - cut_back) if cut_back else None
        last = last if cut is None else cut - 1
        writes.append(Write(HardState(9 + term), cut, commands(last + 1, last + added, term)))
        last += added
    one, many = Replay(), Replay()
    one.apply(writes)
    for write in writes:
        many.apply([write])
    assert (one.shape, one.values) == (many.shape, many.values)


def test_what_was_appended_and_cut_in_one_batch_is_never_stored() -> None:
    replay = Replay()
    batch = replay.apply([Write(None, None, commands(1, 5, 1)), Write(None, 2, commands(2, 3, 2))])
    assert batch.truncate_from is None
    assert len(batch.values) == 3


@pytest.mark.parametrize(
    "write",
    [
        Write(None, 0, ()),
        Write(None, 5, ()),
        Write(None, None, commands(3, 3, 1)),
        Write(None, None, (*commands(4, 4, 2), *commands(5, 5, 1))),
        Write(None, None, commands(4, 4, 10)),
        Write(HardState(8), None, ()),
    ],
)
def test_a_broken_precondition_is_found_before_anything_happens(write: Write) -> None:
    replay = Replay()
    replay.apply([Write(None, None, commands(1, 3, 1))])
    shape = replay.shape
    with pytest.raises(AssertionError):
        replay.apply([write])
    assert replay.shape is shape
