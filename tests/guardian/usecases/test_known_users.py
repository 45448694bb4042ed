"""The look-up of users that every request with a token pays for once in a while."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from guardian.domain.entities import User
from guardian.domain.problems import Problem
from guardian.usecases.known_users import KnownUsers


class Rows:
    """Counts queries; each waits for ``gate``."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.present = True
        self.trouble = False
        self.gate = asyncio.Event()
        self.gate.set()

    async def get(self, user_id: str) -> User | None:
        self.asked.append(user_id)
        present = self.present
        await self.gate.wait()
        if self.trouble:
            raise Problem("unavailable")
        return User(user_id, "a@b", False, 1) if present else None


@pytest.fixture
async def rows() -> Rows:
    return Rows()


def over(rows: Any, now: list[float], **limits: Any) -> KnownUsers:
    return KnownUsers(rows, now_s=lambda: now[0], **limits)


async def test_one_query_serves_all_requests_of_five_seconds(rows: Rows) -> None:
    now = [0.0]
    known = over(rows, now)
    for _ in range(100):
        assert await known.get("u") is not None
        now[0] += 0.049
    assert rows.asked == ["u"]
    now[0] = 5.0
    await known.get("u")
    assert rows.asked == ["u", "u"]


async def test_requests_at_the_same_time_share_a_query(rows: Rows) -> None:
    known = over(rows, [0.0])
    rows.gate.clear()
    callers = [asyncio.create_task(known.get("u")) for _ in range(50)]
    await asyncio.sleep(0)
    callers[0].cancel()  # whoever began it may go
    await asyncio.sleep(0)
    rows.gate.set()
    answers = await asyncio.gather(*callers, return_exceptions=True)
    assert isinstance(answers[0], asyncio.CancelledError)
    assert all(isinstance(answer, User) for answer in answers[1:])
    assert rows.asked == ["u"]


async def test_a_query_from_before_a_deletion_counts_for_nobody_after_it(rows: Rows) -> None:
    known = over(rows, [0.0])
    rows.gate.clear()
    before = asyncio.create_task(known.get("u"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    rows.present = False
    known.forget("u")
    after = asyncio.create_task(known.get("u"))
    await asyncio.sleep(0)
    rows.gate.set()
    assert await before is not None
    assert await after is None
    assert await known.get("u") is None


async def test_trouble_is_not_remembered(rows: Rows) -> None:
    known = over(rows, [0.0])
    rows.trouble = True
    with pytest.raises(Problem):
        await known.get("u")
    rows.trouble = False
    assert await known.get("u") is not None


async def test_memory_is_bounded_and_the_oldest_go(rows: Rows) -> None:
    known = over(rows, [0.0], max_users=3)
    for user_id in "abcd":
        await known.get(user_id)
    await known.get("d")
    assert rows.asked == list("abcd")
    await known.get("a")
    assert rows.asked == list("abcda")
    assert len(known._seen) == 3
