"""What a store holds, and what a batch of writes does to it: pure, shared by every store.

A batch is folded into one net change before anything is touched, so one transaction carries one
truncation and one run of appends (O3), and every broken precondition is found while nothing has
happened yet.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from raftcore.core.types import Entry, HardState, Position, SnapshotMeta
from raftcore.encoding import GENESIS_CHAIN, chain_next, encode_entry
from raftcore.storage.base import Write

CHAIN_SIZE = 32
CRC_SIZE = 4
TRAILER_SIZE = CHAIN_SIZE + CRC_SIZE


@dataclass(frozen=True, slots=True)
class Link:
    """A place of the log with the hash chain there."""

    index: int
    term: int
    chain: bytes

    @property
    def position(self) -> Position:
        return Position(self.term, self.index)


GENESIS = Link(0, 0, GENESIS_CHAIN)


@dataclass(frozen=True, slots=True)
class Shape:
    """The store's durable state without the entries themselves; replaced whole after a commit.

    ``before`` is the place just before the first entry, ``tip`` the last entry (or ``before`` when
    there is none).
    """

    hard_state: HardState = field(default_factory=HardState)
    commit_hint: int = 0
    before: Link = GENESIS
    tip: Link = GENESIS
    snapshot: SnapshotMeta | None = None

    @property
    def first_index(self) -> int:
        return self.before.index + 1

    @property
    def last_index(self) -> int:
        return self.tip.index

    @property
    def snapshot_index(self) -> int:
        return 0 if self.snapshot is None else self.snapshot.index

    @property
    def snapshot_position(self) -> tuple[int, int]:
        """Index and term of the snapshot in force; (0, 0) without one."""
        return (0, 0) if self.snapshot is None else (self.snapshot.index, self.snapshot.term)


@dataclass(frozen=True, slots=True)
class Batch:
    """The net change of some writes: truncate, then append ``values`` from ``first`` on."""

    truncate_from: int | None
    first: int
    values: tuple[bytes, ...]
    after: Shape


def stored_value(entry: Entry, previous_chain: bytes) -> tuple[bytes, bytes]:
    """The bytes kept for ``entry`` (canonical, chain, checksum), and the chain after it."""
    canonical = encode_entry(entry)
    chain = chain_next(previous_chain, canonical)
    body = canonical + chain
    return body + zlib.crc32(body).to_bytes(CRC_SIZE, "big"), chain


def check_value(value: bytes) -> bool:
    """Whether the checksum of stored bytes matches."""
    return len(value) > TRAILER_SIZE and zlib.crc32(value[:-CRC_SIZE]) == int.from_bytes(
        value[-CRC_SIZE:], "big"
    )


def split_value(value: bytes) -> tuple[bytes, bytes]:
    """Canonical entry and chain of stored bytes."""
    return value[:-TRAILER_SIZE], value[-TRAILER_SIZE:-CRC_SIZE]


def plan_batch(shape: Shape, writes: Sequence[Write], link_at: Callable[[int], Link]) -> Batch:
    """Fold ``writes``, in order, into one change of ``shape``.

    ``link_at(index)`` gives the stored place at an index that a truncation leaves as the last one.
    A broken precondition is the caller's bug and an :class:`AssertionError`; nothing has happened.
    """
    hard_state, commit_hint = shape.hard_state, shape.commit_hint
    truncate_from: int | None = None
    base, entries = shape.tip, list[Entry]()
    for write in writes:
        if write.hard_state is not None:
            _check_hard_state(hard_state, write.hard_state)
            hard_state = write.hard_state
        if write.truncate_from is not None:
            cut = write.truncate_from
            assert cut > shape.snapshot_index, "a truncation would reach into the snapshot"
            assert cut > commit_hint, "a truncation would remove a committed entry"
            assert cut >= shape.first_index, "a truncation would reach below the log"
            assert cut <= base.index + len(entries) + 1, "a truncation beyond the log's end"
            if cut > base.index:
                del entries[cut - base.index - 1 :]
            else:
                entries.clear()
                truncate_from, base = cut, _link_before(shape, cut, link_at)
        _extend(entries, base, write.entries)
        commit_hint = max(commit_hint, min(write.commit_hint, base.index + len(entries)))
    values = []
    chain = base.chain
    for entry in entries:
        value, chain = stored_value(entry, chain)
        values.append(value)
    assert not entries or entries[-1].term <= hard_state.term, "an entry of a term not yet begun"
    tip = Link(entries[-1].index, entries[-1].term, chain) if entries else base
    after = replace(shape, hard_state=hard_state, commit_hint=commit_hint, tip=tip)
    return Batch(truncate_from, base.index + 1, tuple(values), after)


def _check_hard_state(old: HardState, new: HardState) -> None:
    """A term never goes back and a vote is never changed (rule 2); asserted at the last gate."""
    assert new.term >= old.term, f"the term would go back from {old.term} to {new.term}"
    assert new.term > old.term or old.vote in (None, new.vote), "a vote would be changed"


def _link_before(shape: Shape, index: int, link_at: Callable[[int], Link]) -> Link:
    return shape.before if index == shape.first_index else link_at(index - 1)


def _extend(entries: list[Entry], base: Link, new: Sequence[Entry]) -> None:
    index, term = base.index + len(entries), entries[-1].term if entries else base.term
    for entry in new:
        assert entry.index == index + 1, f"entry {entry.index} does not follow {index}"
        assert entry.term >= term, f"term {entry.term} of entry {entry.index} is below {term}"
        index, term = entry.index, entry.term
    entries.extend(new)


def shape_after_compaction(shape: Shape, before: Link) -> Shape:
    """The log now starts after ``before``."""
    tip = before if before.index > shape.tip.index else shape.tip
    return replace(shape, before=before, tip=tip)


def shape_after_install(shape: Shape, meta: SnapshotMeta, *, keep_log: bool) -> Shape:
    """The log after an installed snapshot, by the match rule (rule 44)."""
    assert meta.term <= shape.hard_state.term, "a snapshot of a term not yet begun"
    hint = max(shape.commit_hint, meta.index)
    if keep_log:
        return replace(shape, snapshot=meta, commit_hint=hint)
    link = Link(meta.index, meta.term, meta.chain)
    return replace(shape, snapshot=meta, commit_hint=hint, before=link, tip=link)
