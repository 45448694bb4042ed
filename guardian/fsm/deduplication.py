"""Exactly-once: the first result of every command id and of every (actor, idempotency key).

A *command id* is the forwarder's: a repeat gets the identical first result, because the retry and
the first try are one request to whoever waits for it. An *idempotency key* is the client's: a
repeat gets the stored result marked ``replayed``, because the client asked twice.

Both are forgotten by the replicated clock, a few records per entry, so that every node forgets the
same records at the same entry however it batches them, and no entry pays for a long backlog.
"""

from __future__ import annotations

import itertools
from typing import Final

import msgspec

from guardian.fsm.commands import AnyCommand, AnyResult, Envelope, Refusals, Refused
from guardian.fsm.records import (
    DUE,
    IDEMPOTENCY,
    RESULTS,
    DueRecord,
    IdempotencyRecord,
    ResultRecord,
    due_key,
    due_parts,
    idempotency_id,
)
from guardian.fsm.transition import Transition

RESULT_KEPT_MS: Final = 10 * 60 * 1000
IDEMPOTENCY_KEPT_MS: Final = 24 * 60 * 60 * 1000

#: More than one entry can add (two), so that the backlog always shrinks.
FORGOTTEN_PER_ENTRY: Final = 4

#: Refusals that ask the *proposer* to check again and propose anew for the same client request, so
#: they are not that request's result and are not bound to its idempotency key.
PROVISIONAL: Final = frozenset(
    {Refusals.SCHEMA_STALE, Refusals.SCHEMA_USAGE_CHANGED, Refusals.ATTEMPT_ABORTED}
)

_NEVER: Final = 2**64


class Deduplication:
    """What is remembered of earlier commands, within one write transaction."""

    __slots__ = ("_next_due_ms", "_t")

    def __init__(self, transition: Transition) -> None:
        self._t = transition
        self._next_due_ms = self._first_due_ms()

    def _first_due_ms(self) -> int:
        first = self._t.view.first_key(DUE.number)
        return _NEVER if first is None else due_parts(first)[0]

    def forget(self) -> None:
        """Remove up to :data:`FORGOTTEN_PER_ENTRY` records whose time has come."""
        if self._next_due_ms > self._t.clock_ms:
            return
        view = self._t.view
        due = [
            (key, DUE.decode(payload).key)
            for key, payload in itertools.islice(view.scan(DUE.number, b""), FORGOTTEN_PER_ENTRY)
            if due_parts(key)[0] <= self._t.clock_ms
        ]
        for key, target in due:
            view.delete(due_parts(key)[2], target)
            view.delete(DUE.number, key)
        self._next_due_ms = self._first_due_ms()

    def earlier_result(self, command: AnyCommand) -> AnyResult | None:
        """The result to give instead of executing ``command``, if it is a repeat."""
        head = command.head
        first = RESULTS.get(self._t.view, head.command_id)
        if first is not None:
            return first.result
        if not head.idempotency_key:
            return None
        stored = IDEMPOTENCY.get(self._t.view, idempotency_id(head.actor, head.idempotency_key))
        if stored is None:
            return None
        result: AnyResult
        if stored.fingerprint == head.fingerprint:
            result = msgspec.structs.replace(stored.result, replayed=True)
        else:
            result = self._t.refuse(Refusals.IDEMPOTENCY_KEY_REUSED)
        self._keep_result(head, result)
        return result

    def keep(self, command: AnyCommand, result: AnyResult) -> None:
        """Remember ``result`` as that of ``command``, which was executed now."""
        head = command.head
        self._keep_result(head, result)
        provisional = isinstance(result, Refused) and result.code in PROVISIONAL
        if head.idempotency_key and not provisional:
            key = idempotency_id(head.actor, head.idempotency_key)
            IDEMPOTENCY.put(self._t.view, key, IdempotencyRecord(head.fingerprint, result))
            self._schedule(IDEMPOTENCY.number, key, IDEMPOTENCY_KEPT_MS)

    def _keep_result(self, head: Envelope, result: AnyResult) -> None:
        RESULTS.put(self._t.view, head.command_id, ResultRecord(result))
        self._schedule(RESULTS.number, head.command_id, RESULT_KEPT_MS)

    def _schedule(self, table: int, key: bytes, kept_ms: int) -> None:
        due_ms = self._t.clock_ms + kept_ms
        DUE.put(self._t.view, due_key(due_ms, self._t.index, table), DueRecord(key))
        self._next_due_ms = min(self._next_due_ms, due_ms)
