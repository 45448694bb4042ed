"""Who may join, who has asked, and how a joiner is brought in."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from raftcore.core.types import Configuration, Member
from raftcore.errors import (
    ChangeInProgressError,
    IncarnationError,
    NotAdmittedError,
    OutcomeUnknownError,
    RemovedError,
    StoppedError,
)
from raftcore.runtime.admission import Admission


def member(node_id: str, incarnation: str | None = None) -> Member:
    return Member(node_id, f"{node_id}:1", (incarnation or node_id).encode() * 16)


A, J = member("a"), member("j")


class Cluster:
    """A configuration that joiners are added to when the test lets it."""

    def __init__(self, *, welcome: bool | None = True, limit: int = 3) -> None:
        self.configuration = Configuration("c", (A,), retired=(b"x" * 16,))
        self.added: list[Member] = []
        self.may_add = asyncio.Event()
        self.error: Exception | None = None
        self._welcome = welcome
        policy = None if welcome is None else self._policy
        self.desk = Admission(policy, self._add, limit)

    async def _policy(self, _joiner: Member) -> bool:
        return bool(self._welcome)

    async def _add(self, joiner: Member) -> None:
        self.added.append(joiner)
        await self.may_add.wait()
        if self.error is not None:
            raise self.error
        self.put(joiner)
        await asyncio.Event().wait()  # the change goes on: the joiner has to catch up

    def put(self, joiner: Member) -> None:
        members = (*self.configuration.members, joiner)
        self.configuration = replace(self.configuration, members=members)
        self.desk.on_committed(self.configuration)

    async def ask(self, joiner: Member) -> Configuration:
        return await self.desk.ask(joiner, lambda: self.configuration)


async def test_without_a_policy_nobody_gets_in_and_all_who_asked_are_remembered() -> None:
    cluster = Cluster(welcome=None)
    with pytest.raises(NotAdmittedError, match="operator"):
        await cluster.ask(J)
    assert cluster.desk.pending == (J,)
    assert cluster.added == []
    cluster.put(J)
    assert cluster.desk.pending == (), "an operator let it in"
    assert await cluster.ask(J) == cluster.configuration


async def test_who_is_not_welcome_is_remembered_and_not_added() -> None:
    cluster = Cluster(welcome=False)
    with pytest.raises(NotAdmittedError):
        await cluster.ask(J)
    assert (cluster.added, cluster.desk.pending) == ([], (J,))


async def test_who_is_welcome_is_answered_as_soon_as_the_configuration_has_it() -> None:
    cluster = Cluster()
    asking, again = asyncio.create_task(cluster.ask(J)), asyncio.create_task(cluster.ask(J))
    cluster.may_add.set()
    async with asyncio.timeout(20):
        assert (await asking).member("j") == J
        assert (await again).member("j") == J
    assert cluster.added == [J], "asking twice adds once"
    assert cluster.desk.pending == ()
    await cluster.desk.close()


async def test_a_change_that_is_refused_is_what_the_joiner_is_told_and_it_may_ask_again() -> None:
    cluster = Cluster()
    cluster.may_add.set()
    cluster.error = ChangeInProgressError("another one")
    with pytest.raises(ChangeInProgressError):
        await cluster.ask(J)
    cluster.error = None
    assert (await cluster.ask(J)).member("j") == J
    await cluster.desk.close()


async def test_a_change_of_unknown_outcome_is_no_refusal_of_the_cluster_for_ever() -> None:
    cluster = Cluster()
    cluster.may_add.set()
    cluster.error = OutcomeUnknownError("leadership was lost")
    with pytest.raises(NotAdmittedError, match="leadership was lost"):
        await cluster.ask(J)


async def test_a_retired_incarnation_never_comes_back() -> None:
    cluster = Cluster()
    with pytest.raises(RemovedError):
        await cluster.ask(member("j", "x"))
    assert cluster.desk.pending == ()


async def test_a_wiped_member_is_refused_until_it_is_removed() -> None:
    cluster = Cluster()
    with pytest.raises(IncarnationError, match="remove it first"):
        await cluster.ask(member("a", "new"))
    assert (cluster.added, cluster.desk.pending) == ([], ())


async def test_the_number_of_those_remembered_is_bounded() -> None:
    cluster = Cluster(welcome=None, limit=2)
    for name in ("p", "q", "p", "r"):
        with pytest.raises(NotAdmittedError):
            await cluster.ask(member(name))
    assert [m.node_id for m in cluster.desk.pending] == ["p", "r"], "the one not heard longest"


async def test_at_the_end_who_waits_is_told() -> None:
    cluster = Cluster()
    asking = asyncio.create_task(cluster.ask(J))
    while not cluster.added:  # noqa: ASYNC110 (one turn of the loop)
        await asyncio.sleep(0)
    await cluster.desk.close()
    with pytest.raises(StoppedError):
        await asking
