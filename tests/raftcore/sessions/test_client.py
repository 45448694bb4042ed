"""The client's side: one number per command, repeated until its outcome is known."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from raftcore import (
    EntryTooLargeError,
    NotLeaderError,
    OutcomeUnknownError,
    Proposed,
    RefusedError,
    StoppedError,
)
from raftcore.errors import SessionExpiredError
from raftcore.sessions import (
    Session,
    SessionLimits,
    SessionRefusal,
    SessionRefused,
    SessionStateMachine,
    close_command,
    limits_command,
    set_session_limits,
)
from raftcore.testing.machines import MemoryLedger

UNKNOWN = OutcomeUnknownError("no result in time")
Trouble = Callable[[], Exception | None]


class Leader:
    """Applies at once what is proposed. ``troubles`` come first, one per proposal: an error before
    (``("before", error)``) or after (``("after", error)``) the command took effect, or None."""

    def __init__(self, script: Any) -> None:
        self.script = script
        self.machine = SessionStateMachine(MemoryLedger())
        self.troubles: list[tuple[str, Exception] | None] = []
        self.proposed: list[tuple[bytes, int]] = []

    @property
    def commands(self) -> list[bytes]:
        return self.machine.inner.commands  # type: ignore[attr-defined, no-any-return]

    async def propose(
        self, data: bytes, *, timeout_s: float = 10.0, client_id: bytes = b"", sequence: int = 0
    ) -> Proposed:
        await asyncio.sleep(0)
        self.proposed.append((client_id, sequence))
        when, error = (self.troubles.pop(0) if self.troubles else None) or ("", UNKNOWN)
        if when == "before":
            raise error
        entry = self.script.append(data, client_id, sequence)
        result = self.script.apply(self.machine)[-1]
        if when == "after":
            raise error
        return Proposed(result, entry.index, 1)

    def expire(self) -> None:
        self.script.now_ms += self.machine.table.limits.timeout_ms + 1


@pytest.fixture
def leader(script: Any) -> Leader:
    return Leader(script)


@pytest.fixture
async def session(leader: Leader) -> Session:
    made = Session(leader, pause=lambda _: asyncio.sleep(0))
    assert await made.propose(b"first") == 1
    leader.proposed.clear()
    return made


async def test_a_command_of_unknown_outcome_is_repeated_with_its_number(
    leader: Leader, session: Session
) -> None:
    leader.troubles = [("after", UNKNOWN), ("before", UNKNOWN), ("before", NotLeaderError("b"))]
    assert await session.propose(b"x") == 2
    assert leader.commands == [b"first", b"x"]
    assert leader.proposed == [(session.client_id, 2)] * 4


async def test_overlapping_commands_have_numbers_of_their_own(
    leader: Leader, session: Session
) -> None:
    results = await asyncio.gather(*(session.propose(b"%d" % n) for n in range(200)))
    assert sorted(results) == list(range(2, 202))
    assert len({sequence for _, sequence in leader.proposed}) == 200
    (state,) = leader.machine.table._sessions.values()
    assert len(state.replies) <= leader.machine.table.limits.window


async def test_replies_are_forgotten_as_they_arrive(leader: Leader, session: Session) -> None:
    for _ in range(5):
        await session.propose(b"x")
    (state,) = leader.machine.table._sessions.values()
    assert list(state.replies) == [6]


async def test_an_expired_session_is_replaced_when_nothing_is_open(
    leader: Leader, session: Session
) -> None:
    before = session.client_id
    leader.expire()
    assert await session.propose(b"x") == 2
    assert session.client_id not in (None, before)
    assert leader.commands == [b"first", b"x"]


async def test_a_table_too_small_for_its_clients_refuses_in_the_end(
    leader: Leader, session: Session
) -> None:
    """Every session is gone before its first command: nothing happened, and that is said."""
    propose = leader.propose

    async def thrashing(data: bytes, **more: Any) -> Proposed:
        leader.expire()
        return await propose(data, **more)

    leader.propose = thrashing  # type: ignore[method-assign]
    with pytest.raises(RefusedError, match="again and again"):
        await session.propose(b"x", timeout_s=0.1)
    assert leader.commands == [b"first"]


async def test_several_commands_that_find_it_expired_share_the_new_session(
    leader: Leader, session: Session
) -> None:
    leader.expire()
    results = await asyncio.gather(*(session.propose(b"x") for _ in range(5)))
    assert sorted(results) == [2, 3, 4, 5, 6]
    assert len(leader.machine.table) == 1


async def test_an_expired_session_leaves_an_earlier_try_unknown(
    leader: Leader, session: Session
) -> None:
    """Executing again could double it, so the caller is told."""

    async def pause(_: float) -> None:
        leader.expire()

    session._pause = pause
    leader.troubles = [("after", UNKNOWN)]
    with pytest.raises(SessionExpiredError) as expired:
        await session.propose(b"x")
    assert expired.value.__cause__ is UNKNOWN
    assert leader.commands == [b"first", b"x"]
    assert await session.propose(b"y") == 3


async def test_time_that_runs_out_says_unknown_only_if_a_try_was(
    leader: Leader, session: Session
) -> None:
    refusal = NotLeaderError(None)
    leader.troubles = [("before", refusal)] * 3
    with pytest.raises(NotLeaderError):
        await session.propose(b"x", timeout_s=0)
    leader.troubles = [("after", UNKNOWN)]
    with pytest.raises(OutcomeUnknownError):
        await session.propose(b"x", timeout_s=0)


@pytest.mark.parametrize("error", [EntryTooLargeError("x"), StoppedError("x")])
async def test_what_repeating_does_not_help_is_told_at_once(
    leader: Leader, session: Session, error: RefusedError
) -> None:
    leader.troubles = [("before", error)]
    with pytest.raises(type(error)):
        await session.propose(b"x")
    leader.troubles = [("after", UNKNOWN), ("before", error)]
    with pytest.raises(OutcomeUnknownError) as unknown:
        await session.propose(b"x")
    assert unknown.value.__cause__ is error


async def test_a_command_that_was_given_up_takes_no_effect_after_the_next(
    leader: Leader, session: Session
) -> None:
    leader.troubles = [("before", UNKNOWN)]
    with pytest.raises(OutcomeUnknownError):
        await session.propose(b"late", timeout_s=0)
    client_id = session.client_id
    await session.propose(b"next")
    late = leader.script.say(leader.machine, client_id, 2, b"late")
    assert late == SessionRefused(SessionRefusal.ACKNOWLEDGED)
    assert leader.commands == [b"first", b"next"]


async def test_registering_is_repeated_and_never_makes_a_command_unknown(leader: Leader) -> None:
    session = Session(leader, pause=lambda _: asyncio.sleep(0))
    leader.troubles = [("after", UNKNOWN), ("before", NotLeaderError(None))]
    assert await session.propose(b"x") == 1
    leader.troubles = [("after", UNKNOWN)]
    with pytest.raises(RefusedError, match="no session"):
        await Session(leader).propose(b"y", timeout_s=0)
    assert leader.commands == [b"x"]


async def test_who_waits_for_the_registration_of_another_call_waits_no_longer_than_it_may() -> None:
    asked, never = asyncio.Event(), asyncio.Event()

    class Silent:
        async def propose(self, data: bytes, **_more: Any) -> Proposed:
            asked.set()
            await never.wait()
            raise UNKNOWN

    session = Session(Silent())
    first = asyncio.create_task(session.propose(b"1"))
    await asked.wait()
    async with asyncio.timeout(5):
        with pytest.raises(RefusedError, match="no session could be registered in time"):
            await session.propose(b"2", timeout_s=0.01)
    assert not first.done()
    first.cancel()
    await asyncio.wait({first})


async def test_a_machine_without_sessions_is_found_out(leader: Leader) -> None:
    class Without:
        async def propose(
            self,
            data: bytes,
            *,
            timeout_s: float = 10.0,
            client_id: bytes = b"",
            sequence: int = 0,
        ) -> Proposed:
            return Proposed(1, 1, 1)

    with pytest.raises(RefusedError, match="no session"):
        await Session(Without()).propose(b"x")
    with pytest.raises(RefusedError, match="said 1"):
        await set_session_limits(Without(), SessionLimits())


async def test_a_full_window_makes_the_next_command_wait(leader: Leader) -> None:
    await set_session_limits(leader, SessionLimits(window=2))
    session = Session(leader)
    await session.propose(b"first")
    release = asyncio.Event()
    propose = leader.propose

    async def slow(data: bytes, **more: Any) -> Proposed:
        await release.wait()
        return await propose(data, **more)

    leader.propose = slow  # type: ignore[method-assign]
    tasks = [asyncio.create_task(session.propose(b"x")) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(RefusedError, match="outstanding"):
        await session.propose(b"x", timeout_s=0.01)
    release.set()
    assert sorted(await asyncio.gather(*tasks)) == [2, 3]


async def test_a_window_made_smaller_is_waited_for(leader: Leader, session: Session) -> None:
    session._registered._next = 5  # type: ignore[union-attr]
    session._registered._outstanding.add(2)  # type: ignore[union-attr]
    leader.script.command(leader.machine, limits_command(SessionLimits(window=2)))

    async def pause(_: float) -> None:
        session._registered._outstanding.discard(2)  # type: ignore[union-attr]

    session._pause = pause
    assert await session.propose(b"x") == 2
    assert len(leader.proposed) == 2


async def test_what_is_forgotten_is_unknown_and_never_repeated(
    leader: Leader, session: Session
) -> None:
    """Another user of the same session has acknowledged this number."""
    assert session.client_id is not None
    leader.script.say(leader.machine, session.client_id, 9, b"other", first_outstanding=9)
    with pytest.raises(OutcomeUnknownError, match="forgotten"):
        await session.propose(b"x")


async def test_keeping_alive_says_whether_there_is_a_session(
    leader: Leader, session: Session
) -> None:
    assert await session.keep_alive()
    leader.expire()
    assert not await session.keep_alive()
    assert not await session.keep_alive()
    assert session.client_id is None


async def test_leaving_closes_the_session_if_it_can_be_said(leader: Leader) -> None:
    async with Session(leader) as session:
        await session.propose(b"x")
    assert len(leader.machine.table) == 0
    async with Session(leader) as session:
        await session.propose(b"x")
        leader.troubles = [("before", NotLeaderError(None))]
    assert len(leader.machine.table) == 1
    async with Session(leader):
        pass
    assert leader.script.command(leader.machine, close_command()) is not None


async def test_a_command_that_the_machine_calls_malformed_is_refused(
    leader: Leader, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raftcore.sessions.client.session_command", lambda *_: b"")
    with pytest.raises(RefusedError, match="malformed"):
        await session.propose(b"x")
