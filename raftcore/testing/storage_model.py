"""A plain model of a store, and random legal histories that compare a store with it.

Feed :func:`check_random_history` generators of known seeds, so that a failure can be repeated.
"""

from __future__ import annotations

import copy
import itertools
import random
from collections.abc import Callable

from raftcore.core.types import (
    Configuration,
    Entry,
    EntryType,
    HardState,
    Member,
    Position,
    SnapshotMeta,
)
from raftcore.encoding import GENESIS_CHAIN, chain_next, encode_entry
from raftcore.storage.base import LogStorage, Recovered, Write
from raftcore.storage.snapshot_format import SnapshotEncoder, SnapshotHeader

CONFIGURATION = Configuration(
    "conformance",
    (Member("a", "a:1", b"a" * 16), Member("b", "b:1", b"b" * 16, voter=False)),
)
CHUNK = 1000


def command(index: int, term: int, data: bytes = b"data") -> Entry:
    """A command entry that uses every field of the format."""
    return Entry(index, term, EntryType.COMMAND, data, b"client", index * 3, 1_700_000_000_000, 1)


def commands(first: int, last: int, term: int, data: bytes = b"data") -> tuple[Entry, ...]:
    """Command entries ``first..last`` of one term."""
    return tuple(command(index, term, data) for index in range(first, last + 1))


def make_snapshot(
    index: int, term: int, chain: bytes, records: list[bytes]
) -> tuple[SnapshotMeta, bytes]:
    """A snapshot as a leader would send it: what it stands for, and the bytes of its file."""
    raw = bytearray()
    encoder = SnapshotEncoder(SnapshotHeader(index, term, chain, CONFIGURATION), raw.extend)
    for record in records:
        encoder.write(record)
    digest = encoder.finish()
    return SnapshotMeta(index, term, chain, CONFIGURATION, len(raw), digest), bytes(raw)


def receive(storage: LogStorage, meta: SnapshotMeta, raw: bytes) -> bool:
    """Hand a snapshot file over in chunks, as the driver does; the receiver's verdict."""
    receiver = storage.receive_snapshot(meta)
    offset = 0
    while offset < len(raw):
        wanted = receiver.write(offset, raw[offset : offset + CHUNK])
        assert wanted > offset, "a chunk at the wanted offset is taken"
        offset = wanted
    return receiver.finish()


def take_snapshot(storage: LogStorage, index: int, records: list[bytes]) -> SnapshotMeta:
    """Write a local snapshot at an index of the log, without adopting it."""
    (entry,) = storage.read(index, index, 1)
    writer = storage.begin_snapshot(index, entry.term, storage.chain_at(index), CONFIGURATION)
    for record in records:
        writer.write(record)
    return writer.finish()


def begin_term(storage: LogStorage, term: int, vote: str | None = None) -> None:
    """Persist a term, as a node does before anything of that term."""
    storage.persist([Write(HardState(term, vote), None, ())])


class Model:
    """What a store should hold, as plainly as it can be said."""

    def __init__(self, first_entry: Entry) -> None:
        self.entries = [first_entry]
        self.before = Position(0, 0)
        self.before_chain = GENESIS_CHAIN
        self.hard_state = HardState(1)
        self.commit = 1
        self.snapshots: list[SnapshotMeta] = []

    @property
    def first(self) -> int:
        return self.before.index + 1

    @property
    def last(self) -> int:
        return self.before.index + len(self.entries)

    @property
    def last_term(self) -> int:
        return self.entries[-1].term if self.entries else self.before.term

    @property
    def snapshot(self) -> SnapshotMeta | None:
        return self.snapshots[-1] if self.snapshots else None

    @property
    def snapshot_index(self) -> int:
        return self.snapshots[-1].index if self.snapshots else 0

    def chains(self) -> dict[int, bytes]:
        """The chain at every place the log knows."""
        chain = self.before_chain
        found = {self.before.index: chain}
        for entry in self.entries:
            chain = chain_next(chain, encode_entry(entry))
            found[entry.index] = chain
        return found

    def write(self, write: Write) -> None:
        """One write of a ``persist``."""
        if write.hard_state is not None:
            self.hard_state = write.hard_state
        if write.truncate_from is not None:
            del self.entries[write.truncate_from - self.first :]
        self.entries.extend(write.entries)
        self.commit = max(self.commit, write.commit_hint)

    def adopt(self, meta: SnapshotMeta) -> None:
        """Point to a local snapshot."""
        if meta.index > self.snapshot_index:
            self.snapshots.append(meta)

    def install(self, meta: SnapshotMeta) -> None:
        """Point to a received snapshot; the log stays if it agrees with it (rule 44)."""
        if meta.index > self.snapshot_index:
            if self.chains().get(meta.index) != meta.chain:
                self.entries.clear()
                self.before, self.before_chain = meta.position, meta.chain
            self.snapshots.append(meta)
            self.commit = max(self.commit, meta.index)

    def copy(self) -> Model:
        """The model as it is now; independent of later changes."""
        twin = copy.copy(self)
        twin.entries, twin.snapshots = list(self.entries), list(self.snapshots)
        return twin

    def drop_before(self, first: int) -> None:
        """Compact."""
        if first > self.first:
            chain, gone = self.chains()[first - 1], self.entries[first - 1 - self.first]
            del self.entries[: first - self.first]
            self.before, self.before_chain = Position(gone.term, first - 1), chain

    def check(self, storage: LogStorage) -> None:
        """The store reads as the model says."""
        assert storage.read(self.first, self.last, 10**9) == self.entries
        assert storage.newest_snapshot() == self.snapshot
        for index, chain in self.chains().items():
            assert storage.chain_at(index) == chain

    def check_load(self, storage: LogStorage) -> None:
        """A fresh start finds what the model says."""
        self.check_recovered(storage.load())

    def check_recovered(self, found: Recovered) -> None:
        """That is what the model says."""
        assert found.hard_state == self.hard_state
        assert (found.first_index, found.last_index) == (self.first, self.last)
        assert found.commit_hint == self.commit
        assert found.snapshot == self.snapshot
        assert found.before_first == self.before
        terms = {index: entry.term for index, entry in enumerate(self.entries, self.first)}
        runs = [*found.terms, (self.last + 1, 0)]
        spelled = {
            index: term
            for (start, term), (end, _) in itertools.pairwise(runs)
            for index in range(start, end)
        }
        assert spelled == terms


def check_random_history(
    rng: random.Random,
    create: Callable[[], LogStorage],
    reopen: Callable[[LogStorage], LogStorage],
    steps: int,
) -> None:
    """Run ``steps`` random legal operations on a new store and on a model, comparing them.

    Raises:
        AssertionError: the store differs from the model.
    """
    storage = create()
    model = Model(storage.read(1, 1, 1)[0])
    for _ in range(steps):
        action = rng.choice([_write, _write, _write, _snapshot, _compact, _install, None])
        if action is None:
            storage = reopen(storage)
            model.check_load(storage)
        else:
            action(rng, storage, model)
        model.check(storage)
    storage = reopen(storage)
    model.check_load(storage)
    model.check(storage)
    storage.close()


def _write(rng: random.Random, storage: LogStorage, model: Model) -> None:
    storage.persist([_one_write(rng, model) for _ in range(rng.randint(1, 3))])


def _one_write(rng: random.Random, model: Model) -> Write:
    hard_state = None
    if rng.random() < 0.4:
        vote = rng.choice([None, "a", "b"])
        hard_state = HardState(model.hard_state.term + rng.randint(1, 2), vote)
        model.hard_state = hard_state
    cut = None
    lowest = max(model.commit, model.snapshot_index, model.before.index) + 1
    if rng.random() < 0.3 and lowest <= model.last + 1:
        cut = rng.randint(lowest, model.last + 1)
        del model.entries[cut - model.first :]
    entries = []
    for _ in range(rng.randint(0, 5)):
        term = rng.randint(model.last_term, model.hard_state.term)
        entries.append(command(model.last + 1, term, rng.randbytes(rng.randint(0, 40))))
        model.entries.append(entries[-1])
    model.commit = rng.randint(model.commit, max(model.commit, model.last))
    return Write(hard_state, cut, tuple(entries), model.commit)


def _snapshot(rng: random.Random, storage: LogStorage, model: Model) -> None:
    lowest = max(model.snapshot_index + 1, model.first)
    highest = min(model.commit, model.last)
    if lowest <= highest:
        meta = take_snapshot(storage, rng.randint(lowest, highest), [rng.randbytes(10)])
        storage.adopt_snapshot(meta)
        model.snapshots.append(meta)


def _compact(rng: random.Random, storage: LogStorage, model: Model) -> None:
    if len(model.snapshots) > 1:
        first = rng.randint(1, model.snapshots[-2].index + 1)
        while not storage.compact(first, rng.randint(1, 4)):
            pass
        model.drop_before(first)


def _install(rng: random.Random, storage: LogStorage, model: Model) -> None:
    chains = model.chains()
    index = rng.randint(model.snapshot_index + 1, model.last + 10)
    if index in chains and (index <= model.commit or rng.random() < 0.5):
        term = (
            model.before.term
            if index == model.before.index
            else model.entries[index - model.first].term
        )
        meta, raw = make_snapshot(index, term, chains[index], [b"kept"])
    elif index > model.commit and model.hard_state.term > model.last_term:
        term = model.hard_state.term
        meta, raw = make_snapshot(index, term, rng.randbytes(32), [b"replaced"])
        model.entries.clear()
        model.before, model.before_chain = meta.position, meta.chain
    else:
        return
    assert receive(storage, meta, raw)
    storage.install_snapshot(meta)
    model.snapshots.append(meta)
    model.commit = max(model.commit, index)
