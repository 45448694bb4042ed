"""Password hashing: correctness at low cost, and its bounds."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from guardian.adapters.security.passwords import (
    CHEAP_FOR_TESTS,
    Argon2Passwords,
    Argon2Profile,
)
from guardian.domain.problems import Problem


@pytest.fixture
def passwords() -> Iterator[Argon2Passwords]:
    passwords = Argon2Passwords(CHEAP_FOR_TESTS)
    yield passwords
    passwords.close()


async def test_the_right_password_passes_and_others_do_not(passwords: Argon2Passwords) -> None:
    encoded = await passwords.hash("correct horse battery")
    assert await passwords.verify(encoded, "correct horse battery")
    assert not await passwords.verify(encoded, "correct horse batterY")
    assert not await passwords.verify(encoded, "")


async def test_hashes_are_salted(passwords: Argon2Passwords) -> None:
    assert await passwords.hash("correct horse") != await passwords.hash("correct horse")


async def test_composed_and_decomposed_forms_are_one_password(passwords: Argon2Passwords) -> None:
    encoded = await passwords.hash("pass\u00e9 compos\u00e9")
    assert await passwords.verify(encoded, "passe\u0301 compose\u0301")


async def test_a_lone_surrogate_is_the_callers_mistake(passwords: Argon2Passwords) -> None:
    with pytest.raises(Problem, match="invalid_string"):
        await passwords.hash("x\ud800" * 10)


async def test_an_unknown_user_costs_a_verification_and_never_passes(
    passwords: Argon2Passwords, monkeypatch: pytest.MonkeyPatch
) -> None:
    verified: list[str] = []
    real = passwords._matches

    def counting(encoded: str, secret: bytes) -> bool:
        verified.append(encoded)
        return real(encoded, secret)

    monkeypatch.setattr(passwords, "_matches", counting)
    assert not await passwords.verify(None, "whatever it may be")
    # not even the password that the stand-in was made from
    assert not await passwords.verify(None, "nobody has this password")
    assert len(verified) == 2
    assert verified[0] == verified[1]
    assert verified[0].split("$")[1:4] == (await passwords.hash("x")).split("$")[1:4]


async def test_a_row_that_is_no_hash_matches_nothing(passwords: Argon2Passwords) -> None:
    for row in ("", "x", "$argon2id$v=19$m=8,t=1,p=1$xx", "password"):
        assert not await passwords.verify(row, row)
        assert passwords.needs_rehash(row)


async def test_a_hash_of_another_cost_wants_a_rehash(passwords: Argon2Passwords) -> None:
    encoded = await passwords.hash("correct horse")
    assert not passwords.needs_rehash(encoded)
    dearer = Argon2Passwords(Argon2Profile(time_cost=2, memory_kib=16))
    assert dearer.needs_rehash(encoded)
    assert await dearer.verify(encoded, "correct horse")
    dearer.close()


async def test_the_default_cost_is_the_documented_one() -> None:
    passwords = Argon2Passwords()
    encoded = await passwords.hash("correct horse")
    assert encoded.startswith("$argon2id$v=19$m=65536,t=3,p=1$")
    passwords.close()


async def test_a_flood_is_refused_beyond_the_queue_and_the_rest_is_served(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    passwords = Argon2Passwords(CHEAP_FOR_TESTS, threads=2, queue=3)
    gate, entered, running, most = threading.Event(), threading.Semaphore(0), 0, 0
    lock = threading.Lock()
    encoded = await passwords.hash("correct horse")
    real = passwords._matches

    def slow(encoded: str, secret: bytes) -> bool:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        entered.release()
        gate.wait(30)
        with lock:
            running -= 1
        return real(encoded, secret)

    monkeypatch.setattr(passwords, "_matches", slow)
    callers = [asyncio.create_task(passwords.verify(encoded, "correct horse")) for _ in range(20)]
    refused, served = await asyncio.wait(callers, return_when=asyncio.FIRST_COMPLETED)
    while len(refused) < 15:
        more, served = await asyncio.wait(served, return_when=asyncio.FIRST_COMPLETED)
        refused |= more
    for _ in range(2):
        assert await asyncio.to_thread(entered.acquire, timeout=30)
    gate.set()
    assert all(await asyncio.gather(*served))
    errors = [task.exception() for task in refused]
    assert {error.code for error in errors if isinstance(error, Problem)} == {"overloaded"}
    assert (len(errors), len(served), most) == (15, 5, 2)
    assert await passwords.verify(encoded, "correct horse")
    passwords.close()


async def test_callers_that_give_up_still_count_until_their_hash_is_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    passwords = Argon2Passwords(CHEAP_FOR_TESTS, threads=1, queue=0)
    gate, entered = threading.Event(), threading.Event()

    def slow(encoded: str, secret: bytes) -> bool:
        entered.set()
        return gate.wait(30)

    monkeypatch.setattr(passwords, "_matches", slow)
    impatient = asyncio.create_task(passwords.verify("x", "y"))
    assert await asyncio.to_thread(entered.wait, 30)
    impatient.cancel()
    await asyncio.gather(impatient, return_exceptions=True)
    with pytest.raises(Problem, match="overloaded"):
        await passwords.verify("x", "y")
    gate.set()
    passwords.close()


async def test_after_closing_it_is_unavailable(passwords: Argon2Passwords) -> None:
    passwords.close()
    with pytest.raises(Problem, match="unavailable"):
        await passwords.hash("correct horse")
