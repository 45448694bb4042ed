"""A driver that feeds a real machine on a real directory, the way a node would."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from guardian.fsm.commands import (
    AnyCommand,
    AnyResult,
    CreateProject,
    Envelope,
    PutSchema,
    encode_command,
)
from guardian.fsm.machine import GuardianMachine
from raftcore.core.types import Entry, EntryType
from raftcore.encoding import GENESIS_CHAIN, chain_next, encode_entry
from raftcore.statemachine import AppliedPosition

CLUSTER_ID = "cluster"
INCARNATION = bytes(range(16))


def digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


class Driver:
    """A machine, the log it was fed, and short ways to say commands."""

    def __init__(self, path: Path, **options: Any) -> None:
        self.path = path
        self.options = options
        self.log: list[Entry] = []
        self.chains: list[bytes] = [GENESIS_CHAIN]
        self.now_ms = 1_000
        self._ids = 0
        self.machine = self._open()

    def _open(self) -> GuardianMachine:
        return GuardianMachine.open(
            self.path, cluster_id=CLUSTER_ID, incarnation=INCARNATION, **self.options
        )

    @property
    def state(self) -> Any:
        return self.machine.state

    def reopen(self, **options: Any) -> None:
        self.machine.close()
        self.options |= options
        self.machine = self._open()

    def head(self, *, actor: str = "user:1", idem: str = "", fingerprint: bytes = b"") -> Envelope:
        self._ids += 1
        return Envelope(self._ids.to_bytes(16, "big"), actor, idem, fingerprint)

    def make(self, kind: type[AnyCommand], *args: Any, **head: Any) -> Any:
        return kind(self.head(**head), *args)

    def do(self, kind: type[AnyCommand], *args: Any, **head: Any) -> Any:
        """Execute one command as an entry of its own."""
        return self.run(self.make(kind, *args, **head))

    def run(self, *commands: AnyCommand) -> Any:
        """Execute commands as one batch; the result of the last."""
        return self.run_all(commands)[-1]

    def run_all(self, commands: Sequence[AnyCommand]) -> Sequence[AnyResult | None]:
        return self.feed([self.entry(encode_command(command)) for command in commands])

    def entry(self, data: bytes, kind: EntryType = EntryType.COMMAND) -> Entry:
        """The next entry of the log, appended to it."""
        entry = Entry(len(self.log) + 1, 1, kind, data, timestamp_ms=self.now_ms)
        self.log.append(entry)
        self.chains.append(chain_next(self.chains[-1], encode_entry(entry)))
        return entry

    def position(self, index: int) -> AppliedPosition:
        if index == 0:
            return AppliedPosition()
        return AppliedPosition(index, self.log[index - 1].term, self.chains[index])

    def feed(self, entries: Sequence[Entry]) -> Sequence[AnyResult | None]:
        return self.machine.apply(entries, self.position(entries[-1].index))

    def furnish(self) -> None:
        """A project ``p`` with key ``k`` and a schema ``s`` at version 1."""
        self.run(
            self.make(CreateProject, "p", "k", digest("k"), "first"),
            self.make(PutSchema, "s", 0, digest("s1"), "attempt-1"),
        )


@pytest.fixture(scope="session")
def new_driver(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Driver]:
    """Makes drivers on fresh directories; close their machines."""

    def make(**options: Any) -> Driver:
        return Driver(tmp_path_factory.mktemp("node") / "state", **options)

    return make


@pytest.fixture
def bare(new_driver: Callable[..., Driver]) -> Iterator[Driver]:
    """A driver whose state is empty."""
    driver = new_driver()
    yield driver
    driver.machine.close()


@pytest.fixture
def driver(bare: Driver) -> Driver:
    """A driver with a project ``p`` and a schema ``s``."""
    bare.furnish()
    return bare
