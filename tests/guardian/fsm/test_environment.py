from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmdb
import pytest

from guardian.fsm import environment as environment_module
from guardian.fsm.commands import ConfigWritten, CreateConfig, UpdateConfig
from guardian.fsm.handle import Handle, SnapshotAbortedError
from guardian.fsm.machine import GuardianMachine
from guardian.fsm.mark import Mark, boot_id
from guardian.fsm.records import CONFIGS, CORE, CORE_KEY, CoreRecord, joined
from guardian.fsm.tables import StateCorruptError
from raftcore.errors import ForkedError, NoSpaceError, StorageError
from raftcore.statemachine import AppliedPosition
from raftcore.storage.files import Files

EMPTY = AppliedPosition()


class BrokenEnvBase:
    """Stands before a real environment and breaks some of its calls."""

    def __init__(self, env: Any) -> None:
        self._env = env

    def __getattr__(self, name: str) -> Any:
        return getattr(self._env, name)


class BrokenEnv(BrokenEnvBase):
    """An environment whose sync fails, as after EIO."""

    def sync(self, force: bool) -> None:
        raise lmdb.DiskError("Input/output error", 5)


def write_some(driver: Any, count: int = 5) -> None:
    for i in range(count):
        assert isinstance(driver.do(CreateConfig, "p", f"c{i}", "s", 1, b"x" * 100), ConfigWritten)


def test_a_clean_close_is_reused_with_everything(driver: Any) -> None:
    write_some(driver)
    before = (driver.machine.last_applied(), driver.state.state_hash())
    driver.machine.close()
    mark = Mark.read(driver.path)
    assert mark is not None
    assert mark.clean
    driver.machine = driver._open()
    assert (driver.machine.last_applied(), driver.state.state_hash()) == before
    mark = Mark.read(driver.path)
    assert mark is not None
    assert not mark.clean, "from the first moment on, what is written is not synced"


def test_a_mark_is_there_before_anything_is_committed(tmp_path: Path, monkeypatch: Any) -> None:
    order: list[str] = []
    original_tables = Handle.open_tables
    original_mark = Mark.write

    def open_tables(self: Any) -> None:
        order.append("commit")
        original_tables(self)

    def write(self: Mark, directory: Path, files: Files) -> None:
        original_mark(self, directory, files)
        order.append("mark clean" if self.clean else "mark")

    monkeypatch.setattr(Handle, "open_tables", open_tables)
    monkeypatch.setattr(Mark, "write", write)
    machine = GuardianMachine.open(tmp_path / "state", cluster_id="c", incarnation=bytes(16))
    machine.close()
    assert order == ["mark", "commit", "mark clean"]


def test_what_belongs_to_another_cluster_is_discarded(driver: Any) -> None:
    driver.machine.close()
    machine = GuardianMachine.open(driver.path, cluster_id="other", incarnation=bytes(16))
    assert machine.last_applied() == EMPTY
    machine.close()


def test_a_state_without_mark_is_discarded(driver: Any) -> None:
    driver.machine.close()
    (driver.path / "MARK").unlink()
    driver.machine = driver._open()
    assert driver.machine.last_applied() == EMPTY
    assert not driver.state.project_exists("p")


def test_leftovers_of_an_interrupted_replacement_are_removed(driver: Any) -> None:
    driver.machine.close()
    for suffix in (".new", ".old"):
        shutil.copytree(driver.path, driver.path.with_name("state" + suffix))
    driver.machine = driver._open()
    assert sorted(p.name for p in driver.path.parent.iterdir()) == ["state"]
    assert driver.state.project_exists("p")


def test_a_damaged_structure_is_found_before_it_is_mapped(
    new_driver: Callable[..., Any], tmp_path: Path
) -> None:
    driver = new_driver()
    driver.furnish()
    write_some(driver, 200)
    driver.machine.sync()
    driver.machine.close()
    mark = Mark.read(driver.path)
    assert mark is not None
    data = driver.path / "data.mdb"
    raw = bytearray(data.read_bytes())
    for page in range(2 * 4096, len(raw), 4096):  # all but the two meta pages
        raw[page : page + 16] = b"\xff" * 16
    with data.open("r+b") as file:  # in place, so that the inode stays
        file.write(raw)
    unclean = Mark(
        boot_id(), mark.device, mark.inode, mark.cluster_id, mark.incarnation,
        clean=False,
    )  # fmt: skip
    unclean.write(driver.path, Files())
    driver.machine = driver._open()
    assert driver.machine.last_applied() == EMPTY
    driver.machine.close()


def test_a_truncated_file_is_discarded_not_mapped(new_driver: Callable[..., Any]) -> None:
    driver = new_driver()
    driver.furnish()
    write_some(driver, 200)
    driver.machine.close()
    mark = Mark.read(driver.path)
    assert mark is not None
    os.truncate(driver.path / "data.mdb", 4096 * 3)
    Mark(
        boot_id(), mark.device, mark.inode, mark.cluster_id, mark.incarnation,
        clean=False,
    ).write(driver.path, Files())  # fmt: skip
    driver.machine = driver._open()
    assert driver.machine.last_applied() == EMPTY
    driver.machine.close()


@pytest.mark.parametrize("garbage", [bytes(8192), b"\xa5" * 8192])
def test_a_clean_file_that_is_no_environment_is_discarded(driver: Any, garbage: bytes) -> None:
    driver.machine.close()
    with (driver.path / "data.mdb").open("r+b") as file:
        file.write(garbage)
    driver.machine = driver._open()
    assert driver.machine.last_applied() == EMPTY


class FailingFiles(Files):
    """Fails every fsync of a file or directory whose name holds a word."""

    def __init__(self) -> None:
        self.word = ""

    def fsync_directory(self, path: Path) -> None:
        if self.word and self.word in path.name:
            raise OSError(5, "Input/output error")
        super().fsync_directory(path)

    def rename(self, source: Path, target: Path) -> None:
        if self.word and self.word in target.name:
            raise OSError(5, "Input/output error")
        super().rename(source, target)

    def remove(self, path: Path) -> None:
        if self.word == "everything":
            raise OSError(5, "Input/output error")
        super().remove(path)


@pytest.mark.parametrize("word", ["state.new", "state.old"])
def test_a_failed_replacement_is_final(new_driver: Callable[..., Any], word: str) -> None:
    files = FailingFiles()
    driver = new_driver(files=files)
    driver.furnish()
    files.word = word
    with pytest.raises(StorageError):
        driver.machine.discard()
    with pytest.raises(StorageError):
        driver.state.revision()
    files.word = ""
    driver.machine.close()
    driver.machine = driver._open()
    assert driver.machine.last_applied() == EMPTY
    driver.machine.close()


def test_a_mark_that_can_not_be_removed_does_not_hide_the_error(
    new_driver: Callable[..., Any], caplog: Any
) -> None:
    files = FailingFiles()
    driver = new_driver(files=files)
    driver.furnish()
    flip_value(driver, CORE.number, CORE_KEY, 50)
    files.word = "everything"
    with pytest.raises(StateCorruptError):
        driver.state.revision()
    assert "can not be removed" in caplog.text
    files.word = ""
    driver.machine.close()


class RefusingEnv(BrokenEnvBase):
    """An environment that begins no transaction and grows no map."""

    def begin(self, *args: Any, **kwargs: Any) -> Any:
        raise lmdb.PanicError("MDB_PANIC", -30795)

    def set_mapsize(self, size: int) -> None:
        raise lmdb.PanicError("MDB_PANIC", -30795)


@pytest.mark.parametrize("use", ["read", "pin", "apply", "grow"])
def test_whatever_the_engine_refuses_is_final(driver: Any, use: str) -> None:
    environment = driver.machine._environment
    handle = environment._current
    handle.env = RefusingEnv(handle.env)
    uses: dict[str, Callable[[], Any]] = {
        "read": driver.state.revision,
        "pin": driver.machine.open_snapshot,
        "apply": lambda: driver.do(CreateConfig, "p", "a", "s", 1, b"1"),
        "grow": environment.grow,
    }
    with pytest.raises(StorageError, match="MDB_PANIC"):
        uses[use]()
    with pytest.raises(StorageError, match="MDB_PANIC"):
        driver.machine.sync()
    assert not (driver.path / "MARK").exists()


def test_a_read_that_never_ends_stops_growth_by_an_error(driver: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(environment_module, "READERS_TIMEOUT_S", 0.01)
    environment = driver.machine._environment
    with environment.read(), pytest.raises(StorageError, match="does not end"):
        environment.grow()
    with pytest.raises(StorageError, match="does not end"):
        driver.state.revision()


def flip_value(driver: Any, table: int, key: bytes, bit: int) -> None:
    """Flip one bit of a stored value, behind everyone's back."""
    handle = driver.machine._environment._current
    with handle.env.begin(write=True) as txn:
        raw = bytearray(txn.get(key, db=handle.databases[table]))
        raw[bit // 8 % len(raw)] ^= 1 << bit % 8
        txn.put(key, bytes(raw), db=handle.databases[table])


@pytest.mark.parametrize("bit", [0, 31, 32, 100, 999])
def test_a_flipped_bit_is_never_served_and_is_final(driver: Any, bit: int) -> None:
    write_some(driver)
    flip_value(driver, CONFIGS.number, joined("p", "c1"), bit)
    with pytest.raises(StateCorruptError):
        driver.state.config("p", "c1")
    with pytest.raises(StateCorruptError):
        driver.state.config("p", "c2")
    with pytest.raises(StateCorruptError):
        driver.do(UpdateConfig, "p", "c2", "s", 1, b"2", 1)
    driver.machine.close()
    assert not (driver.path / "MARK").exists()
    driver.machine = driver._open()
    assert driver.machine.last_applied() == EMPTY, "the node rebuilds it"


def test_a_flipped_bit_met_while_applying_is_final(driver: Any) -> None:
    write_some(driver)
    flip_value(driver, CONFIGS.number, joined("p", "c1"), 77)
    with pytest.raises(StateCorruptError):
        driver.do(UpdateConfig, "p", "c1", "s", 1, b"2", 1)
    assert not (driver.path / "MARK").exists()


def test_a_value_under_another_key_is_not_taken_for_it(driver: Any) -> None:
    write_some(driver)
    handle = driver.machine._environment._current
    db = handle.databases[CONFIGS.number]
    with handle.env.begin(write=True) as txn:
        txn.put(joined("p", "c1"), txn.get(joined("p", "c2"), db=db), db=db)
    with pytest.raises(StateCorruptError):
        driver.state.config("p", "c1")


def test_a_damaged_core_record_is_found_at_open_and_the_state_rebuilt(driver: Any) -> None:
    flip_value(driver, CORE.number, CORE_KEY, 50)
    driver.machine.close()
    driver.machine = driver._open()
    assert driver.machine.last_applied() == EMPTY
    driver.log.clear()
    del driver.chains[1:]
    driver.furnish()
    assert driver.state.project_exists("p")


def test_a_core_record_of_another_format_is_rebuilt(driver: Any) -> None:
    with driver.machine._environment.write() as view:
        CORE.put(view, CORE_KEY, CoreRecord(format=99, index=5))
    driver.machine.close()
    driver.machine = driver._open()
    assert driver.machine.last_applied() == EMPTY


def test_the_map_grows_and_the_batch_is_repeated_once(new_driver: Callable[..., Any]) -> None:
    driver = new_driver(map_size_bytes=512 * 1024)
    driver.furnish()
    contents = [bytes([i]) * 100_000 for i in range(40)]
    for i, content in enumerate(contents):
        result = driver.do(CreateConfig, "p", f"c{i:02}", "s", 1, content)
        assert isinstance(result, ConfigWritten)
    assert [c.content for c in driver.state.configs("p", "", 100)] == contents
    assert driver.machine.last_applied() == driver.position(42)
    driver.machine.close()


def test_a_batch_larger_than_the_map_gets_all_the_room_it_needs(
    new_driver: Callable[..., Any],
) -> None:
    driver = new_driver(map_size_bytes=512 * 1024)
    driver.furnish()
    content = bytes(5_000_000)
    assert driver.do(CreateConfig, "p", "a", "s", 1, content).version == 1
    assert driver.state.config("p", "a").content == content
    driver.machine.close()


def test_a_map_that_is_full_again_after_growing_is_final(
    new_driver: Callable[..., Any], monkeypatch: Any
) -> None:
    driver = new_driver(map_size_bytes=512 * 1024)
    driver.furnish()
    monkeypatch.setattr(driver.machine._environment, "grow", lambda needed_bytes=0: None)
    with pytest.raises(StorageError):
        driver.do(CreateConfig, "p", "a", "s", 1, bytes(5_000_000))
    with pytest.raises(StorageError):
        driver.state.revision()
    driver.machine.close()


def test_a_map_at_its_limit_is_out_of_space_and_still_readable(
    new_driver: Callable[..., Any],
) -> None:
    driver = new_driver(map_size_bytes=512 * 1024, map_limit_bytes=1024 * 1024)
    driver.furnish()
    written: list[str] = []

    def fill() -> None:
        for i in range(100):
            driver.do(CreateConfig, "p", f"c{i:02}", "s", 1, bytes(50_000))
            written.append(f"c{i:02}")

    with pytest.raises(NoSpaceError):
        fill()
    assert len(written) > 5
    assert [c.key for c in driver.state.configs("p", "", 100)] == written
    driver.machine.close()


def test_growth_ends_a_snapshot_that_takes_too_long(new_driver: Callable[..., Any]) -> None:
    driver = new_driver(map_size_bytes=512 * 1024, snapshot_wait_s=0.0)
    driver.furnish()
    driver.do(CreateConfig, "p", "first", "s", 1, bytes(50_000))
    source = driver.machine.open_snapshot()
    records = source.records()
    next(records)
    for i in range(20):
        driver.do(CreateConfig, "p", f"c{i:02}", "s", 1, bytes(50_000))
    with pytest.raises(SnapshotAbortedError):
        list(records)
    source.close()
    assert driver.state.config("p", "c19") is not None
    driver.machine.close()


def test_growth_waits_for_a_snapshot(new_driver: Callable[..., Any]) -> None:
    driver = new_driver(map_size_bytes=512 * 1024, snapshot_wait_s=60.0)
    driver.furnish()
    source = driver.machine.open_snapshot()
    received: list[bytes] = []
    waiting = threading.Event()
    condition = driver.machine._environment._condition
    original = condition.wait_for

    def wait_for(predicate: Any, timeout: float | None = None) -> Any:
        waiting.set()
        return original(predicate, timeout)

    condition.wait_for = wait_for

    def stream() -> None:
        waiting.wait(60)
        received.extend(source.records())
        source.close()

    thread = threading.Thread(target=stream)
    thread.start()
    for i in range(20):
        driver.do(CreateConfig, "p", f"c{i:02}", "s", 1, bytes(50_000))
    thread.join(60)
    assert waiting.is_set()
    assert len(received) > 2
    driver.machine.close()


def test_a_failed_commit_is_final(driver: Any, monkeypatch: Any) -> None:
    write_some(driver, 1)
    environment = driver.machine._environment
    environment.fail(lmdb.DiskError("Input/output error", 5), "write")
    for use in (
        lambda: driver.do(CreateConfig, "p", "z", "s", 1, b"1"),
        lambda: driver.state.config("p", "c0"),
        driver.machine.sync,
        driver.machine.open_snapshot,
        driver.machine.discard,
    ):
        with pytest.raises(StorageError, match="Input/output error"):
            use()
    assert not (driver.path / "MARK").exists()


def test_a_failed_sync_is_final_and_removes_the_mark(driver: Any) -> None:
    handle = driver.machine._environment._current
    handle.env = BrokenEnv(handle.env)
    with pytest.raises(StorageError):
        driver.machine.sync()
    assert not (driver.path / "MARK").exists()
    with pytest.raises(StorageError):
        driver.state.revision()
    driver.machine.close()


def test_a_failed_sync_at_close_leaves_no_clean_mark(driver: Any) -> None:
    handle = driver.machine._environment._current
    handle.env = BrokenEnv(handle.env)
    with pytest.raises(StorageError):
        driver.machine.close()
    assert not (driver.path / "MARK").exists()
    driver.machine = driver._open()
    assert driver.machine.last_applied() == EMPTY


def test_sync_may_run_beside_everything(driver: Any) -> None:
    write_some(driver)
    driver.machine.sync()
    write_some_more = driver.do(CreateConfig, "p", "more", "s", 1, b"1")
    assert isinstance(write_some_more, ConfigWritten)


def test_after_close_every_use_is_refused(driver: Any) -> None:
    state = driver.state
    driver.machine.close()
    driver.machine.close()
    with pytest.raises(StorageError, match="closed"):
        state.revision()
    with pytest.raises(StorageError, match="closed"):
        driver.do(CreateConfig, "p", "z", "s", 1, b"1")


def test_closing_ends_an_open_snapshot(driver: Any) -> None:
    source = driver.machine.open_snapshot()
    driver.machine.close()
    with pytest.raises(SnapshotAbortedError):
        list(source.records())
    source.close()
    driver.machine = driver._open()
    assert driver.state.project_exists("p")


def test_a_forked_child_may_not_use_the_state(driver: Any, monkeypatch: Any) -> None:
    parent = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: parent + 1)
    with pytest.raises(ForkedError):
        driver.state.revision()
    monkeypatch.undo()
    assert driver.state.revision() == 2


def test_a_directory_that_can_not_be_made_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError):
        GuardianMachine.open(tmp_path / "file" / "state", cluster_id="c", incarnation=bytes(16))


def test_the_files_are_for_the_owner_only(driver: Any) -> None:
    assert driver.path.stat().st_mode & 0o777 == 0o700
    assert {p.stat().st_mode & 0o077 for p in driver.path.iterdir()} == {0}


def test_reads_go_on_while_batches_are_applied_and_the_map_grows(
    new_driver: Callable[..., Any],
) -> None:
    driver = new_driver(map_size_bytes=512 * 1024)
    driver.furnish()
    driver.do(CreateConfig, "p", "a", "s", 1, b"1".zfill(4_000))
    stop = threading.Event()
    errors: list[BaseException] = []
    seen: list[int] = []

    def read() -> None:
        try:
            while not stop.is_set():
                config = driver.state.config("p", "a")
                assert int(config.content) == config.version
                if not seen or seen[-1] != config.version:
                    seen.append(config.version)
        except BaseException as error:  # noqa: BLE001 - reported below
            errors.append(error)

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    for version in range(1, 300):
        content = str(version + 1).encode().zfill(4_000)
        driver.do(UpdateConfig, "p", "a", "s", 1, content, version)
    stop.set()
    for thread in threads:
        thread.join(60)
    assert errors == []
    assert driver.state.config("p", "a").version == 300
    driver.machine.close()


def test_no_long_view_begins_while_the_map_grows(driver: Any) -> None:
    """LMDB would let the map move under it."""
    environment = driver.machine._environment
    handle = environment._current
    growing, pinned = threading.Event(), threading.Event()
    original = handle.grow
    seen: list[bool] = []

    def grow(size_bytes: int) -> None:
        growing.set()
        # the other thread can not have its view before this returns: the condition is held
        seen.append(pinned.is_set() or bool(handle.pins))
        original(size_bytes)

    handle.grow = grow

    def verify() -> None:
        growing.wait(60)
        view = environment.pin()
        pinned.set()
        with view.step() as tables:
            assert tables.first_key(CORE.number) == CORE_KEY
        view.close()
        view.close()

    thread = threading.Thread(target=verify)
    thread.start()
    environment.grow()
    thread.join(60)
    assert seen == [False]
    assert pinned.is_set()
    assert not handle.pins


def test_a_file_that_can_not_be_verified_is_discarded(driver: Any) -> None:
    driver.machine.close()
    mark = Mark.read(driver.path)
    assert mark is not None
    with (driver.path / "data.mdb").open("r+b") as file:
        file.write(bytes(8192))
    Mark(boot_id(), mark.device, mark.inode, mark.cluster_id, mark.incarnation, clean=False).write(
        driver.path, Files()
    )
    driver.machine = driver._open()
    assert driver.machine.last_applied() == EMPTY


def test_history_longer_than_a_step_is_verified_whole(driver: Any) -> None:
    driver.run_all([driver.make(CreateConfig, "p", f"c{i:04}", "s", 1, b"1") for i in range(600)])
    assert driver.state.verify_chain() == 603
