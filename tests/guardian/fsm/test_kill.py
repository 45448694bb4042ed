"""kill -9 while applying: what is found afterwards is a whole state of some applied position."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from guardian.fsm.machine import GuardianMachine
from raftcore.statemachine import AppliedPosition

#: A log that both sides can compute: the child applies it, the parent replays it.
SHARED = textwrap.dedent(
    """
    from guardian.fsm.commands import (
        CreateConfig, CreateProject, DeleteConfig, Envelope, PutSchema, UpdateConfig,
        encode_command,
    )
    from raftcore.core.types import Entry, EntryType
    from raftcore.encoding import GENESIS_CHAIN, chain_next, encode_entry
    from raftcore.statemachine import AppliedPosition


    def command(index):
        head = Envelope(index.to_bytes(16, "big"), "user:1", f"i{index}", bytes(32))
        if index == 1:
            return CreateProject(head, "p", "k", bytes(32))
        if index == 2:
            return PutSchema(head, "s", 0, bytes(32), "x")
        key, turn = f"c{index % 7}", (index - 3) // 7
        content = index.to_bytes(8, "big") * (1 + index % 300)
        if turn % 5 == 0:
            return CreateConfig(head, "p", key, "s", 1, content)
        if turn % 5 == 4:
            return DeleteConfig(head, "p", key, turn)
        return UpdateConfig(head, "p", key, "s", 1, content, turn)


    def batches(start, size, chain):
        index = start
        while True:
            entries = []
            for _ in range(size):
                index += 1
                entry = Entry(
                    index, 1, EntryType.COMMAND, encode_command(command(index)),
                    timestamp_ms=index * 1000,
                )
                chain = chain_next(chain, encode_entry(entry))
                entries.append(entry)
            yield entries, AppliedPosition(index, 1, chain)
    """
)

CHILD = SHARED + textwrap.dedent(
    """
    import sys
    from pathlib import Path
    from guardian.fsm.machine import GuardianMachine

    machine = GuardianMachine.open(
        Path(sys.argv[1]), cluster_id="c", incarnation=bytes(16), map_size_bytes=1 << 20
    )
    last = machine.last_applied()
    for entries, position in batches(last.index, int(sys.argv[2]), last.chain or GENESIS_CHAIN):
        for result in machine.apply(entries, position):
            assert type(result).__name__ in ("Done", "ConfigWritten"), result
        print(position.index, flush=True)
    """
)


def run_and_kill(path: Path, batch: int, after_lines: int) -> int:
    """Let a child apply, kill it without warning; the last position that it reported."""
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, str(path), str(batch)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        reported = 0
        for _ in range(after_lines):
            line = child.stdout.readline()
            if not line:
                raise AssertionError(child.stderr.read())
            reported = int(line)
        child.send_signal(signal.SIGKILL)
        rest = child.stdout.read().split("\n")
        child.wait(60)
    whole = [int(line) for line in rest[:-1] if line]
    return whole[-1] if whole else reported


@pytest.mark.slow
def test_killed_while_applying_the_state_is_whole_and_loses_nothing_reported(
    new_driver: Callable[..., Any], tmp_path: Path
) -> None:
    scope: dict[str, Any] = {}
    exec(SHARED, scope)  # our own text, shared with the child
    replay = new_driver()
    for round_number, (batch, lines) in enumerate([(1, 40), (8, 25), (64, 10), (3, 33)]):
        reported = run_and_kill(tmp_path / "state", batch, lines)
        machine = GuardianMachine.open(tmp_path / "state", cluster_id="c", incarnation=bytes(16))
        last = machine.last_applied()
        assert last.index >= reported, round_number
        assert last != AppliedPosition(), "the same boot and file: nothing is rebuilt"
        position = replay.machine.last_applied()
        missing = last.index - position.index
        start = scope["batches"](position.index, missing, position.chain or scope["GENESIS_CHAIN"])
        entries, expected = next(start)
        assert last == expected, "the position is one of the log's"
        replay.machine.apply(entries, expected)
        assert machine.state.state_hash() == replay.state.state_hash()
        machine.state.verify_chain()
        machine.close()
    replay.machine.close()
