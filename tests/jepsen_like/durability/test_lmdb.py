"""The proof has teeth: acknowledged writes survive with LMDB's sync and are lost without."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import lmdb
import pytest

WRITER = """
import os, sys, lmdb
path = os.path.join(sys.argv[1], "log")
if not os.path.isdir(path):
    os.mkdir(path)
env = lmdb.open(path, map_size=1 << 26, lib_version=0)
for directory in (path, sys.argv[1]):
    fd = os.open(directory, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)
for number in range(100_000):
    with env.begin(write=True) as txn:
        txn.put(b"%08d" % number, os.urandom(300))
    print(number, flush=True)
"""
ACKNOWLEDGED = 200
WITHOUT_SYNC = ("-m", "jepsen_like.durability.without_sync")


def acknowledged_and_held(
    start_script: Any, data: Path, prefix: tuple[str, ...] = ()
) -> tuple[int, int]:
    process = start_script(WRITER, prefix=prefix, stdout=subprocess.PIPE)
    last = -1
    while last < ACKNOWLEDGED:
        last = int(process.stdout.readline())
    verdict = process.kill_with_power_loss()
    for line in process.stdout:  # what was said before the power went
        last = int(line)
    assert verdict.power_lost
    assert verdict.ok
    try:
        with lmdb.open(str(data / "log"), readonly=True, lock=False, lib_version=0) as env:
            held: int = env.stat()["entries"]
    except lmdb.Error:
        held = 0  # nothing that LMDB would open
    return last + 1, held


def test_with_sync_every_acknowledged_write_survives(start_script: Any, data: Path) -> None:
    acknowledged, held = acknowledged_and_held(start_script, data)
    assert acknowledged <= held <= acknowledged + 1


def test_without_sync_acknowledged_writes_are_lost(start_script: Any, data: Path) -> None:
    acknowledged, held = acknowledged_and_held(start_script, data, WITHOUT_SYNC)
    assert held < acknowledged


@pytest.mark.parametrize("prefix", [(), WITHOUT_SYNC])
def test_a_plain_kill_cannot_tell_the_two_apart(
    start_script: Any, data: Path, prefix: tuple[str, ...]
) -> None:
    process = start_script(WRITER, prefix=prefix, stdout=subprocess.PIPE)
    while (last := int(process.stdout.readline())) < 20:
        pass
    process.kill()
    for line in process.stdout:
        last = int(line)
    with lmdb.open(str(data / "log"), readonly=True, lock=False, lib_version=0) as env:
        assert env.stat()["entries"] >= last + 1
