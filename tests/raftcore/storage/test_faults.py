"""Faults made by the kernel, not by a seam: failing syscalls, full disks, files cut anywhere."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raftcore.core.types import HardState
from raftcore.testing.storage_model import commands

#: Fails the n-th fdatasync (of the log's data or of FLOOR), or the n-th write of a meta page of
#: LMDB, which is a short one into the first two pages; only that one, as a disk that recovers does.
SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>
static int wanted(const char *name) {
    static int seen[2];
    const char *value = getenv(name);
    int which = name[5] == 'S';
    return value != NULL && ++seen[which] == atoi(value);
}
int fdatasync(int fd) {
    static int (*real)(int);
    if (!real) real = dlsym(RTLD_NEXT, "fdatasync");
    if (wanted("FAIL_SYNC")) { errno = EIO; return -1; }
    return real(fd);
}
static ssize_t write_at(const char *name, int fd, const void *data, size_t size, off_t offset) {
    ssize_t (*real)(int, const void *, size_t, off_t) = dlsym(RTLD_NEXT, name);
    if (size < 512 && offset < 8192 && wanted("FAIL_META")) { errno = EIO; return -1; }
    return real(fd, data, size, offset);
}
ssize_t pwrite(int fd, const void *data, size_t size, off_t offset) {
    return write_at("pwrite", fd, data, size, offset);
}
ssize_t pwrite64(int fd, const void *data, size_t size, off_t offset) {
    return write_at("pwrite64", fd, data, size, offset);
}
"""

WRITE = """
    import sys
    from raftcore.core.types import HardState
    from raftcore.errors import StorageError
    from raftcore.storage.base import Write
    from raftcore.storage.directory import DataDirectory
    from raftcore.storage.lmdb_log import open_log
    from raftcore.testing.storage_model import commands
    last = failures = 0
    try:
        log = open_log(DataDirectory.open(sys.argv[1], "n1"))
        last = log.load().last_index
        for term in range(3, 12):
            log.persist([Write(HardState(term, "n2"), None, commands(last + 1, last + 5, term))])
            last += 5
            print(term, last, flush=True)
    except StorageError as error:
        print(error.code, flush=True)
        try:
            log.persist([Write(HardState(99), None, ())])
        except StorageError as again:
            sys.exit(again.exit_code)
        except NameError:
            sys.exit(error.exit_code)
        sys.exit("a write after a failed one was accepted")
    sys.exit(0)
"""


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    root = tmp_path_factory.mktemp("shim")
    source, library = root / "shim.c", root / "shim.so"
    source.write_text(SHIM)
    command = [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"]
    subprocess.run(command, check=True, capture_output=True)
    return library


def run_with(
    children: Any, shim: Path, path: Path, variable: str, number: int
) -> tuple[int, list[str]]:
    """Exit code and lines of the writer, with the n-th call failing."""
    before = dict(os.environ)
    os.environ.update({"LD_PRELOAD": str(shim), variable: str(number)})
    try:
        code, said = children.run(WRITE, path)
    finally:
        os.environ.clear()
        os.environ.update(before)
    return code, said.splitlines()


@pytest.mark.slow
@pytest.mark.parametrize(("variable", "most"), [("FAIL_SYNC", 40), ("FAIL_META", 20)])
def test_a_failing_sync_or_meta_write_is_final_and_nothing_acknowledged_is_lost(
    place: Any, children: Any, shim: Path, variable: str, most: int
) -> None:
    template = place.close(place.voter("template", 20))
    failures = 0
    for number in range(1, most):
        path = place.root / f"node{number}"
        shutil.copytree(template, path)
        code, lines = run_with(children, shim, path, variable, number)
        if code == 0:
            break
        assert (code, lines[-1]) == (74, "E_STORAGE_IO"), lines
        failures += 1
        acknowledged = [tuple(map(int, line.split())) for line in lines[:-1]]
        term, last = acknowledged[-1] if acknowledged else (2, 20)
        log = place.again(path.name)
        found = log.load()
        assert found.quarantine is None
        assert found.last_index >= last
        assert found.hard_state.term >= term
        if found.hard_state.term == term > 2:
            assert found.hard_state == HardState(term, "n2")
        assert [entry.index for entry in log.read(2, last, 10**6)] == list(range(2, last + 1))
        place.close(log)
    else:
        raise AssertionError("there are always more calls to fail")
    assert failures >= 9


VOTE_FOR_EVER = """
    import itertools, sys
    from raftcore.core.types import HardState
    from raftcore.storage.base import Write
    from raftcore.storage.directory import DataDirectory
    from raftcore.storage.lmdb_log import open_log
    from raftcore.testing.storage_model import commands
    log = open_log(DataDirectory.open(sys.argv[1], "n1"))
    found = log.load()
    last, commit = found.last_index, found.commit_hint
    assert found.quarantine is None, found.quarantine
    for term in itertools.count(found.hard_state.term + 1):
        cut = commit + 1 if term % 3 == 0 and last > commit else None
        first = (cut or last + 1)
        entries = commands(first, first + 400, term)
        log.persist([Write(HardState(term, f"n{term % 3}"), cut, entries)])
        last = first + 400
        commit = max(commit, last - 300)
        log.persist([Write(None, None, (), commit)])
        print(term, commit, flush=True)
"""


def test_repeated_kills_lose_no_vote_and_raise_no_alarm(place: Any, children: Any) -> None:
    """Terms, votes, entries and truncations below FLOOR, killed at any moment of them."""
    path = place.close(place.voter("node", 20))
    for round_number in range(8):
        child = children.start(VOTE_FOR_EVER, path)
        for _ in range(2 + 5 * round_number):
            assert child.stdout.readline()
        child.send_signal(signal.SIGKILL)
        said = [tuple(map(int, line.split())) for line in child.stdout.read().splitlines()]
        child.wait()
        log = place.again("node")
        found = log.load()
        assert found.quarantine is None
        assert found.hard_state.vote == f"n{found.hard_state.term % 3}"
        if said:
            term, commit = said[-1]
            assert found.hard_state.term >= term
            assert found.last_index >= commit
        place.close(log)


# -- a full disk ----------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB of its own."""
    mount, umount = shutil.which("mount"), shutil.which("umount")
    target = tmp_path / "disk"
    target.mkdir()
    if os.geteuid() != 0 or mount is None or umount is None:
        pytest.skip("only root can mount a small file system")
    command = [mount, "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(target)]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    yield target
    subprocess.run([umount, "-l", str(target)], check=True, capture_output=True)


FILL = """
    import sys
    from raftcore.core.types import HardState
    from raftcore.errors import StorageError
    from raftcore.storage.base import Write
    from raftcore.storage.directory import DataDirectory
    from raftcore.storage.lmdb_log import open_log
    from raftcore.testing.storage_model import commands
    log = open_log(DataDirectory.open(sys.argv[1], "n1"), map_size_bytes=2**26)
    last = log.load().last_index
    try:
        while True:
            log.persist([Write(None, None, commands(last + 1, last + 4, 2, bytes(5000)))])
            last += 4
    except StorageError as error:
        print(last, error.code, flush=True)
        sys.exit(error.exit_code)
"""


def test_a_full_disk_ends_the_run_and_a_start_with_space_finds_everything(
    place: Any, children: Any, small_disk: Path
) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(2**20))
    place.root = small_disk
    path = place.close(place.voter("node", 5))
    code, said = children.run(FILL, path)
    last, error = said.split()
    assert (code, error) == (75, "E_NO_SPACE")
    assert int(last) > 5
    ballast.unlink()
    log = place.again("node")
    found = log.load()
    assert found.quarantine is None
    assert found.last_index >= int(last)
    assert log.read(6, int(last), 10**9) == list(commands(6, int(last), 2, bytes(5000)))
    place.close(log)


# -- cut anywhere ---------------------------------------------------------------------------------

OPEN_MANY = """
    import shutil, sys
    from pathlib import Path
    from raftcore.errors import StorageError
    from raftcore.storage.directory import DataDirectory
    from raftcore.storage.lmdb_log import open_log
    template, copy = Path(sys.argv[1]), Path(sys.argv[2])
    whole = (template / "log" / "data.mdb").stat().st_size
    for kept in range(0, whole, 1000):
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(template, copy)
        with (copy / "log" / "data.mdb").open("r+b") as file:
            file.truncate(kept)
        directory = DataDirectory.open(copy, "n1")
        try:
            log = open_log(directory)
        except StorageError as error:
            print(kept, error.code, flush=True)
        else:
            print(kept, "opened", log.load().last_index, flush=True)
            log.close()
        directory.close()
    print("done", flush=True)
"""


def test_a_log_cut_at_any_thousand_bytes_never_kills_its_reader(place: Any, children: Any) -> None:
    """By a signal of the memory map, that is: it is refused before it is mapped."""
    for stop in (place.close, place.crash):
        name = stop.__name__
        path = stop(place.voter(name, 400))
        code, said = children.run(OPEN_MANY, path, place.root / "copy")
        lines = said.splitlines()
        assert (code, lines[-1]) == (0, "done"), said[-500:]
        assert len(lines) > 50
        for line in lines[:-1]:
            assert line.split()[1:] in (["E_TRUNCATED"], ["E_LOG_CORRUPT"], ["opened", "400"]), line
