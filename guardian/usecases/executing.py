"""Getting one command into the log and its answer out: what every write has in common."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, Generic, TypeVar

from msgspec.structs import replace

from guardian.domain.documents import MAX_SAFE_INTEGER
from guardian.domain.entities import Principal
from guardian.domain.problems import CODES, Fault, Problem
from guardian.fsm.commands import (
    AnyCommand,
    AnyResult,
    ConfigWritten,
    Done,
    Envelope,
    Refusals,
    Refused,
)
from guardian.usecases.ports import Log, State

T = TypeVar("T")

#: the default request deadline, seconds
DEADLINE_S: Final = 10.0
#: how often one request is prepared anew because what it was checked against had moved on
MAX_TRIES: Final = 3
#: requests with an Idempotency-Key that one node works on at most; far above what the limits on
#: connections let through
MAX_UNDER_WAY: Final = 65_536
#: refusals that say "look again": never final for the client
_STALE: Final = frozenset({Refusals.SCHEMA_STALE, Refusals.SCHEMA_USAGE_CHANGED})


class Level(StrEnum):
    """How fresh a read must be."""

    LOCAL = "local"
    LINEARIZABLE = "linearizable"


@dataclass(frozen=True, slots=True)
class Consistency:
    """What a reader asked for.

    Args:
        level: local takes this node's state as it is; linearizable puts a barrier first.
        min_revision: wait until local state holds this revision (read your own writes).
        timeout_s: bound on all waiting, seconds.
    """

    level: Level = Level.LINEARIZABLE
    min_revision: int | None = None
    timeout_s: float = DEADLINE_S

    @classmethod
    def parse(
        cls,
        level: str | None,
        min_revision: str | None,
        *,
        default: Level = Level.LINEARIZABLE,
        timeout_s: float = DEADLINE_S,
    ) -> Consistency:
        """From the query parameters ``consistency`` and ``min_revision``.

        Raises:
            Problem: ``invalid_parameter``.
        """
        try:
            wanted = default if level is None else Level(level)
        except ValueError:
            fault = Fault("/consistency", "must be local or linearizable")
            raise Problem("invalid_parameter", errors=(fault,)) from None
        minimum: int | None = None
        if min_revision is not None:
            if not (min_revision.isascii() and min_revision.isdigit() and len(min_revision) <= 16):
                fault = Fault("/min_revision", "must be a revision")
                raise Problem("invalid_parameter", errors=(fault,))
            minimum = int(min_revision)
        return cls(wanted, minimum, timeout_s)

    async def ensure(self, log: Log) -> None:
        """Wait until local state is as fresh as asked.

        Raises:
            Problem: ``no_leader`` or ``unavailable`` when that takes longer than ``timeout_s``.
        """
        if self.level is Level.LOCAL:
            log.require_local()
            if self.min_revision is None:
                return
        deadline = time.monotonic() + self.timeout_s
        if self.level is Level.LINEARIZABLE:
            await log.barrier(timeout_s=self.timeout_s)
        if self.min_revision is not None:
            left = max(deadline - time.monotonic(), 0.001)
            await log.wait_revision(self.min_revision, timeout_s=left)


LOCAL: Final = Consistency(Level.LOCAL)


@dataclass(frozen=True, slots=True)
class Call:
    """The frame of one write request.

    Args:
        idempotency_key: the client's Idempotency-Key, or empty.
        timeout_s: the request deadline, seconds from when this object was made.
    """

    idempotency_key: str = ""
    timeout_s: float = DEADLINE_S
    started_s: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        if self.idempotency_key:
            check_idempotency_key(self.idempotency_key)

    def remaining_s(self) -> float:
        """Seconds left of the deadline.

        Raises:
            Problem: ``overloaded`` when nothing is left; only asked before the log is.
        """
        left = self.started_s + self.timeout_s - time.monotonic()
        if left <= 0:
            raise Problem("overloaded", "The request deadline has passed", retry_after_s=1.0)
        return left


@dataclass(frozen=True, slots=True)
class Expected:
    """The version that a write is based on.

    Args:
        version: 1 or more.
        if_match: it came as ``If-Match``, so a mismatch is ``precondition_failed`` (412) rather
            than ``version_conflict`` (409).
    """

    version: int
    if_match: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.version <= MAX_SAFE_INTEGER:
            if self.if_match:
                raise Problem("invalid_etag")
            fault = Fault("/expected_version", "must be a version, 1 or more")
            raise Problem("validation_failed", errors=(fault,))


@dataclass(frozen=True, slots=True)
class Written(Generic[T]):
    """What a write led to, and where in the log it was decided."""

    value: T
    revision: int
    replayed: bool = False


@dataclass(frozen=True, slots=True)
class Seen(Generic[T]):
    """What a read saw: state of ``revision``, at most ``staleness_ms`` old (None: unknown)."""

    value: T
    revision: int
    staleness_ms: int | None = None


def check_idempotency_key(key: str) -> None:
    """Raises ``Problem("invalid_idempotency_key")``."""
    if not 1 <= len(key) <= 255 or key.isspace() or not key.isascii() or not key.isprintable():
        raise Problem("invalid_idempotency_key", "1 to 255 printable ASCII characters")


def absent(state: State) -> Problem:
    """``not_found``, as local state has it."""
    return Problem("not_found", revision=state.revision())


def new_id() -> str:
    """An opaque id of 128 random bits."""
    return secrets.token_hex(16)


def fingerprint(*parts: str | bytes | int) -> bytes:
    """SHA-256 over what was asked, unambiguous in where each part ends."""
    digest = hashlib.sha256()
    for part in parts:
        raw = part if isinstance(part, bytes) else str(part).encode()
        digest.update(len(raw).to_bytes(8, "big"))
        digest.update(raw)
    return digest.digest()


def system_envelope(what: str) -> Envelope:
    """The head of a command that no user asked for."""
    return Envelope(command_id=secrets.token_bytes(16), actor=f"system:{what}")


def refusal(result: Refused, *, replayed: bool = False, if_match: bool = False) -> Problem:
    """The problem that a refusal by the state machine is to a client."""
    problem = _refusal(result, if_match=if_match)
    problem.revision = result.revision
    problem.replayed = replayed
    return problem


def _refusal(result: Refused, *, if_match: bool) -> Problem:
    code = result.code
    if code == Refusals.VERSION_CONFLICT:
        return Problem(
            "precondition_failed" if if_match else "version_conflict",
            current_version=result.current_version,
        )
    if code in (Refusals.NOT_FOUND, Refusals.PROJECT_GONE):
        return Problem("not_found")
    if code in (Refusals.SCHEMA_STALE, Refusals.SCHEMA_USAGE_CHANGED, Refusals.ATTEMPT_ABORTED):
        return Problem("overloaded", "The schema or its use is changing", retry_after_s=1.0)
    if code == Refusals.KEY_TAKEN:
        return Problem("already_exists")
    if code in CODES:
        return Problem(code, current_version=result.current_version or None)
    return Problem("internal_error")


class Executor:
    """Runs one request's command: prepares, sends, prepares again when it was stale."""

    def __init__(self, log: Log, state: State) -> None:
        self._log = log
        self._state = state
        #: (actor, Idempotency-Key) of the requests that are under way on this node
        self._under_way: set[tuple[str, str]] = set()

    async def run(
        self,
        principal: Principal,
        call: Call,
        asked: bytes,
        prepare: Callable[[Envelope], Awaitable[AnyCommand]],
        *,
        if_match: bool = False,
    ) -> Done | ConfigWritten:
        """Prepare a command, have it decided, and give the outcome.

        ``prepare`` checks what must be checked before the log (rights, validation) and builds the
        command from a fresh envelope; it is asked again after a barrier when the state machine
        found its checks outdated. ``asked`` is the :func:`fingerprint` of the request.

        Raises:
            Problem: what ``prepare`` raised, the state machine's refusal, or the log's trouble;
                ``idempotency_in_progress`` while this node works on a request with the same key.
                (On two nodes at once the state machine decides one and replays it to the other.)
        """
        if not call.idempotency_key:
            return await self._run(principal, call, asked, prepare, if_match)
        name = (principal.actor, call.idempotency_key)
        if name in self._under_way:
            raise Problem("idempotency_in_progress", retry_after_s=1.0)
        if len(self._under_way) >= MAX_UNDER_WAY:
            raise Problem("overloaded", "Too many requests are under way", retry_after_s=1.0)
        self._under_way.add(name)
        try:
            return await self._run(principal, call, asked, prepare, if_match)
        finally:
            self._under_way.remove(name)

    async def _run(
        self,
        principal: Principal,
        call: Call,
        asked: bytes,
        prepare: Callable[[Envelope], Awaitable[AnyCommand]],
        if_match: bool,
    ) -> Done | ConfigWritten:
        for tries_left in reversed(range(MAX_TRIES)):
            head = Envelope(
                command_id=secrets.token_bytes(16),
                actor=principal.actor,
                idempotency_key=call.idempotency_key,
                fingerprint=asked,
            )
            try:
                command = await prepare(head)
                timeout_s = call.remaining_s()
            except Problem as problem:
                kept = await self._recall(head, call, problem)
                if kept is None:
                    if problem.revision is None and problem.info.status < 500:
                        problem.revision = self._state.revision()
                    raise
                return _settle(kept, replayed=True, if_match=if_match)
            result = await self._log.execute(command, timeout_s=timeout_s)
            if isinstance(result, Refused) and result.code in _STALE and tries_left:
                await self._log.barrier(timeout_s=call.remaining_s())
                continue
            return _settle(result, replayed=result.replayed, if_match=if_match)
        raise AssertionError("the last try always returns or raises")

    async def _recall(self, head: Envelope, call: Call, problem: Problem) -> AnyResult | None:
        """What is kept under the request's Idempotency-Key, now that a check has refused it."""
        if not head.idempotency_key or problem.info.status == 503:
            return None
        await self._log.barrier(timeout_s=call.remaining_s())
        kept = self._state.remembered(head.actor, head.idempotency_key)
        if kept is None:
            return None
        if kept.fingerprint != head.fingerprint:
            raise Problem("idempotency_key_reused", revision=self._state.revision())
        return kept.result


def _settle(result: AnyResult, *, replayed: bool, if_match: bool) -> Done | ConfigWritten:
    if isinstance(result, Refused):
        raise refusal(result, replayed=replayed, if_match=if_match)
    return result if result.replayed == replayed else replace(result, replayed=replayed)
