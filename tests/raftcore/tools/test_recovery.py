"""What a recovery says before it does anything, and what it makes."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import lmdb
import pytest

from raftcore.core.membership import encode_configuration
from raftcore.core.types import Configuration, Entry, EntryType, Member, Position
from raftcore.errors import IdentityError, LockedError, LogCorruptError, RefusedError
from raftcore.storage.closed import ClosedDirectory
from raftcore.storage.directory import DataDirectory
from raftcore.storage.environment import key_of
from raftcore.testing.storage_model import commands
from raftcore.tools import recovery as recovery_tool
from raftcore.tools.rebuilding import NewMember, Source
from raftcore.tools.recovery import Plan, _can_commit, plan_recovery

Directories = Any  #: of the conftest above


def planned(directories: Directories, *names: str) -> Plan:
    with plan_recovery([directories.path(name) for name in names]) as recovery:
        return recovery.plan


def members(*names: str, learners: tuple[str, ...] = ()) -> tuple[Member, ...]:
    return tuple(
        Member(n, f"{n}:1", n.encode().ljust(16), voter=n not in learners) for n in sorted(names)
    )


# -- what may be lost ----------------------------------------------------------------------------


def test_a_lone_survivor_may_lack_what_the_others_committed(three: Directories) -> None:
    plan = planned(three, "n3")
    assert plan.best.last == Position(2, 15)
    assert [m.node_id for m in plan.missing] == ["n1", "n2"]
    assert (plan.loss.possible, plan.loss.after_index, plan.loss.proven_to) == (True, 15, 0)
    assert plan.loss.newest_unix_ms == 1_700_000_000_000
    assert not plan.quorum_here
    assert plan.unconfirmed is None


def test_entries_that_are_held_but_not_known_committed_are_named(three: Directories) -> None:
    assert planned(three, "n1").unconfirmed == (16, 20)


def test_two_of_three_are_a_quorum_and_need_no_recovery(three: Directories) -> None:
    plan = planned(three, "n1", "n3")
    assert plan.quorum_here
    assert not plan.loss.possible


def test_the_better_of_two_survivors_is_chosen_in_either_order(directories: Directories) -> None:
    """A later last term wins over a longer log, as in an election."""
    directories.found("n1", "n2", "n3", "n4", "n5")
    for name in ("n1", "n2"):
        directories.fill(name, 10)
    directories.append("n1", commands(11, 30, 3), term=3, commit=10)
    directories.append("n2", commands(11, 12, 4), term=4, commit=10)
    for order in (("n1", "n2"), ("n2", "n1")):
        plan = planned(directories, *order)
        assert plan.best.identity.node_id == "n2"
        assert plan.loss.possible


def test_half_of_an_even_cluster_cannot_have_committed_alone(directories: Directories) -> None:
    directories.found("n1", "n2", "n3", "n4")
    directories.fill("n1", 10)
    directories.fill("n2", 12)
    plan = planned(directories, "n1", "n2")
    assert not plan.quorum_here
    assert not plan.loss.possible


def test_what_a_damaged_survivor_knows_to_be_committed_is_proven_lost(three: Directories) -> None:
    three.append("n2", commands(21, 30, 2), term=2, commit=30)
    three.damage("n2")
    plan = planned(three, "n2", "n3")
    assert plan.best.identity.node_id == "n3"
    assert plan.survivors[0].problem is not None
    assert "checksum" in plan.survivors[0].problem
    assert plan.loss.proven_to == 30
    assert plan.loss.possible
    assert not plan.quorum_here


def test_a_survivor_in_quarantine_counts_as_holding_nothing(three: Directories) -> None:
    (three.path("n1") / "QUARANTINE").write_bytes(b"not a record, but there")
    plan = planned(three, "n1", "n3")
    assert plan.best.identity.node_id == "n1"
    assert plan.best.doubt is not None
    assert not plan.quorum_here
    assert plan.loss.possible


def test_a_log_below_its_floor_counts_as_holding_nothing(three: Directories) -> None:
    (three.path("n1") / "FLOOR").unlink()
    plan = planned(three, "n1", "n3")
    assert plan.best.doubt == "FLOOR is missing or damaged"
    assert not plan.quorum_here


def test_the_sound_beginning_of_a_damaged_log_is_used_only_when_that_is_said(
    three: Directories,
) -> None:
    path = three.path("n3")
    log = path / "log" / "data.mdb"
    raw = log.read_bytes()
    places = [n for n in range(len(raw)) if raw.startswith(b"client", n)]
    three.flip(log, places[4])
    with pytest.raises(LogCorruptError, match="no directory"):
        planned(three, "n3")
    before = three.fingerprint("n3")
    with plan_recovery([path], salvage=True) as recovery:
        plan = recovery.plan
        made = recovery.execute(three.path("new"), confirm=plan.cluster_id)
    assert three.fingerprint("n3") == before
    assert plan.best.problem is not None
    assert plan.best.last is not None
    assert 1 <= plan.best.last.index == made.last_index < 15
    assert plan.loss.proven_to == 15
    assert [m.node_id for m in plan.missing] == ["n1", "n2", "n3"]
    with ClosedDirectory.open(three.path("new")) as directory, directory.log() as new:
        assert [e.index for e, _ in new.entries()] == list(range(1, made.last_index + 1))


def test_a_directory_of_another_incarnation_counts_as_no_member(three: Directories) -> None:
    old = three.configuration
    changed = replace(old.members[2], incarnation=b"another one, new")
    entry = Entry(
        21,
        2,
        EntryType.CONFIGURATION,
        encode_configuration(replace(old, members=(*old.members[:2], changed))),
    )
    three.append("n1", [entry], term=2, commit=21)
    plan = planned(three, "n1", "n3")
    assert not plan.quorum_here
    assert [m.node_id for m in plan.missing] == ["n2", "n3"]


def test_an_uncommitted_change_of_members_counts_both_before_and_after(
    directories: Directories,
) -> None:
    """n1 alone is a quorum of the last configuration; whether that is in force nobody knows."""
    old = directories.found("n1", "n2", "n3")
    directories.fill("n1", 10)
    alone = Entry(
        11, 2, EntryType.CONFIGURATION, encode_configuration(replace(old, members=old.members[:1]))
    )
    directories.append("n1", [alone], term=2, commit=10)
    plan = planned(directories, "n1")
    assert not plan.quorum_here
    assert plan.loss.possible
    directories.append("n1", commands(12, 12, 2), term=2, commit=12)
    plan = planned(directories, "n1")
    assert plan.quorum_here
    assert not plan.loss.possible


def joined_and_torn(directories: Directories) -> None:
    """n1, n4, n5 hold a committed configuration of voters n1, n2, n3; n1 also the beginning of a
    change to n1, n4, n5, and one damaged entry after that."""
    base = directories.found("n1", "n2", "n3", "n4", "n5")
    everybody = tuple(replace(m, voter=m.node_id in ("n1", "n2", "n3")) for m in base.members)
    old = Configuration(base.cluster_id, everybody, level=2)
    joint = replace(
        old,
        members=tuple(replace(m, voter=m.node_id in ("n1", "n4", "n5")) for m in base.members),
        old_voters=("n1", "n2", "n3"),
        leaving=("n2", "n3"),
    )
    first, second = (
        Entry(index, 2, EntryType.CONFIGURATION, encode_configuration(configuration))
        for index, configuration in ((2, old), (21, joint))
    )
    for name in ("n1", "n4", "n5"):
        directories.append(name, [first, *commands(3, 20, 2)], term=2, commit=20)
    directories.append("n1", [second, *commands(22, 30, 2)], term=2, commit=20)
    damage_entry(directories.path("n1"), 27)


def damage_entry(path: Path, index: int) -> None:
    env = lmdb.open(str(path / "log"), max_dbs=4, map_size=2**26, lib_version=0)
    entries = env.open_db(b"entries", create=False)
    with env.begin(write=True) as txn:
        value = bytearray(txn.get(key_of(index), db=entries))
        value[-10] ^= 1
        txn.put(key_of(index), bytes(value), db=entries)
    env.close()


def test_a_salvaged_log_counts_every_configuration_that_may_be_in_force(
    directories: Directories,
) -> None:
    """n2 and n3 are a majority of the one that is committed, whatever came after it."""
    joined_and_torn(directories)
    paths = [directories.path(name) for name in ("n1", "n4", "n5")]
    with plan_recovery(paths, salvage=True) as recovery:
        plan = recovery.plan
    assert (plan.best.identity.node_id, plan.best.last) == ("n1", Position(2, 26))
    assert plan.loss.possible
    assert plan.configuration_index == 21
    assert not plan.quorum_here


def test_where_no_configuration_is_known_to_be_committed_loss_is_possible(
    directories: Directories, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the log's beginning said of the members is gone with it."""
    directories.found("n1", "n2", "n3", "n4")
    for name in ("n1", "n2"):
        directories.fill(name, 10)
    assert not planned(directories, "n1", "n2").loss.possible
    whole = recovery_tool.verified_source

    def torn(*arguments: Any) -> Source:
        source = whole(*arguments)
        shape = replace(source.shape, commit_hint=4)
        return replace(source, shape=shape, configurations=((5, source.configuration),))

    monkeypatch.setattr(recovery_tool, "verified_source", torn)
    assert planned(directories, "n1", "n2").loss.possible


@pytest.mark.parametrize("size", range(1, 8))
def test_quorum_arithmetic_agrees_with_counting(size: int) -> None:
    names = [f"n{n}" for n in range(size)]
    configuration = Configuration("c", members(*names, "learner", learners=("learner",)))
    for count in range(size + 1):
        for nodes in itertools.combinations(names, count):
            expected = count > size - count
            assert _can_commit(configuration, {*nodes, "learner"}) is expected


def test_joint_configurations_need_both_majorities() -> None:
    joint = Configuration("c", members("a", "b", "c"), old_voters=("c", "d", "e"))
    assert not _can_commit(joint, {"a", "b"})
    assert not _can_commit(joint, {"d", "e"})
    assert _can_commit(joint, {"a", "c", "e"})
    assert not _can_commit(Configuration("c", ()), {"a"})


# -- refusals ------------------------------------------------------------------------------------


def test_directories_of_two_clusters_are_refused(directories: Directories) -> None:
    directories.found("n1")
    directories.found("n2", cluster_id="another")
    with pytest.raises(IdentityError, match="several clusters"):
        planned(directories, "n1", "n2")


def test_two_directories_of_one_node_are_refused(directories: Directories, tmp_path: Path) -> None:
    directories.found("n1")
    inner = type(directories)(tmp_path / "copy")
    inner.found("n1")
    with (
        pytest.raises(IdentityError, match="more than once"),
        plan_recovery([directories.path("n1"), inner.path("n1")]),
    ):
        pytest.fail("was planned")


def test_a_survivor_that_runs_is_refused(three: Directories) -> None:
    running = DataDirectory.open(three.path("n1"), "n1")
    with pytest.raises(LockedError):
        planned(three, "n1", "n3")
    running.close()
    assert planned(three, "n1", "n3").quorum_here


def test_committed_entries_that_differ_are_never_chosen_between(directories: Directories) -> None:
    directories.found("n1", "n2", "n3", "n4", "n5")
    for name, term in (("n1", 3), ("n2", 4)):
        directories.append(name, commands(2, 20, term), term=term, commit=18)
    with pytest.raises(LogCorruptError, match="CORRUPTION"):
        planned(directories, "n1", "n2")


def test_nothing_to_build_on_is_said_with_every_reason(three: Directories) -> None:
    (three.path("n3") / "log" / "data.mdb").write_bytes(b"")
    with pytest.raises(LogCorruptError, match="0 bytes"):
        planned(three, "n3")


@pytest.mark.parametrize("count", [0, 33])
def test_the_number_of_directories_is_bounded(three: Directories, count: int) -> None:
    with pytest.raises(RefusedError), plan_recovery([three.path("n1")] * count):
        pytest.fail("was planned")


def test_without_the_clusters_id_nothing_is_made(three: Directories) -> None:
    with plan_recovery([three.path("n3")]) as recovery:
        for wrong in ("", "c0ffee", recovery.plan.cluster_id + " "):
            with pytest.raises(RefusedError, match="is not the id"):
                recovery.execute(three.path("new"), confirm=wrong)
    assert not three.path("new").exists()


def test_nothing_is_made_in_a_survivor(three: Directories) -> None:
    before = three.fingerprint("n3")
    with plan_recovery([three.path("n3")]) as recovery:
        for into in (three.path("n3"), three.path("n3") / "new"):
            with pytest.raises(RefusedError, match="never changed"):
                recovery.execute(into, confirm=recovery.plan.cluster_id)
    assert three.fingerprint("n3") == before


def test_a_quorum_is_not_recovered_unless_that_is_said_too(three: Directories) -> None:
    with plan_recovery([three.path("n1"), three.path("n3")]) as recovery:
        confirm = recovery.plan.cluster_id
        with pytest.raises(RefusedError, match="quorum"):
            recovery.execute(three.path("new"), confirm=confirm)
        made = recovery.execute(three.path("new"), confirm=confirm, despite_quorum=True)
    assert made.last_index == 20


# -- what is made --------------------------------------------------------------------------------


def test_the_new_cluster_begins_in_the_highest_term_that_anybody_saw(three: Directories) -> None:
    three.append("n3", [], term=9, commit=15)
    with plan_recovery([three.path("n1"), three.path("n3")]) as recovery:
        recovery.execute(three.path("new"), confirm=recovery.plan.cluster_id, despite_quorum=True)
    with ClosedDirectory.open(three.path("new")) as made, made.log() as log:
        assert log.records.shape.hard_state.term == 9
        assert log.records.shape.hard_state.vote is None


def test_what_was_known_is_kept_with_the_new_directory(three: Directories) -> None:
    before = three.fingerprint("n1", "n2", "n3")
    with plan_recovery([three.path("n3")]) as recovery:
        made = recovery.execute(
            three.path("new"),
            confirm=recovery.plan.cluster_id,
            member=NewMember("x", "10.0.0.1:7000", (("zone", "b"),)),
        )
    assert three.fingerprint("n1", "n2", "n3") == before
    with ClosedDirectory.open(three.path("new")) as directory:
        origin = directory.record("ORIGIN")
    assert origin is not None
    assert (origin["kind"], origin["epoch"]) == ("recovered", 1)
    assert (origin["cluster_id"], origin["node_id"]) == (made.old_cluster_id, "n3")
    assert (origin["last_index"], origin["last_term"]) == (15, 2)
    details = origin["details"]
    assert [m["node_id"] for m in details["missing"]] == ["n1", "n2"]
    assert details["loss_possible"] is True
