"""Refresh tokens in PostgreSQL: rotation with reuse detection (RFC 9700, section 4.14)."""

from __future__ import annotations

from enum import Enum, auto

from guardian.adapters.postgres.connection import Connection
from guardian.adapters.postgres.pool import Database
from guardian.domain.problems import Problem

_INSERT = (
    "INSERT INTO refresh_tokens (digest, family_id, parent, user_id, state, expires_at_ms)"
    " VALUES (%s, %s, %s, %s, 'active', %s)"
)
# One family at a time: a revocation that runs beside a rotation would not see the child that the
# rotation is adding, and leave it alive.
_LOCK_FAMILY = "SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))"
_REVOKE_FAMILY = (
    "UPDATE refresh_tokens SET state = 'revoked' WHERE family_id = %s AND state = 'active'"
)


class _Refusal(Enum):
    INVALID = auto()
    REUSED = auto()


class PostgresRefreshTokens:
    """:class:`guardian.usecases.ports.RefreshTokens`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, digest: bytes, family_id: str, user_id: str, expires_at_ms: int) -> None:
        await self._database.execute(_INSERT, (digest, family_id, None, user_id, expires_at_ms))

    async def rotate(
        self, digest: bytes, new_digest: bytes, new_expires_at_ms: int, now_ms: int
    ) -> str:
        async def work(connection: Connection) -> str | _Refusal:
            family_id = await _lock_family_of(connection, digest)
            if family_id is None:
                return _Refusal.INVALID
            cursor = await connection.execute(
                "UPDATE refresh_tokens SET state = 'spent'"
                " WHERE digest = %s AND state = 'active' AND expires_at_ms > %s RETURNING user_id",
                (digest, now_ms),
            )
            spent = await cursor.fetchone()
            if spent is None:
                return await _refuse(connection, digest, family_id, now_ms)
            user_id: str = spent[0]
            await connection.execute(
                _INSERT.encode(), (new_digest, family_id, digest, user_id, new_expires_at_ms)
            )
            return user_id

        outcome = await self._database.write(work)
        # raised only now: the revocation of the family has to be committed
        if outcome is _Refusal.REUSED:
            raise Problem("refresh_reused")
        if isinstance(outcome, _Refusal):
            raise Problem("invalid_token")
        return outcome

    async def revoke_family_of(self, digest: bytes) -> bool:
        async def work(connection: Connection) -> bool:
            family_id = await _lock_family_of(connection, digest)
            if family_id is None:
                return False
            await connection.execute(_REVOKE_FAMILY.encode(), (family_id,))
            return True

        return await self._database.write(work)

    async def revoke_user(self, user_id: str) -> int:
        """Revoke all sign-ins of a user (a changed password); how many there were."""

        async def work(connection: Connection) -> int:
            cursor = await connection.execute(
                "SELECT DISTINCT family_id FROM refresh_tokens"
                " WHERE user_id = %s AND state = 'active' ORDER BY family_id",
                (user_id,),
            )
            revoked = 0
            for (family_id,) in await cursor.fetchall():
                await connection.execute(_LOCK_FAMILY.encode(), (family_id,))
                done = await connection.execute(_REVOKE_FAMILY.encode(), (family_id,))
                revoked += done.rowcount
            return revoked

        return await self._database.write(work)

    async def purge_expired(self, now_ms: int, limit: int) -> int:
        """Forget up to ``limit`` tokens that expired; how many went. An expired token is refused
        whether it is known or not."""
        return await self._database.execute(
            "DELETE FROM refresh_tokens WHERE digest IN"
            " (SELECT digest FROM refresh_tokens WHERE expires_at_ms <= %s LIMIT %s)",
            (now_ms, limit),
        )


async def _lock_family_of(connection: Connection, digest: bytes) -> str | None:
    cursor = await connection.execute(
        "SELECT family_id FROM refresh_tokens WHERE digest = %s", (digest,)
    )
    row = await cursor.fetchone()
    if row is None:
        return None
    family_id: str = row[0]
    await connection.execute(_LOCK_FAMILY.encode(), (family_id,))
    return family_id


async def _refuse(connection: Connection, digest: bytes, family_id: str, now_ms: int) -> _Refusal:
    cursor = await connection.execute(
        "SELECT state = 'spent' AND expires_at_ms > %s FROM refresh_tokens WHERE digest = %s",
        (now_ms, digest),
    )
    row = await cursor.fetchone()
    if row is None or not row[0]:
        return _Refusal.INVALID
    # somebody holds a token that was used before: thief or owner, nobody can tell
    await connection.execute(_REVOKE_FAMILY.encode(), (family_id,))
    return _Refusal.REUSED
