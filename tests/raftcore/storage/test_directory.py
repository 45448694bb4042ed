"""The data directory: one owner at a time, one identity for ever, a creation that may be cut."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import signal
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raftcore.core.types import Configuration, HardState, Member
from raftcore.errors import (
    BootstrapError,
    ExitCode,
    FormatTooNewError,
    IdentityError,
    LockedError,
    LogCorruptError,
    StorageError,
)
from raftcore.storage.directory import DataDirectory
from raftcore.storage.files import Files
from raftcore.storage.lmdb_log import open_log
from raftcore.storage.records import seal, stamp, unseal

HOLD = """
    import sys
    from raftcore.errors import LockedError
    from raftcore.storage.directory import DataDirectory
    try:
        directory = DataDirectory.open(sys.argv[1], "n1")
    except LockedError as error:
        print(error.code, error)
        sys.exit(error.exit_code)
    print("held", flush=True)
    sys.stdin.read()
"""


def open_directory(path: Path, node_id: str = "n1", **options: Any) -> DataDirectory:
    return DataDirectory.open(path, node_id, **options)


def content_of(path: Path) -> dict[str, str]:
    """A digest of every file below ``path``."""
    return {
        str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(path.rglob("*"))
        if file.is_file()
    }


# -- creation and lock ---------------------------------------------------------------------------


def test_a_new_directory_is_for_the_owner_only_and_has_no_identity(tmp_path: Path) -> None:
    directory = open_directory(tmp_path / "deep" / "node")
    assert stat.S_IMODE(directory.path.stat().st_mode) == 0o700
    assert directory.identity is None
    assert directory.marker() is None
    directory.close()


def test_one_process_cannot_open_a_directory_twice(tmp_path: Path) -> None:
    directory = open_directory(tmp_path / "node")
    with pytest.raises(LockedError) as caught:
        open_directory(tmp_path / "node")
    assert caught.value.exit_code is ExitCode.LOCKED
    assert f"pid {os.getpid()}" in str(caught.value)
    directory.close()
    directory.close()
    open_directory(tmp_path / "node").close()


def test_a_second_process_is_refused_with_its_own_exit_code(tmp_path: Path, children: Any) -> None:
    directory = open_directory(tmp_path / "node")
    code, said = children.run(HOLD, tmp_path / "node")
    assert code == 73
    assert "E_LOCKED" in said
    directory.founding_incarnation()  # the first is undisturbed
    directory.close()


def test_the_lock_is_free_after_its_holder_was_killed(tmp_path: Path, children: Any) -> None:
    holder = children.start(HOLD, tmp_path / "node")
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(LockedError, match=f"pid {holder.pid}"):
        open_directory(tmp_path / "node")
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    open_directory(tmp_path / "node").close()


def test_of_many_starters_exactly_one_wins(tmp_path: Path, children: Any) -> None:
    starters = [children.start(HOLD, tmp_path / "node") for _ in range(6)]
    first_words = [starter.stdout.readline().split()[0] for starter in starters]
    assert sorted(first_words) == ["E_LOCKED"] * 5 + ["held"]


def test_a_forked_child_neither_uses_nor_holds_the_directory(tmp_path: Path, children: Any) -> None:
    """The child lives on after its parent is killed, and the lock is free nevertheless."""
    script = """
        import os, sys
        from raftcore.errors import ForkedError
        from raftcore.storage.directory import DataDirectory
        directory = DataDirectory.open(sys.argv[1], "n1")
        if os.fork() == 0:
            try:
                directory.founding_incarnation()
            except ForkedError as error:
                print(error.code, flush=True)
            sys.stdin.read()
            os._exit(0)
        sys.stdin.read()
    """
    parent = children.start(script, tmp_path / "node")
    assert parent.stdout.readline() == "E_FORKED\n"
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    open_directory(tmp_path / "node").close()


def test_what_the_system_refuses_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError):
        open_directory(tmp_path / "file")
    open_directory(tmp_path / "node").close()
    (tmp_path / "node" / "LOCK").unlink()
    (tmp_path / "node" / "LOCK").mkdir()
    with pytest.raises(StorageError):
        open_directory(tmp_path / "node")


def test_a_failing_lock_call_is_a_storage_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(fd: int, operation: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("raftcore.storage.directory.fcntl.flock", fail)
    with pytest.raises(StorageError, match="No locks"):
        open_directory(tmp_path / "node")


def test_a_closed_directory_is_not_used(tmp_path: Path) -> None:
    directory = open_directory(tmp_path / "node")
    directory.close()
    with pytest.raises(StorageError):
        directory.founding_incarnation()


# -- identity ------------------------------------------------------------------------------------


def test_a_bootstrapped_directory_knows_itself_for_ever(place: Any) -> None:
    log = place.create("node")
    identity = log.identity
    assert (identity.cluster_id, identity.node_id) == ("cluster", "n1")
    path = place.close(log)
    directory = open_directory(path)
    assert directory.identity == identity
    assert directory.founding_incarnation() == identity.incarnation
    assert not (path / "FOUNDING").exists()
    directory.close()


def test_the_directory_of_another_node_is_refused(place: Any) -> None:
    path = place.close(place.create("node"))
    before = content_of(path)
    with pytest.raises(IdentityError) as caught:
        open_directory(path, "n2")
    assert caught.value.exit_code is ExitCode.CONFIG
    assert content_of(path) == before


def test_the_directory_of_another_cluster_is_refused(place: Any) -> None:
    path = place.close(place.create("node"))
    with pytest.raises(IdentityError, match="belongs to cluster cluster"):
        place.again(path.name, expected_cluster_id="other")
    place.close_all()
    place.again(path.name, expected_cluster_id="cluster")


def test_a_log_swapped_in_from_another_directory_is_refused(place: Any) -> None:
    one, two = place.close(place.create("one")), place.close(place.create("two"))
    shutil.rmtree(one / "log")
    shutil.copytree(two / "log", one / "log")
    with pytest.raises(IdentityError, match="another incarnation"):
        place.again("one")


def test_a_log_of_another_node_is_refused(place: Any) -> None:
    path = place.close(place.create("node"))
    body = unseal((path / "IDENTITY").read_bytes())
    (path / "IDENTITY").write_bytes(seal(body | {"node_id": "n2"}))
    directory = open_directory(path, "n2")
    with pytest.raises(IdentityError, match="another node"):
        open_log(directory)
    directory.close()


def test_every_damage_of_identity_is_found_and_nothing_is_changed(place: Any) -> None:
    path = place.close(place.create("node"))
    good = (path / "IDENTITY").read_bytes()
    for offset in range(0, len(good), 7):
        damaged = bytearray(good)
        damaged[offset] ^= 0x10
        (path / "IDENTITY").write_bytes(bytes(damaged))
        before = content_of(path)
        with pytest.raises(IdentityError, match="damaged"):
            open_directory(path)
        assert content_of(path) == before


@pytest.mark.parametrize("missing", ["cluster_id", "node_id", "incarnation", "engine"])
def test_an_incomplete_identity_is_refused(place: Any, missing: str) -> None:
    path = place.close(place.create("node"))
    body = unseal((path / "IDENTITY").read_bytes())
    del body[missing]
    (path / "IDENTITY").write_bytes(seal(body))
    with pytest.raises(IdentityError, match="incomplete"):
        open_directory(path)


def test_a_log_without_identity_is_never_taken_for_a_new_directory(place: Any) -> None:
    path = place.close(place.create("node"))
    (path / "IDENTITY").unlink()
    with pytest.raises(IdentityError, match="holds log"):
        open_directory(path)


def test_a_log_of_another_engine_is_refused(place: Any) -> None:
    path = place.close(place.create("node"))
    body = unseal((path / "IDENTITY").read_bytes())
    (path / "IDENTITY").write_bytes(seal(body | {"engine": "lmdb-1.0"}))
    with pytest.raises(LogCorruptError, match="engine"):
        open_directory(path)


def test_a_newer_format_is_refused_and_untouched(place: Any) -> None:
    path = place.close(place.create("node"))
    body = unseal((path / "IDENTITY").read_bytes())
    (path / "IDENTITY").write_bytes(seal(body | {"format_version": 9, "min_reader_version": 3}))
    before = content_of(path)
    with pytest.raises(FormatTooNewError) as caught:
        open_directory(path)
    assert caught.value.exit_code is ExitCode.CONFIG
    assert content_of(path) == before


def test_a_newer_format_that_this_reader_understands_is_opened(place: Any) -> None:
    path = place.close(place.create("node"))
    body = unseal((path / "IDENTITY").read_bytes())
    (path / "IDENTITY").write_bytes(seal(body | {"format_version": 9}))
    assert place.again("node").load().last_index == 1


# -- founding and bootstrap ----------------------------------------------------------------------


def test_a_forming_directory_keeps_its_incarnation(tmp_path: Path) -> None:
    directory = open_directory(tmp_path / "node")
    incarnation = directory.founding_incarnation()
    assert len(incarnation) == 16
    assert directory.founding_incarnation() == incarnation
    directory.close()
    directory = open_directory(tmp_path / "node")
    assert directory.identity is None
    assert directory.founding_incarnation() == incarnation
    directory.close()
    other = open_directory(tmp_path / "other")
    assert other.founding_incarnation() != incarnation
    other.close()


def test_a_forming_directory_of_another_node_is_refused(tmp_path: Path) -> None:
    directory = open_directory(tmp_path / "node")
    directory.founding_incarnation()
    directory.close()
    with pytest.raises(IdentityError, match="begun by n1"):
        open_directory(tmp_path / "node", "n2")


def test_a_damaged_founding_record_is_refused(tmp_path: Path) -> None:
    open_directory(tmp_path / "node").close()
    for body in ({"node_id": "n1"}, {"incarnation": "zz", "node_id": "n1"}):
        (tmp_path / "node" / "FOUNDING").write_bytes(seal(stamp(body)))
        with pytest.raises(IdentityError, match="FOUNDING"):
            open_directory(tmp_path / "node")


def test_founding_and_identity_must_agree(place: Any) -> None:
    path = place.close(place.create("node"))
    body = stamp({"node_id": "n1", "incarnation": "00" * 16})
    (path / "FOUNDING").write_bytes(seal(body))
    with pytest.raises(IdentityError, match="different incarnations"):
        open_directory(path)


def founders(root: Path, *, files: Files | None = None) -> tuple[list[DataDirectory], Any]:
    """Three directories and the configuration that their owners agree on."""
    directories = [open_directory(root / f"n{n}", f"n{n}", files=files) for n in (1, 2, 3)]
    members = tuple(
        Member(d.node_id, f"{d.node_id}:1", d.founding_incarnation()) for d in directories
    )
    return directories, Configuration("cluster", members)


def test_every_founder_writes_the_same_first_entry(tmp_path: Path) -> None:
    directories, configuration = founders(tmp_path)
    chains, entries = set(), set()
    for directory in directories:
        directory.bootstrap(configuration)
        log = open_log(directory)
        found = log.load()
        assert found.configurations == ((1, configuration),)
        assert found.hard_state == HardState(1, None)
        entries.add(log.read(1, 1, 10**6)[0])
        chains.add(log.chain_at(1))
        log.close()
        directory.close()
    assert len(chains) == len(entries) == 1


def test_a_bootstrap_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    directories, configuration = founders(tmp_path)
    one, two, _ = directories
    stranger = Configuration("cluster", (Member("n1", "n1:1", b"x" * 16),))
    for wrong in (stranger, Configuration("cluster", ())):
        with pytest.raises(BootstrapError):
            one.bootstrap(wrong)
    assert one.identity is None
    two.bootstrap(configuration)
    with pytest.raises(BootstrapError, match="belongs to cluster"):
        two.bootstrap(configuration)
    for directory in directories:
        directory.close()


def test_the_marker_survives_the_directory(place: Any) -> None:
    path = place.close(place.create("node"))
    shutil.rmtree(path)
    directory = open_directory(path)
    marker = directory.marker()
    assert directory.identity is None
    assert marker is not None
    assert (marker.cluster_id, marker.node_id, marker.members) == ("cluster", "n1", ("n1",))
    directory.close()


def test_a_marker_that_cannot_be_read_is_an_error_not_an_absence(place: Any) -> None:
    path = place.close(place.create("node"))
    shutil.rmtree(path)
    directory = open_directory(path)
    directory.marker_path.write_bytes(b"nonsense")
    with pytest.raises(IdentityError):
        directory.marker()
    directory.marker_path.unlink()
    directory.marker_path.mkdir()
    with pytest.raises(StorageError):
        directory.marker()
    directory.close()


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EIO])
def test_where_no_marker_can_be_written_there_is_none_but_a_warning(
    place: Any, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    """As beside a mount point below a read-only root."""

    class NoMarker(Files):
        def write_atomically(self, path: Path, content: bytes) -> None:
            if path.name.endswith(".raft-cluster"):
                path.with_name(path.name + ".tmp").write_bytes(content[:10])
                raise OSError(number, os.strerror(number))
            super().write_atomically(path, content)

    log = place.create("node", files=NoMarker())
    assert log.load().last_index == 1
    assert "no marker" in caplog.text
    assert sorted(path.name for path in place.root.iterdir()) == ["node"]
    place.close(log)
    place.log(place.directory("node", NoMarker()))


CREATION_STEPS = 13


def bootstrap(place: Any, directory: DataDirectory) -> None:
    place.bootstrap(directory)


def join(place: Any, directory: DataDirectory) -> None:
    """As a joiner does: the incarnation first, then contact with a member, then the rest."""
    directory.founding_incarnation()
    directory.join("cluster")


@pytest.mark.parametrize("create", [bootstrap, join])
def test_the_steps_of_a_creation_are_all_exercised(
    place: Any, faulty_files: Any, create: Any
) -> None:
    files = faulty_files()
    create(place, place.directory("node", files))
    assert len(files.steps) == CREATION_STEPS, files.steps


@pytest.mark.parametrize(("create", "last"), [(bootstrap, 1), (join, 0)])
@pytest.mark.parametrize("step", range(CREATION_STEPS))
def test_a_crash_at_any_step_of_a_creation_is_recovered(
    place: Any, faulty_files: Any, crash: type[BaseException], create: Any, last: int, step: int
) -> None:
    directory = place.directory("node", faulty_files(crash_at=step))
    with pytest.raises(crash):
        create(place, directory)
    shown = directory._founding and directory._founding["incarnation"]
    directory.close()
    directory = place.directory("node")
    if directory.identity is None:
        incarnation = directory.founding_incarnation()
        assert shown in (None, incarnation.hex())
        create(place, directory)
    found = place.log(directory).load()
    assert (found.last_index, found.commit_hint) == (last, last)
    assert directory.identity.incarnation == directory.founding_incarnation()
    assert directory.marker().cluster_id == "cluster"
    left = {path.name for path in directory.path.iterdir()}
    assert left == {"FLOOR", "IDENTITY", "LOCK", "log", "snap"}


def test_a_directory_begun_as_a_joiner_may_still_found_and_the_reverse(place: Any) -> None:
    """Nothing was promised yet; the incarnation is the same in any case."""
    for first, second in ((bootstrap, join), (join, bootstrap)):
        name = f"{first.__name__}-first"
        directory = place.directory(name)
        incarnation = directory.founding_incarnation()
        directory._write_founding(incarnation, {"joining": "other"})
        directory.close()
        directory = place.directory(name)
        second(place, directory)
        assert directory.identity.cluster_id == "cluster"
        assert directory.identity.incarnation == incarnation


def test_what_belongs_to_a_cluster_joins_no_other(place: Any) -> None:
    directory = place.directory("node")
    directory.join("cluster")
    with pytest.raises(BootstrapError, match="belongs to cluster cluster"):
        directory.join("other")


def test_a_failed_bootstrap_is_not_tried_again_in_the_same_run(
    place: Any, faulty_files: Callable[..., Any]
) -> None:
    files = faulty_files(fail_fsync_at=8)
    directory = place.directory("node", files)
    with pytest.raises(StorageError) as first:
        place.bootstrap(directory)
    files.fail_fsync_at = None
    with pytest.raises(StorageError) as again:
        place.bootstrap(directory)
    assert again.value is first.value
    directory.close()
    place.bootstrap(place.directory("node"))


def test_a_founding_cut_before_its_configuration_was_known_is_finished_by_identity(
    place: Any,
) -> None:
    """IDENTITY and a FOUNDING without configuration cannot come from a crash; it is cleared."""
    path = place.close(place.create("node"))
    identity = unseal((path / "IDENTITY").read_bytes())
    body = stamp({"node_id": "n1", "incarnation": identity["incarnation"]})
    (path / "FOUNDING").write_bytes(seal(body))
    place.again("node")
    assert not (path / "FOUNDING").exists()


def test_a_failing_fsync_anywhere_in_the_bootstrap_is_a_storage_error(
    place: Any, faulty_files: Callable[..., Any]
) -> None:
    counting = faulty_files()
    place.bootstrap(place.directory("counted", counting))
    assert counting.fsyncs > 10
    for number in range(counting.fsyncs):
        with pytest.raises(StorageError):
            place.bootstrap(place.directory(f"node{number}", faulty_files(fail_fsync_at=number)))
