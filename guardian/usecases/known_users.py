"""Who still has an account, looked up at most every few seconds.

A token proves who signed in and when, not that the account is still there or still an
administrator's. Asking Postgres for every request would make it part of each one's cost.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from guardian.domain.entities import User
from guardian.usecases.ports import Users

#: how long another node's deletion or demotion may go unnoticed here, seconds
TTL_S: Final = 5.0
#: users remembered at most; beyond it the one that was looked up longest ago is forgotten
MAX_USERS: Final = 10_000


class KnownUsers:
    """Rows of users, each at most ``ttl_s`` old. Callers at the same time share one query.

    Args:
        users: where the rows are.
        ttl_s: how long an answer counts, seconds; also the answer that there is no such user.
        now_s: a monotonic clock.
    """

    def __init__(
        self,
        users: Users,
        *,
        ttl_s: float = TTL_S,
        max_users: int = MAX_USERS,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._users = users
        self._ttl_s = ttl_s
        self._max_users = max_users
        self._now_s = now_s
        #: by id, the oldest first: when it was asked, and the answer
        self._seen: OrderedDict[str, tuple[float, User | None]] = OrderedDict()
        self._queries: dict[str, asyncio.Task[User | None]] = {}

    async def get(self, user_id: str) -> User | None:
        """The user, or None.

        Raises:
            Problem: ``unavailable`` when it has to be asked and can not be.
        """
        seen = self._seen.get(user_id)
        if seen is not None and self._now_s() - seen[0] < self._ttl_s:
            return seen[1]
        query = self._queries.get(user_id)
        if query is None:
            query = self._queries[user_id] = asyncio.create_task(self._ask(user_id))
            query.add_done_callback(_retrieve)
        # a caller that goes away must not take the others' query with it
        return await asyncio.shield(query)

    def forget(self, user_id: str) -> None:
        """The row has changed: the next caller asks, and a query under way counts for nobody
        who comes later."""
        self._seen.pop(user_id, None)
        self._queries.pop(user_id, None)

    async def _ask(self, user_id: str) -> User | None:
        asked_s = self._now_s()
        try:
            user = await self._users.get(user_id)
        finally:
            current = self._queries.get(user_id) is asyncio.current_task()
            if current:
                del self._queries[user_id]
        if current:
            self._seen[user_id] = (asked_s, user)
            self._seen.move_to_end(user_id)
            if len(self._seen) > self._max_users:
                self._seen.popitem(last=False)
        return user


def _retrieve(query: asyncio.Task[User | None]) -> None:
    """Everybody who waited may have gone; then nobody else looks at what was raised."""
    if not query.cancelled():
        query.exception()
