"""Copies and fingerprints: complete, independent, and the same for those that do the same."""

from __future__ import annotations

import importlib
import pkgutil
import random
from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from enum import Enum
from typing import Any

import pytest

import raftcore.core
from jepsen_like.sim import SimOptions, run_seed
from jepsen_like.sim.manual import ManualCluster, ManualNode
from raftcore.core import effects as ef
from raftcore.core import events as ev
from raftcore.core.config import CoreConfig
from raftcore.core.errors import InvariantError
from raftcore.core.fingerprint import HASHED, IGNORED, canonical, clone_state
from raftcore.core.messages import Heartbeat
from raftcore.core.progress import ProgressState
from raftcore.core.raft import Raft
from raftcore.core.state import Role

#: Classes of the core that hold no state of a node between steps.
STATELESS = {Raft}


def classes_of_the_core() -> Iterator[type]:
    for module_info in pkgutil.iter_modules(raftcore.core.__path__):
        module = importlib.import_module(f"raftcore.core.{module_info.name}")
        for value in vars(module).values():
            if isinstance(value, type) and value.__module__ == module.__name__:
                yield value


def is_mutable(kind: type) -> bool:
    if issubclass(kind, Enum | Exception | ef.Effect):
        return False
    return not (is_dataclass(kind) and kind.__dataclass_params__.frozen)  # type: ignore[attr-defined]


def has_times(kind: type) -> bool:
    """A frozen record of state that holds a time would be hashed with it."""
    if not is_dataclass(kind) or issubclass(kind, ev.Event):
        return False
    return any(field.name.endswith("_ns") for field in fields(kind))


def test_every_class_of_state_is_in_the_tables() -> None:
    needed = {kind for kind in classes_of_the_core() if is_mutable(kind) or has_times(kind)}
    assert needed - STATELESS == set(HASHED) == set(IGNORED)


BUSY = SimOptions(
    nodes=3, drop=0.05, crash_ms=700, transfer_ms=300, partition_ms=600, snapshot_every=10,
    trailing_entries=0, cache_bytes=2000, read_every_ms=5, change_ms=200,
)  # fmt: skip
UNDER_LEASE = replace(BUSY, lease=True, rollback_ms=400, change_ms=0)


@pytest.fixture(scope="module")
def samples() -> list[Raft]:
    """Cores out of simulated runs that show, together, every field of state holding something."""
    found: dict[tuple[type, str], Raft] = {}
    step = Raft.step

    def watched(raft: Raft, event: ev.Event) -> list[ef.Effect]:
        effects = step(raft, event)
        new = [
            (type(part), name)
            for part in objects_of(raft._s)
            for name in HASHED[type(part)]
            if (type(part), name) not in found and getattr(part, name)
        ]
        if new:
            found.update(dict.fromkeys(new, raft.clone()))
        return effects

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Raft, "step", watched)
        for seed, options in enumerate((BUSY, BUSY, BUSY, UNDER_LEASE)):
            assert run_seed(seed, options).failure is None
    return list({id(raft): raft for raft in found.values()}.values())


def follower_with_reads() -> ManualNode:
    cluster = ManualCluster()
    cluster.elect("a")
    cluster["b"].raft._s.confirmed_reads[3] = 9
    return cluster["b"]


def objects_of(value: Any) -> Iterator[Any]:
    """Every object of state reachable from ``value``."""
    if type(value) in HASHED:
        yield value
        for name in (*HASHED[type(value)], *IGNORED[type(value)]):
            yield from objects_of(getattr(value, name))
    elif isinstance(value, dict):
        for item in value.values():
            yield from objects_of(item)
    elif isinstance(value, list | tuple | deque):
        for item in value:
            yield from objects_of(item)


def test_every_field_of_state_is_hashed_or_ignored_for_a_reason(samples: list[Raft]) -> None:
    seen = set()
    for raft in samples:
        for found in objects_of(raft._s):
            kind = type(found)
            names = {f.name for f in fields(kind)} if is_dataclass(kind) else set(vars(found))
            assert names == {*HASHED[kind], *IGNORED[kind]}, kind.__name__
            assert not set(HASHED[kind]) & set(IGNORED[kind])
            assert all(IGNORED[kind].values())
            seen.add(kind)
    assert seen == set(HASHED), "the samples must show every class"


def changed(value: Any) -> Any:
    """Another value of that kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, Enum):
        return next(v for v in type(value) if v is not value)
    if isinstance(value, list | deque):
        return type(value)([*value, value[0]])
    if isinstance(value, set):
        return {*value, 4711}
    if isinstance(value, dict):
        return type(value)({**value, "zz": next(iter(value.values()))})
    return "something else"


def asked_elsewhere(name: str, value: Any) -> bool:
    """Objects whose own fields are asked, and what is empty in this sample but not in another."""
    if type(value) in HASHED or type(value) is OrderedDict:
        return True
    absent = value is None and name in ("leadership", "feed", "staging")
    return absent or (isinstance(value, list | deque | dict) and not value)


def test_every_hashed_field_makes_a_difference(samples: list[Raft]) -> None:
    asked = set()
    for raft in samples:
        before = raft.fingerprint()
        for found in objects_of(raft._s):
            kind = type(found)
            for name in HASHED[kind]:
                value = getattr(found, name)
                asked.add((kind, name))
                if asked_elsewhere(name, value):
                    continue
                object.__setattr__(found, name, changed(value))  # some are frozen
                assert raft.fingerprint() != before, f"{kind.__name__}.{name}"
                object.__setattr__(found, name, value)
        assert raft.fingerprint() == before
    assert asked == {(kind, name) for kind, names in HASHED.items() for name in names}


def test_the_order_of_confirmed_reads_and_what_they_wait_for_make_a_difference() -> None:
    raft = follower_with_reads().raft
    before = raft.fingerprint()
    raft._s.confirmed_reads[3] += 1
    assert raft.fingerprint() != before


def test_the_name_of_the_node_makes_a_difference() -> None:
    cluster = ManualCluster()
    assert cluster["a"].raft.fingerprint() != cluster["b"].raft.fingerprint()


def test_times_numbers_of_writes_and_the_random_source_make_none() -> None:
    """Two that came to the same by different ways: one campaigned later, after more writes."""
    early, late = ManualCluster()["a"], ManualCluster()["a"]
    late.raft._s.rng.seed(99)
    late.raft._s._next_mark += 7
    late.raft._s.next_request_id += 7
    for node in (early, late):
        node.tick(node.raft.next_deadline_ns + 5)
    assert early.raft.next_deadline_ns != late.raft.next_deadline_ns
    assert early.raft.fingerprint() == late.raft.fingerprint()


def test_a_leader_gone_silent_makes_a_difference_before_any_timeout() -> None:
    """The sticky leader rule looks at the clock, so what it sees is part of the state."""
    cluster = ManualCluster()
    cluster.elect("a")
    follower = cluster["b"].raft
    before = follower.fingerprint()
    follower._s.now_ns += follower._s.election_timeout_ns - 1
    assert follower.fingerprint() == before
    follower._s.now_ns += 1
    assert follower.fingerprint() != before


@pytest.mark.parametrize("age", ["last_contact_ns", "sent_ns"])
def test_a_leader_sees_who_is_silent_and_what_is_overdue(age: str) -> None:
    cluster = ManualCluster()
    leader = cluster.elect("a")
    leader.propose(b"x")
    raft = leader.raft
    leadership = raft._s.leadership
    assert leadership is not None
    before = raft.fingerprint()
    for progress in leadership.progress.values():
        if age == "last_contact_ns":
            progress.last_contact_ns -= raft._s.election_timeout_ns
        elif progress.inflight:
            progress.inflight[0].sent_ns -= 10**9
    assert raft.fingerprint() != before


def test_a_clone_does_what_its_source_does_and_neither_touches_the_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In whole simulated runs, with everything that can happen in them."""
    step = Raft.step
    compared = 0

    def with_twin(raft: Raft, event: ev.Event) -> list[ef.Effect]:
        nonlocal compared
        twin, before = raft.clone(), raft.fingerprint()
        assert twin.fingerprint() == before
        expected = step(twin, event)
        assert raft.fingerprint() == before, "stepping the clone changed its source"
        after = twin.fingerprint()
        effects = step(raft, event)
        assert effects == expected
        assert raft.fingerprint() == after
        assert raft.next_deadline_ns == twin.next_deadline_ns
        compared += 1
        return effects

    monkeypatch.setattr(Raft, "step", with_twin)
    for seed, options in ((3, BUSY), (4, UNDER_LEASE)):
        assert run_seed(seed, replace(options, duration_ms=1000)).failure is None
    assert compared > 1000


def test_a_clone_draws_from_the_source_it_is_given() -> None:
    raft = ManualCluster()["a"].raft
    given = random.Random(5)
    assert raft.clone(given)._s.rng is given
    assert raft.clone()._s.rng is not raft._s.rng


def test_a_clone_of_a_core_that_failed_has_failed() -> None:
    cluster = ManualCluster()
    leader = cluster.elect("a")
    rival = Heartbeat("b", leader.raft.term, 0, 0)
    with pytest.raises(InvariantError):
        leader.receive(rival)
    twin = leader.raft.clone()
    with pytest.raises(InvariantError):
        twin.step(ev.Tick(leader.now_ns))


@pytest.mark.parametrize("unknown", [object(), random.Random(1)])
def test_what_is_in_no_table_can_neither_be_copied_nor_hashed(unknown: Any) -> None:
    raft = ManualCluster()["a"].raft
    raft._s.handed_over = unknown
    with pytest.raises(TypeError, match="in no table"):
        raft.clone()
    with pytest.raises(TypeError, match="in no table"):
        raft.fingerprint()


def test_records_and_enumerations_are_seen_by_what_they_hold() -> None:
    seen = canonical([Role.LEADER, ProgressState.PROBE, {"b": 1, "a": 2}, {3, 1}])
    assert seen == ("leader", "probe", (("a", 2), ("b", 1)), (1, 3))
    assert canonical(CoreConfig("n"))[0] == "n"


def test_a_core_is_neither_copied_nor_hashed_in_the_middle_of_a_step() -> None:
    s = ManualCluster()["a"].raft._s
    s.emit(ef.Compact(1))
    with pytest.raises(AssertionError, match="between steps"):
        clone_state(s)
