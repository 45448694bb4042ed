"""The LMDB log: its flags, its one transaction per write, its threads, its first and last error."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import signal
import threading
from collections.abc import Callable
from typing import Any

import lmdb
import pytest

from raftcore.core.types import HardState
from raftcore.errors import (
    ExitCode,
    ForkedError,
    IdentityError,
    LogCorruptError,
    NoSpaceError,
    StorageError,
)
from raftcore.storage import latch
from raftcore.storage.base import Write
from raftcore.storage.environment import Environment
from raftcore.storage.files import storage_error
from raftcore.testing.storage_model import begin_term, commands, take_snapshot


def append(log: Any, first: int, last: int, data: bytes = b"x") -> None:
    log.persist([Write(None, None, commands(first, last, 2, data))])


# -- the environment ------------------------------------------------------------------------------


def test_the_environment_has_exactly_the_promised_flags(place: Any) -> None:
    env = place.create("node")._environment.env
    flags = env.flags()
    assert {name: flags[name] for name in ("sync", "metasync", "writemap", "map_async")} == {
        "sync": True,
        "metasync": True,
        "writemap": False,
        "map_async": False,
    }
    assert flags["lock"]
    assert flags["readahead"]
    assert flags["meminit"]
    assert env.max_readers() == 64


def test_one_persist_is_one_transaction(place: Any) -> None:
    log = place.create("node")
    env = log._environment.env
    before = env.info()["last_txnid"]
    log.persist([Write(HardState(2), None, commands(2, 60, 2)), Write(HardState(3), 40, ())])
    assert env.info()["last_txnid"] == before + 1
    log.persist([Write(HardState(3), None, ())])  # nothing new: nothing to make durable
    assert env.info()["last_txnid"] == before + 1


def test_opening_commits_durably_before_anything_is_asserted(place: Any) -> None:
    log = place.create("node")
    assert log.runs == 1
    assert place.reopen(log).runs == 2


def test_a_directory_without_identity_has_no_log(place: Any) -> None:
    with pytest.raises(IdentityError, match="no identity"):
        place.log(place.directory("node"))


def test_load_is_called_once(place: Any) -> None:
    log = place.create("node")
    log.load()
    with pytest.raises(AssertionError):
        log.load()


# -- threads --------------------------------------------------------------------------------------


async def test_writing_on_the_loops_thread_is_refused(place: Any) -> None:
    log = await asyncio.to_thread(place.create, "node")
    with pytest.raises(AssertionError, match="event loop"):
        begin_term(log, 2)


def test_writing_from_a_second_thread_is_refused(place: Any) -> None:
    log = place.create("node")
    begin_term(log, 2)
    caught: list[BaseException] = []

    def write() -> None:
        try:
            append(log, 2, 3)
        except AssertionError as error:
            caught.append(error)

    thread = threading.Thread(target=write)
    thread.start()
    thread.join()
    assert "one thread" in str(caught[0])
    assert log.read(2, 3, 100) == []


def test_readers_in_other_threads_see_every_returned_write(place: Any) -> None:
    log = place.create("node")
    begin_term(log, 2)
    written, wrong = [1], []
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            last = written[0]
            entries = log.read(1, last, 10**9)
            if [entry.index for entry in entries] != list(range(1, last + 1)):
                wrong.append(last)
            if len(log.chain_at(last)) != 32:
                wrong.append(last)

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    for first in range(2, 200, 2):
        append(log, first, first + 1)
        written[0] = first + 1
    stop.set()
    for thread in threads:
        thread.join()
    assert wrong == []


# -- the map --------------------------------------------------------------------------------------


def test_a_full_map_grows_and_the_same_batch_is_written(place: Any) -> None:
    log = place.log(_bootstrapped(place), map_size_bytes=2**18)
    begin_term(log, 2)
    for first in range(2, 22, 2):
        append(log, first, first + 1, bytes(60_000))
    append(log, 22, 40, bytes(200_000))  # needs more than one doubling
    assert log._environment.env.info()["map_size"] > 2**20
    found = place.reopen(log).load()
    assert found.last_index == 40


def test_growth_waits_for_our_own_readers(place: Any) -> None:
    log = place.log(_bootstrapped(place), map_size_bytes=2**18)
    begin_term(log, 2)
    inside, leave = threading.Event(), threading.Event()
    seen: list[bytes] = []

    def read() -> None:
        with log._transactions.reading("a test") as txn:
            inside.set()
            leave.wait(10)
            seen.append(txn.get(b"format", db=log._environment.meta))

    reader = threading.Thread(target=read)
    reader.start()
    inside.wait(10)
    threading.Timer(0.05, leave.set).start()
    append(log, 2, 9, bytes(60_000))
    assert leave.is_set()
    reader.join()
    assert seen[0].startswith(b"{")


def test_readers_that_do_not_leave_are_a_storage_error(
    place: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latch, "READERS_TIMEOUT_S", 0.01)
    guard = latch.ReaderGuard()
    with guard.reading(), pytest.raises(StorageError, match="readers"), guard.exclusive():
        pass
    with guard.exclusive(), pytest.raises(StorageError, match="readers"), guard.reading():
        pass
    with guard.exclusive():
        pass


def test_a_map_at_its_limit_is_no_space_and_final(place: Any) -> None:
    log = place.log(_bootstrapped(place), map_size_bytes=2**18, map_limit_bytes=2**19)
    begin_term(log, 2)
    with pytest.raises(NoSpaceError) as caught:
        append(log, 2, 9, bytes(200_000))
    assert caught.value.exit_code is ExitCode.NO_SPACE
    with pytest.raises(NoSpaceError):
        append(log, 2, 2)
    assert place.reopen(log).load().last_index == 1


def _bootstrapped(place: Any) -> Any:
    directory = place.directory("node")
    place.bootstrap(directory)
    return directory


# -- the first error is the last -------------------------------------------------------------------


def lmdb_error(kind: type[lmdb.Error], code: int) -> lmdb.Error:
    """An error as the binding raises it: only its C side fills ``code`` in."""
    error = kind("mdb_txn_commit: a fault")
    vars(error)["code"] = code
    return error


@pytest.mark.parametrize(
    ("error", "kind", "code"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), NoSpaceError, 75),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), NoSpaceError, 75),
        (OSError(errno.EIO, "Input/output error"), StorageError, 74),
        (lmdb_error(lmdb.Error, errno.ENOSPC), NoSpaceError, 75),
        (lmdb_error(lmdb.Error, errno.EIO), StorageError, 74),
        (lmdb_error(lmdb.PanicError, -30795), StorageError, 74),
    ],
)
def test_errors_get_their_type_and_exit_code(
    error: Exception, kind: type[StorageError], code: int
) -> None:
    found = storage_error(error, "writing")
    assert type(found) is kind
    assert found.exit_code == code
    assert storage_error(found, "again") is found


def test_after_the_first_error_every_call_raises_it(
    place: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = place.filled("node", 9)
    shape = log._shape

    def fail(self: Environment, txn: Any, old: Any, new: Any) -> None:
        raise lmdb.DiskError("mdb_txn_commit", errno.EIO)

    with monkeypatch.context() as patch:
        patch.setattr(Environment, "put_shape", fail)
        with pytest.raises(StorageError) as first:
            append(log, 10, 12)
    assert first.value.exit_code is ExitCode.STORAGE_IO
    meta_uses = [
        lambda: append(log, 10, 12),
        lambda: log.read(1, 5, 100),
        lambda: log.chain_at(9),
        lambda: log.compact(1),
        log.newest_snapshot,
        log.load,
        lambda: log.begin_snapshot(5, 2, bytes(32), None),
        lambda: log.receive_snapshot(None),
        lambda: log.adopt_snapshot(None),
        lambda: log.install_snapshot(None),
        lambda: log.read_snapshot_chunk(None, 0, 1),
        lambda: list(log.snapshot_records(None)),
    ]
    for use in meta_uses:
        with pytest.raises(StorageError) as again:
            use()
        assert again.value is first.value
    assert log._shape is shape
    assert place.reopen(log).load().last_index == 9


@pytest.mark.parametrize(("free_blocks", "kind"), [(0, NoSpaceError), (10**6, StorageError)])
def test_a_short_write_on_a_full_disk_is_no_space(
    place: Any, monkeypatch: pytest.MonkeyPatch, free_blocks: int, kind: type[StorageError]
) -> None:
    """LMDB calls a short write an I/O error even when the disk is simply full."""
    log = place.filled("node", 9)

    def fail(self: Environment, txn: Any, old: Any, new: Any) -> None:
        raise lmdb_error(lmdb.Error, errno.EIO)

    status = os.statvfs(place.root)
    free = (free_blocks, free_blocks)
    full = os.statvfs_result((status.f_bsize, 4096, 10**7, *free, 1, 1, 1, 0, 255))
    with monkeypatch.context() as patch:
        patch.setattr(Environment, "put_shape", fail)
        patch.setattr("raftcore.storage.transactions.os.statvfs", lambda _: full)
        with pytest.raises(StorageError) as caught:
            append(log, 10, 12)
    assert type(caught.value) is kind


@pytest.mark.parametrize(
    ("failing", "use"),
    [
        ("log_reader.checked_entry", lambda log, _: log.read(1, 5, 10**6)),
        ("environment.Environment.get_link", lambda log, _: log.chain_at(3)),
        ("snapshots.os.pread", lambda log, meta: log.read_snapshot_chunk(meta, 0, 9)),
        ("snapshots.SnapshotDecoder._take", lambda log, meta: list(log.snapshot_records(meta))),
    ],
    ids=["entries", "chain", "snapshot chunk", "snapshot records"],
)
def test_a_failing_read_is_final_like_a_failing_write(
    place: Any, monkeypatch: pytest.MonkeyPatch, failing: str, use: Callable[[Any, Any], object]
) -> None:
    """Rule 46: what the disk can not read it may not have written either."""
    log = place.filled("node", 9)
    log.adopt_snapshot(take_snapshot(log, 5, [b"one"]))
    meta = log.newest_snapshot()

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(f"raftcore.storage.{failing}", fail)
        with pytest.raises(StorageError, match="Input/output error") as first:
            use(log, meta)
    assert first.value.exit_code is ExitCode.STORAGE_IO
    for after in (lambda: append(log, 10, 12), lambda: log.read(1, 5, 100), log.newest_snapshot):
        with pytest.raises(StorageError) as again:
            after()
        assert again.value is first.value
    path = place.close(log)
    assert not (path / "log" / "CLEAN").exists(), "the next start verifies everything"
    recovered = place.again(path.name).load()
    assert (recovered.last_index, recovered.snapshot) == (9, meta)


def test_a_log_that_failed_is_not_marked_clean(place: Any) -> None:
    log = place.filled("node", 9)
    log._transactions._latch.trip(StorageError("a fault"))
    path = place.close(log)
    assert not (path / "log" / "CLEAN").exists()


FILL = """
    import resource, signal, sys
    from raftcore.core.types import HardState
    from raftcore.errors import StorageError
    from raftcore.storage.base import Write
    from raftcore.storage.directory import DataDirectory
    from raftcore.storage.lmdb_log import open_log
    from raftcore.testing.storage_model import commands
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    log = open_log(DataDirectory.open(sys.argv[1], "n1"))
    log.persist([Write(HardState(2), None, ())])
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, unlimited[1]))
    last = 1
    try:
        while True:
            log.persist([Write(None, None, commands(last + 1, last + 8, 2, bytes(5000)))])
            last += 8
    except StorageError as error:
        print("acknowledged", last, error.code, flush=True)
    resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    try:
        log.persist([Write(None, None, commands(last + 1, last + 1, 2))])
    except StorageError as error:
        print("refused", error.code, flush=True)
        sys.exit(error.exit_code)
    print("accepted after a failed write")
"""


def test_a_disk_that_stops_taking_writes_latches_and_loses_nothing(
    place: Any, children: Any
) -> None:
    """A real short write of the kernel; once it is lifted, the store must still refuse."""
    path = place.close(place.create("node"))
    code, said = children.run(FILL, path)
    words = said.split()
    assert words[0] == "acknowledged"
    assert words[2:] == ["E_STORAGE_IO", "refused", "E_STORAGE_IO"]
    assert code == 74
    log = place.again("node")
    last = int(words[1])
    assert last > 8
    assert [entry.index for entry in log.read(2, last, 10**9)] == list(range(2, last + 1))


# -- fork -----------------------------------------------------------------------------------------


def test_a_forked_child_cannot_use_the_log_and_does_not_disturb_it(place: Any) -> None:
    log = place.filled("node", 9)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        said = []
        for use in (lambda: append(log, 10, 10), lambda: log.read(1, 1, 1), log.close):
            try:
                use()
                said.append("done")
            except ForkedError as error:
                said.append(error.code)
        os.write(writer, " ".join(said).encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(writer)
    assert os.read(reader, 100) == b"E_FORKED E_FORKED done"
    os.close(reader)
    append(log, 10, 12)
    assert place.reopen(log).load().last_index == 12


# -- the end --------------------------------------------------------------------------------------


def test_a_failing_clean_mark_is_reported_and_the_log_is_safe(
    place: Any, faulty_files: Any
) -> None:
    files = faulty_files()
    log = place.filled("node", 9, files)
    files.fail_fsync_at = files.fsyncs
    with pytest.raises(StorageError, match="clean mark"):
        log.close()
    log._directory.close()
    assert place.again("node").load().last_index == 9


WRITE_FOR_EVER = """
    import sys
    from raftcore.core.types import HardState
    from raftcore.storage.base import Write
    from raftcore.storage.directory import DataDirectory
    from raftcore.storage.lmdb_log import open_log
    from raftcore.testing.storage_model import commands
    log = open_log(DataDirectory.open(sys.argv[1], "n1"))
    last = log.load().last_index
    log.persist([Write(HardState(2), None, ())])
    while True:
        log.persist([Write(None, None, commands(last + 1, last + 20, 2, bytes(50)))])
        last += 20
        print(last, flush=True)
"""


def test_everything_acknowledged_survives_repeated_kills(place: Any, children: Any) -> None:
    path = place.close(place.create("node"))
    for round_number in range(5):
        child = children.start(WRITE_FOR_EVER, path)
        for _ in range(3 + 7 * round_number):
            child.stdout.readline()
        child.send_signal(signal.SIGKILL)
        acknowledged = [int(line) for line in child.stdout.read().split()]
        child.wait()
        log = place.again("node")
        found = log.load()
        assert found.hard_state == HardState(2)
        assert found.last_index >= max(acknowledged, default=1)
        entries = log.read(2, found.last_index, 10**9)
        assert entries == list(commands(2, found.last_index, 2, bytes(50)))
        place.close(log)


def test_resource_limits_of_this_process_were_left_alone() -> None:
    """The disk-full test limits its child only; a leak would make other tests fail strangely."""
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


def test_a_missing_entry_in_the_middle_is_corruption_and_final(place: Any) -> None:
    log = place.filled("node", 9)
    with log._environment.env.begin(write=True) as txn:
        txn.delete((5).to_bytes(8, "big"), db=log._environment.entries)
    assert [entry.index for entry in log.read(5, 9, 100)] == []
    with pytest.raises(LogCorruptError, match="entry 5 is missing"):
        log.read(4, 9, 10**6)
    with pytest.raises(LogCorruptError):
        log.read(1, 2, 100)


def test_an_entry_missing_below_a_truncation_is_corruption(place: Any) -> None:
    log = place.filled("node", 9)
    append(log, 10, 20)
    with log._environment.env.begin(write=True) as txn:
        txn.delete((14).to_bytes(8, "big"), db=log._environment.entries)
    with pytest.raises(LogCorruptError, match="entry 14 is missing"):
        log.persist([Write(None, 15, ())])


def test_an_append_below_what_is_stored_is_never_skipped_in_silence(place: Any) -> None:
    """LMDB's append mode ignores a key that is out of order; the store must not."""
    log = place.filled("node", 9)
    with (
        pytest.raises(LogCorruptError, match="only 1 of 2"),
        log._environment.env.begin(write=True) as txn,
    ):
        log._environment.put_values(txn, 9, (b"nine", b"ten"))


def test_an_engine_that_does_not_open_is_a_storage_error(
    place: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = place.close(place.filled("node", 9))

    def fail(*arguments: Any, **options: Any) -> None:
        raise lmdb_error(lmdb.Error, errno.ENOMEM)

    monkeypatch.setattr(lmdb, "open", fail)
    with pytest.raises(StorageError, match="opening") as caught:
        place.again(path.name)
    assert caught.value.exit_code is ExitCode.STORAGE_IO
    directory = place.directory("other")
    with pytest.raises(StorageError, match="creating the log"):
        place.bootstrap(directory)


def test_a_disk_that_does_not_even_say_how_full_it_is(
    place: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = place.filled("node", 9)

    def fail(path: str) -> None:
        raise OSError(errno.EIO, "Input/output error")

    def fail_write(self: Environment, txn: Any, old: Any, new: Any) -> None:
        raise lmdb_error(lmdb.Error, errno.EIO)

    with monkeypatch.context() as patch:
        patch.setattr(Environment, "put_shape", fail_write)
        patch.setattr("raftcore.storage.transactions.os.statvfs", fail)
        with pytest.raises(StorageError, match="then"):
            append(log, 10, 12)
    with pytest.raises(StorageError, match="then"):
        append(log, 10, 12)
