"""This node's picture of the cluster."""

from __future__ import annotations

from guardian.domain.entities import Principal
from guardian.usecases.executing import Seen
from guardian.usecases.ports import ClusterView, Log, State


class Cluster:
    """The verbs on the cluster."""

    def __init__(self, log: Log, state: State) -> None:
        self._log = log
        self._state = state

    def view(self, principal: Principal) -> Seen[ClusterView]:
        """For any signed-in user; always this node's own view, with or without a leader."""
        assert principal.user_id, "only authenticated callers get here"
        return Seen(self._log.cluster(), self._state.revision(), self._log.staleness_ms())
