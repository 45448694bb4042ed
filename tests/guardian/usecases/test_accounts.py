"""Accounts: who may have one, how one signs in, and what guessing costs."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from guardian.domain.entities import Principal
from guardian.domain.problems import Problem
from guardian.usecases.accounts import AccountPolicy, Accounts
from guardian.usecases.paging import PageRequest

PASSWORD = "correct horse battery"


async def code_of(awaitable: Any) -> str:
    with pytest.raises(Problem) as caught:
        await awaitable
    return caught.value.code


@pytest.fixture
def accounts(stage: Any) -> Accounts:
    services: Any = stage.services
    assert isinstance(services.accounts, Accounts)
    return services.accounts


@pytest.fixture
async def alice(stage: Any, accounts: Accounts) -> Principal:
    user = await accounts.create(stage.who("root"), "Alice@example.org", PASSWORD)
    return Principal(user.id, is_admin=False)


@pytest.fixture
def time(accounts: Accounts) -> Any:
    """The monotonic clock of the throttles, in a list."""
    now = [0.0]
    for clocked in (accounts._by_account, accounts._by_address, accounts._known):
        clocked._now_s = lambda: now[0]
    return now


async def test_registration_is_closed_unless_opened(stage: Any, new_stage: Any) -> None:
    closed = stage.services.accounts.register("a@b", PASSWORD)
    assert await code_of(closed) == "registration_closed"
    accounts = new_stage(AccountPolicy(registration_open=True)).services.accounts
    user = await accounts.register("a@b", PASSWORD)
    assert (user.email, user.is_admin, user.created_at_ms) == ("a@b", False, 1_000_000)
    assert await code_of(accounts.register("A@b", PASSWORD)) == "email_taken"


@pytest.mark.parametrize(
    ("email", "password", "pointer"),
    [
        ("nobody", PASSWORD, "/email"),
        ("a@b", "short", "/password"),
        ("a@b", "x" * 257, "/password"),
    ],
)
async def test_bad_credentials_are_refused_before_hashing(
    stage: Any, accounts: Accounts, email: str, password: str, pointer: str
) -> None:
    stage.hasher.hash = None
    with pytest.raises(Problem) as caught:
        await accounts.create(stage.who("root"), email, password)
    assert caught.value.code == "validation_failed"
    assert caught.value.errors[0].pointer == pointer
    assert password not in str(caught.value.errors)


async def test_login_gives_tokens_that_name_the_user(accounts: Accounts, alice: Principal) -> None:
    tokens = await accounts.login("alice@EXAMPLE.org", PASSWORD, "10.0.0.1")
    assert await accounts.authenticate(tokens.access_token) == alice
    assert tokens.expires_in_s == 900
    assert len(tokens.refresh_token) >= 43


async def test_only_digests_of_refresh_tokens_are_kept(
    stage: Any, accounts: Accounts, alice: Principal
) -> None:
    tokens = await accounts.login("alice@example.org", PASSWORD, "x")
    ((digest, row),) = stage.refresh.rows.items()
    assert len(digest) == 32
    assert tokens.refresh_token not in str(stage.refresh.rows)
    assert row[2] == stage.clock.ms + 30 * 24 * 3600 * 1000


@pytest.mark.parametrize(
    ("email", "password"),
    [
        ("alice@example.org", "wrong password!"),
        ("nobody@example.org", PASSWORD),
        ("no address", PASSWORD),
        ("alice@example.org", "short"),
        ("alice@example.org", "x" * 10_000_000),
        ("alice@example.org", "x" * 20 + "\0"),
        ("a\0@b", PASSWORD),
        ("x" * 100_000, PASSWORD),
    ],
)
async def test_all_wrong_credentials_look_alike_and_cost_one_verification(
    stage: Any, accounts: Accounts, alice: Principal, email: str, password: str
) -> None:
    with pytest.raises(Problem) as caught:
        await accounts.login(email, password, "10.0.0.1")
    problem = caught.value
    assert (problem.code, problem.detail) == (
        "invalid_credentials",
        "E-mail or password is wrong",
    )
    assert (problem.errors, problem.extra) == ((), {})
    ((_, verified),) = stage.hasher.verified
    assert len(verified) <= 256


async def fail(accounts: Accounts, email: str, address: str) -> str:
    return await code_of(accounts.login(email, "wrong password!", address))


async def test_the_eleventh_failure_of_an_account_is_429_and_not_for_ever(
    stage: Any, accounts: Accounts, alice: Principal, time: Any
) -> None:
    for n in range(10):
        assert await fail(accounts, "alice@example.org", f"10.0.0.{n}") == "invalid_credentials"
    with pytest.raises(Problem) as caught:
        await accounts.login("ALICE@example.org", PASSWORD, "10.0.1.1")
    assert caught.value.code == "rate_limited"
    assert caught.value.retry_after_s == 600.0
    assert len(stage.hasher.verified) == 10
    time[0] = 600.1
    await accounts.login("alice@example.org", PASSWORD, "10.0.1.1")


async def test_the_fifty_first_failure_of_an_address_is_429(
    accounts: Accounts, alice: Principal, time: Any
) -> None:
    for n in range(50):
        assert await fail(accounts, f"user{n}@example.org", "10.0.0.1") == "invalid_credentials"
    assert await fail(accounts, "other@example.org", "10.0.0.1") == "rate_limited"
    await accounts.login("alice@example.org", PASSWORD, "10.0.0.2")


async def test_failures_at_the_same_time_can_not_slip_through_together(
    stage: Any, accounts: Accounts, alice: Principal, time: Any
) -> None:
    gate = asyncio.Event()
    verify = stage.hasher.verify

    async def slow(password_hash: str | None, password: str) -> bool:
        await gate.wait()
        return bool(await verify(password_hash, password))

    stage.hasher.verify = slow
    tries = [
        asyncio.create_task(fail(accounts, "alice@example.org", f"10.0.0.{n}")) for n in range(30)
    ]
    await asyncio.sleep(0)
    gate.set()
    codes = await asyncio.gather(*tries)
    assert (codes.count("invalid_credentials"), codes.count("rate_limited")) == (10, 20)


async def test_successes_and_undecided_logins_are_no_failures(
    stage: Any, accounts: Accounts, alice: Principal, time: Any
) -> None:
    for _ in range(60):
        await accounts.login("alice@example.org", PASSWORD, "10.0.0.1")
    for switch in ("full", "away"):
        stage.hasher.full = switch == "full"
        stage.users.away_for = {"credentials"} if switch == "away" else set()
        code = "overloaded" if switch == "full" else "unavailable"
        for _ in range(60):
            assert await fail(accounts, "alice@example.org", "10.0.0.1") == code
    stage.users.away_for = set()
    await accounts.login("alice@example.org", PASSWORD, "10.0.0.1")


async def test_a_success_forgives_the_account_but_not_the_address(
    accounts: Accounts, alice: Principal, time: Any
) -> None:
    for _ in range(5):
        for _ in range(9):
            await fail(accounts, "alice@example.org", "10.0.0.1")
        await accounts.login("alice@example.org", PASSWORD, "10.0.0.1")
    for _ in range(5):
        await fail(accounts, "alice@example.org", "10.0.0.1")
    limited = accounts.login("alice@example.org", PASSWORD, "10.0.0.1")
    assert await code_of(limited) == "rate_limited"
    await accounts.login("alice@example.org", PASSWORD, "10.0.0.2")


async def test_a_hash_of_old_parameters_is_renewed_at_login(
    stage: Any, accounts: Accounts, alice: Principal
) -> None:
    stage.hasher.scheme = "v2"
    await accounts.login("alice@example.org", PASSWORD, "x")
    assert stage.users.rows[alice.user_id].password_hash == f"v2:{PASSWORD}"


async def test_a_refresh_token_works_once_and_its_reuse_ends_the_family(
    accounts: Accounts, alice: Principal
) -> None:
    first = await accounts.login("alice@example.org", PASSWORD, "x")
    second = await accounts.refresh(first.refresh_token)
    assert second.refresh_token != first.refresh_token
    assert await accounts.authenticate(second.access_token) == alice
    assert await code_of(accounts.refresh(first.refresh_token)) == "refresh_reused"
    assert await code_of(accounts.refresh(second.refresh_token)) == "invalid_token"
    other = await accounts.login("alice@example.org", PASSWORD, "x")
    await accounts.refresh(other.refresh_token)


@pytest.mark.parametrize("token", ["", "nope", "é", "x" * 10_000, "\ud800"])
async def test_a_forged_refresh_token_is_invalid(accounts: Accounts, token: str) -> None:
    assert await code_of(accounts.refresh(token)) == "invalid_token"
    await accounts.logout(token)


async def test_after_logout_expiry_or_removal_a_refresh_token_is_invalid(
    stage: Any, accounts: Accounts, alice: Principal
) -> None:
    out = await accounts.login("alice@example.org", PASSWORD, "x")
    await accounts.logout(out.refresh_token)
    assert await code_of(accounts.refresh(out.refresh_token)) == "invalid_token"
    old = await accounts.login("alice@example.org", PASSWORD, "x")
    stage.clock.ms += 31 * 24 * 3600 * 1000
    assert await code_of(accounts.refresh(old.refresh_token)) == "invalid_token"
    gone = await accounts.login("alice@example.org", PASSWORD, "x")
    await accounts.delete(stage.who("root"), alice.user_id)
    assert await code_of(accounts.refresh(gone.refresh_token)) == "invalid_token"
    assert await code_of(accounts.me(alice)) == "invalid_token"


async def test_who_sees_and_changes_users(stage: Any, accounts: Accounts, alice: Principal) -> None:
    bob = await accounts.create(stage.who("root"), "bob@example.org", PASSWORD, is_admin=True)
    assert (await accounts.me(alice)).id == alice.user_id
    assert (await accounts.get(alice, alice.user_id)).email == "Alice@example.org"
    for user_id in (bob.id, "nobody", "a\0b"):
        assert await code_of(accounts.get(alice, user_id)) == "not_found"
    assert (await accounts.get(stage.who("root"), bob.id)).is_admin
    assert await code_of(accounts.get(stage.who("root"), "a\0b")) == "not_found"
    assert await code_of(accounts.list(alice, PageRequest())) == "forbidden"
    assert await code_of(accounts.create(alice, "c@d", PASSWORD)) == "forbidden"
    assert await code_of(accounts.delete(alice, alice.user_id)) == "forbidden"
    assert await code_of(accounts.delete(stage.who("root"), "nobody")) == "not_found"
    assert await code_of(accounts.delete(stage.who("root"), "a\0b")) == "not_found"
    page = await accounts.list(stage.who("root"), PageRequest(1))
    rest = await accounts.list(stage.who("root"), PageRequest(1, page.next_cursor))
    assert {user.id for user in (*page.items, *rest.items)} == {alice.user_id, bob.id}
    assert rest.next_cursor is None


async def test_the_first_admin_is_made_once(stage: Any, accounts: Accounts) -> None:
    admin = await accounts.ensure_first_admin("admin@localhost", PASSWORD)
    assert admin is not None
    assert admin.is_admin
    assert await accounts.ensure_first_admin("other@localhost", "not even long enough?") is None
    assert [row.user.email for row in stage.users.rows.values()] == ["admin@localhost"]


async def test_a_first_admin_with_a_short_password_is_refused(accounts: Accounts) -> None:
    assert await code_of(accounts.ensure_first_admin("admin@localhost", "short")) == (
        "validation_failed"
    )


async def test_a_token_of_a_deleted_user_is_refused_here_at_once(
    stage: Any, accounts: Accounts, alice: Principal
) -> None:
    token = (await accounts.login("alice@example.org", PASSWORD, "x")).access_token
    assert await accounts.authenticate(token) == alice
    await accounts.delete(stage.who("root"), alice.user_id)
    assert await code_of(accounts.authenticate(token)) == "invalid_token"


async def test_what_another_node_does_to_a_user_counts_here_within_five_seconds(
    stage: Any, accounts: Accounts, alice: Principal, time: Any
) -> None:
    token = (await accounts.login("alice@example.org", PASSWORD, "x")).access_token
    assert await accounts.authenticate(token) == alice
    row = stage.users.rows[alice.user_id]
    promoted = replace(row.user, is_admin=True)
    stage.users.rows[alice.user_id] = replace(row, user=promoted)
    time[0] = 4.9
    assert not (await accounts.authenticate(token)).is_admin
    time[0] = 5.0
    assert (await accounts.authenticate(token)).is_admin
    del stage.users.rows[alice.user_id]
    time[0] = 10.0
    assert await code_of(accounts.authenticate(token)) == "invalid_token"


async def test_is_admin_is_what_the_row_says_not_the_token(
    stage: Any, accounts: Accounts, alice: Principal
) -> None:
    assert await accounts.authenticate(f"access:{alice.user_id}:True") == alice


async def test_without_postgres_a_signature_grants_nothing_for_longer_than_the_cache(
    stage: Any, accounts: Accounts, alice: Principal, time: Any
) -> None:
    token = (await accounts.login("alice@example.org", PASSWORD, "x")).access_token
    await accounts.authenticate(token)
    stage.users.away_for = {"*"}
    assert await accounts.authenticate(token) == alice
    time[0] = 5.0
    assert await code_of(accounts.authenticate(token)) == "unavailable"
    assert accounts.signed_in(f"access:{alice.user_id}:True") == alice
