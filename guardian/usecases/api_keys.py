"""API keys: they live in the replicated state alone, as digests."""

from __future__ import annotations

from dataclasses import dataclass

from guardian.domain.entities import ApiKeyInfo, Principal, Role
from guardian.domain.keys import check_name, is_id
from guardian.domain.problems import Problem
from guardian.fsm.commands import CreateKey, Done, Envelope, RevokeKey
from guardian.usecases.access import Access
from guardian.usecases.executing import (
    Call,
    Consistency,
    Executor,
    Seen,
    Written,
    fingerprint,
    new_id,
)
from guardian.usecases.paging import Page, PageRequest, page_of
from guardian.usecases.ports import ApiKeyCodec, Clock, Log, State


@dataclass(frozen=True, slots=True)
class NewApiKey:
    """A key just created. ``api_key`` is its text, shown this once; None when the answer is a
    replay, because only the digest was ever stored."""

    info: ApiKeyInfo
    api_key: str | None


class ApiKeys:
    """The verbs on API keys. All of them are for a project's admins."""

    def __init__(
        self,
        log: Log,
        state: State,
        access: Access,
        executor: Executor,
        codec: ApiKeyCodec,
        clock: Clock,
    ) -> None:
        self._log = log
        self._state = state
        self._access = access
        self._executor = executor
        self._codec = codec
        self._clock = clock

    async def list(
        self, principal: Principal, project_id: str, page: PageRequest, consistency: Consistency
    ) -> Seen[Page[ApiKeyInfo]]:
        """Live keys in id order, without secrets."""
        scope = f"keys:{project_id}"
        after = page.after(scope)
        await self._access.reading(principal, project_id, Role.ADMIN, consistency)
        rows = self._state.api_keys(project_id, after, page.limit + 1)
        found = page_of(rows, page.limit, scope, _id)
        return Seen(found, self._state.revision(), self._log.staleness_ms())

    async def create(
        self, principal: Principal, project_id: str, name: str, call: Call
    ) -> Written[NewApiKey]:
        """A further key for the project; ``name`` may be empty.

        Raises:
            Problem: ``validation_failed``, ``invalid_string``, ``not_found``, ``forbidden``.
        """
        if name:
            check_name(name, "/name")
        key_id = new_id()
        text, digest = self._codec.generate()

        async def prepare(head: Envelope) -> CreateKey:
            await self._access.writing(principal, project_id, Role.ADMIN, call)
            return CreateKey(head, project_id, key_id, digest, name)

        asked = fingerprint("key.create", project_id, name)
        result = await self._executor.run(principal, call, asked, prepare)
        assert isinstance(result, Done), "key commands are answered with Done"
        if result.replayed:
            key_id = result.subject
        info = await self._applied(project_id, key_id, result.revision, call)
        if info is None:
            # revoked since, or not applied here in time
            created_at_ms = 0 if result.replayed else self._clock.now_ms()
            info = ApiKeyInfo(key_id, project_id, name, principal.actor, created_at_ms)
        created = NewApiKey(info, None if result.replayed else text)
        return Written(created, result.revision, result.replayed)

    async def revoke(
        self, principal: Principal, project_id: str, key_id: str, call: Call
    ) -> Written[None]:
        """From here on no linearizable read accepts the key.

        Raises:
            Problem: ``not_found``, ``forbidden``.
        """

        async def prepare(head: Envelope) -> RevokeKey:
            await self._access.writing(principal, project_id, Role.ADMIN, call)
            if not is_id(key_id):
                raise Problem("not_found")
            return RevokeKey(head, project_id, key_id)

        asked = fingerprint("key.revoke", project_id, key_id)
        result = await self._executor.run(principal, call, asked, prepare)
        return Written(None, result.revision, result.replayed)

    async def _applied(
        self, project_id: str, key_id: str, revision: int, call: Call
    ) -> ApiKeyInfo | None:
        """The key as the state machine recorded it, with the leader's stamp; None when this node
        does not get there in time, which changes nothing about the key."""
        try:
            await self._log.wait_revision(revision, timeout_s=call.remaining_s())
        except Problem:
            return None
        # ids have one length, so the first one above its own prefix is the id itself
        rows = self._state.api_keys(project_id, key_id[:-1], 16)
        return next((row for row in rows if row.id == key_id), None)


def _id(info: ApiKeyInfo) -> str:
    return info.id
