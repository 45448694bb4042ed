"""The read by API key. It touches no Postgres and parses no JSON."""

from __future__ import annotations

from guardian.domain.entities import Served
from guardian.domain.keys import is_config_key
from guardian.domain.problems import Problem
from guardian.usecases.executing import LOCAL, Consistency, Seen
from guardian.usecases.ports import ApiKeyCodec, Log, State


class Reading:
    """Configs for the holders of API keys."""

    def __init__(self, log: Log, state: State, codec: ApiKeyCodec) -> None:
        self._log = log
        self._state = state
        self._codec = codec

    async def read(self, api_key: str, key: str, consistency: Consistency = LOCAL) -> Seen[Served]:
        """The config under ``key`` in the API key's project, as fresh as asked.

        Raises:
            Problem: ``invalid_api_key`` for a key that is ill-formed, unknown or dead;
                ``not_found`` for no such config; ``no_leader`` or ``unavailable`` when the wanted
                freshness can not be had.
        """
        # a typo is refused by the checksum alone, before it costs a barrier
        if not self._codec.well_formed(api_key):
            raise Problem("invalid_api_key")
        await consistency.ensure(self._log)
        served = self._state.serving_bytes(self._codec.digest(api_key), key)
        if served is None:
            raise Problem("invalid_api_key", revision=self._state.revision())
        if served.content is None or not is_config_key(key):
            raise Problem("not_found", revision=served.state_revision)
        return Seen(served, served.state_revision, self._log.staleness_ms())
