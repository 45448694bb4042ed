"""Exactly which bytes and names a traced program leaves behind when power is lost."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from jepsen_like.durability import TracedProcess, cut_power

#: Ends every script: say that all is done, then wait for the end.
READY = """
print("ready", flush=True)
signal.pause()
"""
HEAD = """
import os, signal, sys
os.chdir(sys.argv[1])
def sync(path, flags=os.O_RDONLY):
    fd = os.open(path, flags)
    os.fsync(fd)
    os.close(fd)
def put(path, data, *, synced, flags=os.O_CREAT | os.O_TRUNC):
    fd = os.open(path, os.O_WRONLY | flags)
    os.write(fd, data)
    if synced:
        os.fsync(fd)
    os.close(fd)
"""


def lose_power(start_script: Any, body: str, **more: Any) -> Any:
    process = start_script(HEAD + body + READY, stdout=subprocess.PIPE, **more)
    assert process.stdout.readline() == b"ready\n"
    verdict = process.kill_with_power_loss()
    assert verdict.ok, verdict
    assert verdict.power_lost
    assert verdict.exit_signal == 9
    return verdict


def tree(data: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(data)): None if path.is_dir() else path.read_bytes()
        for path in sorted(data.rglob("*"))
    }


CASES: dict[str, tuple[str, dict[str, bytes | None]]] = {
    "nothing is synced": ('put("old", b"new", synced=False)', {"old": b"0123456789"}),
    "overwritten and synced": (
        'put("old", b"new", synced=True)',
        {"old": b"new"},
    ),
    "half of it is synced": (
        """
fd = os.open("old", os.O_RDWR)
os.pwrite(fd, b"AB", 0)
os.fdatasync(fd)
os.pwrite(fd, b"CD", 4)
os.pwritev(fd, [b"12", b"34"], 20)
os.ftruncate(fd, 5)
""",
        {"old": b"AB23456789"},
    ),
    "appended through a buffered file": (
        """
with open("old", "ab") as file:
    file.write(b"kept")
    file.flush()
    os.fsync(file.fileno())
    file.write(b"lost")
""",
        {"old": b"0123456789kept"},
    ),
    "written through O_DSYNC": (
        """
fd = os.open("old", os.O_WRONLY | os.O_DSYNC)
os.pwrite(fd, b"DURABLE", 3)
plain = os.open("old", os.O_WRONLY)
os.pwrite(plain, b"xx", 0)
""",
        {"old": b"012DURABLE"},
    ),
    "vectored with RWF_DSYNC": (
        """
fd = os.open("old", os.O_WRONLY)
os.pwritev(fd, [b"A", b"B"], 0, os.RWF_DSYNC)
os.pwritev(fd, [b"C", b"D"], 2)
""",
        {"old": b"AB23456789"},
    ),
    "a new file without its directory": (
        'put("new", b"data", synced=True)',
        {"old": b"0123456789"},
    ),
    "a new file with its directory": (
        'put("new", b"data", synced=True); sync(".")',
        {"new": b"data", "old": b"0123456789"},
    ),
    "a new name without its data": (
        'put("new", b"data", synced=False); sync(".")',
        {"new": b"", "old": b"0123456789"},
    ),
    "the full replacement protocol": (
        'put("tmp", b"new", synced=True); os.rename("tmp", "old"); sync(".")',
        {"old": b"new"},
    ),
    "a replacement without the directory's sync": (
        'put("tmp", b"new", synced=True); os.rename("tmp", "old")',
        {"old": b"0123456789"},
    ),
    "a replacement without the file's sync": (
        'put("tmp", b"new", synced=False); os.rename("tmp", "old"); sync(".")',
        {"old": b""},
    ),
    "removed for good": ('os.unlink("old"); sync(".")', {}),
    "removed, and back": ('os.unlink("old")', {"old": b"0123456789"}),
    "a new directory without its parent": (
        'os.mkdir("d"); put("d/f", b"x", synced=True); sync("d")',
        {"old": b"0123456789"},
    ),
    "a new directory with its parent": (
        'os.mkdir("d"); put("d/f", b"x", synced=True); sync("d"); sync(".")',
        {"d": None, "d/f": b"x", "old": b"0123456789"},
    ),
    "a directory renamed and synced": (
        """
os.mkdir("d.new"); put("d.new/f", b"x", synced=True); sync("d.new"); sync(".")
os.rename("d.new", "d"); sync(".")
put("d/f", b"y", synced=False)
""",
        {"d": None, "d/f": b"x", "old": b"0123456789"},
    ),
    "a second link and a copy inside the kernel": (
        """
os.link("old", "twin"); sync(".")
fd, source = os.open("old", os.O_RDWR), os.open("twin", os.O_RDONLY)
os.copy_file_range(source, fd, 3, 0, 5)
os.posix_fallocate(fd, 10, 10)
""",
        {"old": b"0123456789", "twin": b"0123456789"},
    ),
    "what was synced between two threads' writes": (
        """
import threading
fd = os.open("old", os.O_RDWR)
def work():
    os.pwrite(fd, b"T", 9)
    os.fsync(fd)
thread = threading.Thread(target=work); thread.start(); thread.join()
os.pwrite(fd, b"M", 0)
""",
        {"old": b"012345678T"},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_survives(start_script: Any, data: Path, case: str) -> None:
    body, survivors = CASES[case]
    (data / "old").write_bytes(b"0123456789")
    lose_power(start_script, body)
    assert tree(data) == survivors


def test_exempt_files_keep_what_was_never_synced(start_script: Any, data: Path) -> None:
    (data / "state").mkdir()
    body = 'put("state/a", b"kept", synced=False); put("b", b"lost", synced=False)'
    verdict = lose_power(start_script, body, exempt=["state/*"])
    assert tree(data) == {"state": None, "state/a": b"kept"}
    assert verdict.lost_bytes == {"b": 4}


def test_a_plain_kill_keeps_the_page_cache(start_script: Any, data: Path) -> None:
    body = HEAD + 'put("new", b"data", synced=False)' + READY
    process = start_script(body, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"ready\n"
    assert not process.kill().power_lost
    assert tree(data) == {"new": b"data"}


def test_a_shared_writable_mapping_is_reported(start_script: Any, data: Path) -> None:
    (data / "old").write_bytes(b"0123456789")
    body = 'import mmap\nm = mmap.mmap(os.open("old", os.O_RDWR), 10)'
    process = start_script(HEAD + body + READY, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"ready\n"
    verdict = process.kill_with_power_loss()
    assert not verdict.ok
    assert "mapped shared and writable" in verdict.violations[0]


def test_several_processes_lose_power_together(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(HEAD + 'put("f", b"x", synced=True)' + READY)
    nodes: list[TracedProcess] = []
    try:
        for name in "abc":
            (tmp_path / name).mkdir()
            argv = ["python3", str(script), str(tmp_path / name)]
            node = TracedProcess(argv, watch=tmp_path / name, stdout=subprocess.PIPE)
            nodes.append(node)
            node.start()
            assert node.stdout.readline() == b"ready\n"
        verdicts = cut_power(nodes)
    finally:
        for node in nodes:
            node.close()
    assert all(verdict.power_lost for verdict in verdicts)
    assert [tree(tmp_path / name) for name in "abc"] == [{}, {}, {}]
