"""Nodes that ask to join: who asked, who may, and bringing in those who may."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable

from raftcore.core.types import Configuration, Member, NodeId
from raftcore.errors import (
    IncarnationError,
    NotAdmittedError,
    RefusedError,
    RemovedError,
    StoppedError,
)

logger = logging.getLogger(__name__)

JoinPolicy = Callable[[Member], Awaitable[bool]]
"""Says whether a node that asks may become a member, as the :class:`Member` that it would be.

Awaited on the leader, once more whenever that node asks again. What it raises is logged, and the
node is refused for this time.
"""


class Admission:
    """The desk where joiners ask. On the loop.

    Args:
        policy: who may join; None lets nobody in without an operator.
        add: brings a joiner in, as the voter or learner that it wishes to be.
        limit: joiners remembered; one more pushes out the one that asked longest ago.
    """

    def __init__(
        self,
        policy: JoinPolicy | None,
        add: Callable[[Member], Awaitable[object]],
        limit: int,
    ) -> None:
        self._policy = policy
        self._add = add
        self._limit = limit
        self._asked: OrderedDict[NodeId, Member] = OrderedDict()
        self._adding: dict[NodeId, asyncio.Task[None]] = {}
        self._changed: asyncio.Future[None] | None = None

    @property
    def pending(self) -> tuple[Member, ...]:
        """Who asked and is no member, the newest last."""
        return tuple(self._asked.values())

    async def ask(self, joiner: Member, committed: Callable[[], Configuration]) -> Configuration:
        """Let ``joiner`` in, or say why not, by the last ``committed`` configuration.

        One that is in force and not committed may go back: a joiner that was told of it would ask
        no more and be lost. Returns once the joiner is in, and before it has caught up: it must run
        for that, and does so only after this answer.

        Raises:
            RefusedError: it may not, or not now.
        """
        if is_member(committed(), joiner):
            return committed()
        self._asked[joiner.node_id] = joiner
        self._asked.move_to_end(joiner.node_id)
        while len(self._asked) > self._limit:
            self._asked.popitem(last=False)
        if self._policy is None or not await self._policy(joiner):
            raise NotAdmittedError(f"{joiner.node_id} has to be added by an operator")
        adding = self._adding.get(joiner.node_id)
        if adding is None:
            adding = asyncio.get_running_loop().create_task(self._bring_in(joiner))
            self._adding[joiner.node_id] = adding
            adding.add_done_callback(_look_at)
        while not is_member(committed(), joiner):
            if adding.cancelled():
                raise StoppedError("the node stops")
            if adding.done():
                raise _refusal(joiner, adding.exception())
            if self._changed is None:
                self._changed = asyncio.get_running_loop().create_future()
            await asyncio.wait({adding, self._changed}, return_when=asyncio.FIRST_COMPLETED)
        return committed()

    async def _bring_in(self, joiner: Member) -> None:
        try:
            await self._add(joiner)
        except Exception as error:
            logger.info("%s did not become a member: %s", joiner.node_id, error)
            raise
        finally:
            del self._adding[joiner.node_id]

    def on_committed(self, configuration: Configuration) -> None:
        """Another configuration is committed."""
        for member in configuration.members:
            asked = self._asked.get(member.node_id)
            if asked is not None and asked.incarnation == member.incarnation:
                del self._asked[member.node_id]
        changed, self._changed = self._changed, None
        if changed is not None and not changed.done():
            changed.set_result(None)

    async def close(self) -> None:
        """End what is under way."""
        tasks = list(self._adding.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _refusal(joiner: Member, error: BaseException | None) -> RefusedError:
    """Why the change that was to bring ``joiner`` in did not."""
    if isinstance(error, RefusedError):
        return error
    return NotAdmittedError(f"{joiner.node_id} is no member (yet): {error or 'it is gone again'}")


def _look_at(adding: asyncio.Task[None]) -> None:
    """The asker may be gone by the time its addition fails: that has been logged."""
    if not adding.cancelled():
        adding.exception()


def is_member(configuration: Configuration, joiner: Member) -> bool:
    """Whether ``joiner`` is a member already.

    Raises:
        RemovedError: its incarnation is retired: it never comes back (rule 43).
        IncarnationError: its name belongs to another incarnation, whose votes and promises it does
            not know.
    """
    if joiner.incarnation in configuration.retired:
        raise RemovedError(f"this incarnation of {joiner.node_id} was removed from the cluster")
    member = configuration.member(joiner.node_id)
    if member is not None and member.incarnation != joiner.incarnation:
        raise IncarnationError(
            f"{joiner.node_id} is a member under another incarnation: remove it first, then this "
            f"directory may join in its place"
        )
    return member is not None
