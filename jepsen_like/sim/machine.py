"""The state machine of the simulation: its state is the hash chain of all that was applied."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from raftcore.core.types import Entry

#: Bytes that a snapshot is padded to, so that its transfer takes several chunks.
SNAPSHOT_BYTES = 900


def link(chain: bytes, entry: Entry) -> bytes:
    """The chain after ``entry``: equal chains mean equal histories."""
    head = f"{entry.index}/{entry.term}/{int(entry.type)}/".encode()
    return hashlib.sha256(chain + head + entry.data).digest()


@dataclass(slots=True)
class ChainMachine:
    """How far it is, and the chain there."""

    index: int = 0
    term: int = 0
    chain: bytes = b""

    def apply(self, entry: Entry) -> None:
        assert entry.index == self.index + 1, "entries are applied in order, without a gap (I10)"
        self.index, self.term, self.chain = entry.index, entry.term, link(self.chain, entry)

    def copy(self) -> ChainMachine:
        return ChainMachine(self.index, self.term, self.chain)

    def to_bytes(self) -> bytes:
        """The state as a snapshot file."""
        return f"{self.index}/{self.term}/{self.chain.hex()}".ljust(SNAPSHOT_BYTES).encode()

    @staticmethod
    def from_bytes(raw: bytes) -> ChainMachine:
        index, term, chain = raw.decode().split("/")
        return ChainMachine(int(index), int(term), bytes.fromhex(chain.strip()))
