"""Rotation and reuse of refresh tokens (RFC 9700, 4.14), races included."""

from __future__ import annotations

import asyncio

import pytest

from guardian.adapters.postgres.pool import Database
from guardian.adapters.postgres.refresh_tokens import PostgresRefreshTokens
from guardian.domain.problems import Problem

_NOW, _LATER = 1_000, 100_000


@pytest.fixture
async def tokens(database: Database, add_user) -> PostgresRefreshTokens:
    await add_user("u1")
    tokens = PostgresRefreshTokens(database)
    await tokens.add(b"t0", "family", "u1", _LATER)
    return tokens


async def _refusal(tokens: PostgresRefreshTokens, digest: bytes, now_ms: int = _NOW) -> str:
    with pytest.raises(Problem) as caught:
        await tokens.rotate(digest, b"never" + digest, _LATER, now_ms)
    return caught.value.code


async def _active(database: Database) -> int:
    rows = await database.fetch("SELECT count(*) FROM refresh_tokens WHERE state = 'active'")
    count: int = rows[0][0]
    return count


async def test_a_rotated_token_gives_its_user_and_a_working_child(
    tokens: PostgresRefreshTokens,
) -> None:
    assert await tokens.rotate(b"t0", b"t1", _LATER, _NOW) == "u1"
    assert await tokens.rotate(b"t1", b"t2", _LATER, _NOW) == "u1"


async def test_the_child_knows_its_parent(
    tokens: PostgresRefreshTokens, database: Database
) -> None:
    await tokens.rotate(b"t0", b"t1", _LATER, _NOW)
    rows = await database.fetch("SELECT family_id, parent FROM refresh_tokens WHERE digest = 't1'")
    assert rows == [("family", b"t0")]


async def test_reuse_revokes_the_whole_family(
    tokens: PostgresRefreshTokens, database: Database
) -> None:
    await tokens.rotate(b"t0", b"t1", _LATER, _NOW)
    assert await _refusal(tokens, b"t0") == "refresh_reused"
    assert await _refusal(tokens, b"t1") == "invalid_token"
    assert await _active(database) == 0


async def test_reuse_leaves_other_families_alone(
    tokens: PostgresRefreshTokens, database: Database
) -> None:
    await tokens.add(b"other", "another family", "u1", _LATER)
    await tokens.rotate(b"t0", b"t1", _LATER, _NOW)
    assert await _refusal(tokens, b"t0") == "refresh_reused"
    assert await tokens.rotate(b"other", b"other1", _LATER, _NOW) == "u1"


async def test_unknown_and_expired_tokens_are_invalid(tokens: PostgresRefreshTokens) -> None:
    assert await _refusal(tokens, b"unknown") == "invalid_token"
    assert await _refusal(tokens, b"t0", now_ms=_LATER) == "invalid_token"


async def test_a_spent_token_that_expired_is_only_invalid(tokens: PostgresRefreshTokens) -> None:
    await tokens.rotate(b"t0", b"t1", _LATER * 2, _NOW)
    assert await _refusal(tokens, b"t0", now_ms=_LATER) == "invalid_token"
    assert await tokens.rotate(b"t1", b"t2", _LATER * 2, _LATER) == "u1"


@pytest.mark.parametrize("racers", [2, 8])
async def test_of_parallel_rotations_exactly_one_wins_and_never_two_children_live(
    tokens: PostgresRefreshTokens, database: Database, racers: int
) -> None:
    results = await asyncio.gather(
        *(tokens.rotate(b"t0", f"child{n}".encode(), _LATER, _NOW) for n in range(racers)),
        return_exceptions=True,
    )
    assert results.count("u1") == 1
    others = [result for result in results if result != "u1"]
    assert {error.code for error in others if isinstance(error, Problem)} == {"refresh_reused"}
    assert len(others) == racers - 1
    # the losers are reuse: nobody can tell a thief from an impatient owner
    assert await _active(database) == 0


async def test_a_revocation_beside_a_rotation_never_leaves_a_live_child(
    tokens: PostgresRefreshTokens, database: Database
) -> None:
    for number in range(15):
        old, new = f"x{number}".encode(), f"y{number}".encode()
        await tokens.add(old, f"f{number}", "u1", _LATER)
        await asyncio.gather(
            tokens.rotate(old, new, _LATER, _NOW),
            tokens.revoke_family_of(old),
            return_exceptions=True,
        )
        assert await _refusal(tokens, new) == "invalid_token"


async def test_logout_revokes_the_family(tokens: PostgresRefreshTokens) -> None:
    await tokens.rotate(b"t0", b"t1", _LATER, _NOW)
    assert await tokens.revoke_family_of(b"t0")
    assert await _refusal(tokens, b"t1") == "invalid_token"
    assert not await tokens.revoke_family_of(b"unknown")


async def test_all_sign_ins_of_a_user_can_be_revoked(
    tokens: PostgresRefreshTokens, add_user
) -> None:
    await add_user("u2")
    await tokens.add(b"second", "second", "u1", _LATER)
    await tokens.add(b"other", "other", "u2", _LATER)
    assert await tokens.revoke_user("u1") == 2
    assert await _refusal(tokens, b"second") == "invalid_token"
    assert await tokens.rotate(b"other", b"other1", _LATER, _NOW) == "u2"


async def test_expired_tokens_are_forgotten_in_bounded_steps(
    tokens: PostgresRefreshTokens,
) -> None:
    for number in range(3):
        await tokens.add(f"x{number}".encode(), f"f{number}", "u1", _NOW)
    assert await tokens.purge_expired(_NOW, 2) == 2
    assert await tokens.purge_expired(_NOW, 2) == 1
    assert await tokens.rotate(b"t0", b"t1", _LATER, _NOW) == "u1"


async def test_a_token_of_a_user_who_just_went_is_refused(tokens: PostgresRefreshTokens) -> None:
    with pytest.raises(Problem, match="invalid_token"):
        await tokens.add(b"x", "f", "nobody", _LATER)
