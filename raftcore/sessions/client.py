"""The client's side of sessions: numbers commands, and repeats them until their outcome is known.

A command is repeated with the number it was given, so that however many of the tries reach the log
it takes effect once. The session is registered when it is first needed, and anew when it expired.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Protocol

from raftcore.errors import (
    EntryTooLargeError,
    OutcomeUnknownError,
    RefusedError,
    SessionExpiredError,
    StoppedError,
)
from raftcore.runtime.status import Proposed
from raftcore.sessions.format import (
    NO_SESSION,
    SessionLimits,
    close_command,
    keep_alive_command,
    limits_command,
    register_command,
    session_command,
)
from raftcore.sessions.results import (
    LimitsSet,
    SessionOpened,
    SessionRefusal,
    SessionRefused,
)

FIRST_PAUSE_S = 0.01
LONGEST_PAUSE_S = 0.5


class Proposer(Protocol):
    """What a session proposes through: a ``Node``, or something that finds the leader.

    It raises what ``Node.propose`` raises. In particular a ``RefusedError`` means that nothing
    happened and nothing will: whoever forwards and can not be sure raises ``OutcomeUnknownError``.
    """

    async def propose(
        self, data: bytes, *, timeout_s: float = ..., client_id: bytes = ..., sequence: int = ...
    ) -> Proposed: ...


class _Registered:
    """One registered session: its numbers, and which of them somebody waits for."""

    def __init__(self, opened: SessionOpened) -> None:
        self.client_id = opened.session_id
        self._window = opened.window
        self._next = 1
        self._outstanding: set[int] = set()
        self._moved = asyncio.Condition()

    @property
    def first_outstanding(self) -> int:
        return min(self._outstanding, default=self._next)

    async def take(self) -> int:
        """The next number, as soon as the window has room for it."""
        async with self._moved:
            await self._moved.wait_for(self._has_room)
            sequence, self._next = self._next, self._next + 1
            self._outstanding.add(sequence)
            return sequence

    def _has_room(self) -> bool:
        return self._next < self.first_outstanding + self._window

    async def done(self, sequence: int) -> None:
        """Nobody waits for that number any more: its reply may be forgotten."""
        self._outstanding.discard(sequence)
        async with self._moved:
            self._moved.notify_all()


class Session:
    """Proposes commands, each of which takes effect at most once. For one event loop.

    Args:
        proposer: proposes to whoever leads.
        timeout_s: how long a command is tried.
        try_timeout_s: how long one try may take.
        pause: sleeps between tries.
    """

    def __init__(
        self,
        proposer: Proposer,
        *,
        timeout_s: float = 10.0,
        try_timeout_s: float = 2.0,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._proposer = proposer
        self._timeout_s = timeout_s
        self._try_timeout_s = try_timeout_s
        self._pause = pause
        self._registered: _Registered | None = None
        self._registering = asyncio.Lock()

    async def __aenter__(self) -> Session:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    @property
    def client_id(self) -> bytes | None:
        """The id of the registered session, if there is one."""
        return self._registered.client_id if self._registered else None

    async def propose(self, data: bytes, *, timeout_s: float | None = None) -> Any:
        """The machine's reply to ``data``, which took effect exactly once.

        May also be a ``ReplyTooLarge``: it took effect, and the reply was not kept. Calls may
        overlap; they are then executed in any order.

        Raises:
            SessionExpiredError: the session ended after a try of unknown outcome.
            OutcomeUnknownError: time ran out after such a try. The command takes no effect any more
                once a later command of this session was executed.
            RefusedError: nothing happened and nothing will.
        """
        tries = self._tries(timeout_s)
        while True:
            session = await self._opened(tries)
            sequence = await self._number(session, tries)
            try:
                result = await self._settled(session, sequence, data, tries)
            finally:
                await session.done(sequence)
            if result != SessionRefused(SessionRefusal.EXPIRED):
                return result
            # The only try that got anywhere found the session gone: safe to begin anew.
            await tries.pause_after(RefusedError("the session expired again and again"))

    async def keep_alive(self) -> bool:
        """Let the session live for another ``timeout_ms``; False if there is none any more.

        Raises:
            OutcomeUnknownError, RefusedError: it could not be said.
        """
        session = self._registered
        if session is None:
            return False
        data = keep_alive_command(session.first_outstanding)
        result = await self._repeat(lambda: data, session.client_id, 0, self._tries(None))
        if isinstance(result, SessionRefused):
            self._lost(session)
            return False
        return True

    async def close(self) -> None:
        """End the session, if it can be said; otherwise it expires by itself."""
        session, self._registered = self._registered, None
        if session is not None:
            try:
                await self._proposer.propose(
                    close_command(),
                    timeout_s=self._try_timeout_s,
                    client_id=session.client_id,
                    sequence=0,
                )
            except (RefusedError, OutcomeUnknownError):
                return

    # -- inside -----------------------------------------------------------------------------------

    def _tries(self, timeout_s: float | None) -> _Tries:
        timeout_s = self._timeout_s if timeout_s is None else timeout_s
        return _Tries(timeout_s, self._try_timeout_s, self._pause)

    async def _opened(self, tries: _Tries) -> _Registered:
        try:
            async with asyncio.timeout(tries.left_s()):
                await self._registering.acquire()
        except TimeoutError:
            raise RefusedError("no session could be registered in time") from None
        try:
            if self._registered is None:
                # A session registered twice is harmless: the unused one expires.
                try:
                    opened = await self._repeat(register_command, NO_SESSION, 0, tries)
                except OutcomeUnknownError as error:
                    raise RefusedError("no session could be registered in time") from error
                tries.unknown = None
                if not isinstance(opened, SessionOpened):
                    raise RefusedError(f"no session: the state machine said {opened!r}")
                self._registered = _Registered(opened)
            return self._registered
        finally:
            self._registering.release()

    @staticmethod
    async def _number(session: _Registered, tries: _Tries) -> int:
        try:
            async with asyncio.timeout(tries.left_s()):
                return await session.take()
        except TimeoutError:
            raise RefusedError("too many commands of this session are outstanding") from None

    async def _settled(
        self, session: _Registered, sequence: int, data: bytes, tries: _Tries
    ) -> Any:
        def envelope() -> bytes:
            return session_command(data, session.first_outstanding)

        result = await self._repeat(envelope, session.client_id, sequence, tries)
        if not isinstance(result, SessionRefused):
            return result
        if result.reason is SessionRefusal.EXPIRED:
            self._lost(session)
            if tries.unknown is not None:
                raise SessionExpiredError(
                    "the session expired before the outcome was known"
                ) from tries.unknown
            return result
        if result.reason is SessionRefusal.ACKNOWLEDGED:
            raise OutcomeUnknownError("the state machine has forgotten this command's reply")
        raise RefusedError(f"the state machine refused the command: {result.reason}")

    async def _repeat(
        self, command: Callable[[], bytes], client_id: bytes, sequence: int, tries: _Tries
    ) -> Any:
        while True:
            try:
                proposed = await self._proposer.propose(
                    command(),
                    timeout_s=tries.next_timeout_s(),
                    client_id=client_id,
                    sequence=sequence,
                )
            except OutcomeUnknownError as error:
                tries.unknown = error
                await tries.pause_after(error)
            except RefusedError as error:
                await tries.pause_after(error)
            else:
                if proposed.result != SessionRefused(SessionRefusal.WINDOW_FULL):
                    return proposed.result
                # The window was made smaller after this session began; there will be room.
                await tries.pause_after(RefusedError("the window of the session is full"))

    def _lost(self, session: _Registered) -> None:
        if self._registered is session:
            self._registered = None


class _Tries:
    """The time that one call has, and what its tries so far leave open."""

    def __init__(
        self, timeout_s: float, try_timeout_s: float, pause: Callable[[float], Awaitable[None]]
    ) -> None:
        self.unknown: OutcomeUnknownError | None = None  #: a try that may have taken effect
        self._now = asyncio.get_running_loop().time
        self._deadline_s = self._now() + timeout_s
        self._try_timeout_s = try_timeout_s
        self._pause = pause
        self._pause_s = FIRST_PAUSE_S

    def left_s(self) -> float:
        return max(self._deadline_s - self._now(), 0.0)

    def next_timeout_s(self) -> float:
        return min(self._try_timeout_s, self.left_s())

    async def pause_after(self, error: RefusedError | OutcomeUnknownError) -> None:
        """Wait before the next try. Raises when there is to be none: that the outcome is unknown
        if any try's is, otherwise ``error``."""
        hopeless = isinstance(error, EntryTooLargeError | StoppedError)
        if hopeless or self.left_s() <= self._pause_s:
            if self.unknown is None or self.unknown is error:
                raise error
            raise OutcomeUnknownError(
                f"an earlier try may still take effect: {self.unknown}"
            ) from error
        await self._pause(self._pause_s)
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)


async def set_session_limits(
    proposer: Proposer, limits: SessionLimits, *, timeout_s: float = 10.0
) -> None:
    """Put ``limits`` in force for the whole cluster.

    Raises:
        RefusedError, OutcomeUnknownError: see ``Node.propose``; safe to repeat.
    """
    proposed = await proposer.propose(
        limits_command(limits), timeout_s=timeout_s, client_id=NO_SESSION, sequence=0
    )
    if proposed.result != LimitsSet():
        raise RefusedError(f"the state machine said {proposed.result!r}")
