"""Rates, deadlines, redirects, and what a client is told when the log is in trouble."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from guardian.domain.problems import Problem
from guardian.http import HttpServer, build_metrics_application
from guardian.http.ratelimit import RateLimiter, client_of, remote_address
from guardian.settings import HostPort

WRITES = (
    ("POST", "/projects", {"name": "x"}),
    ("POST", "/schemas", {"name": "x", "schema": {}}),
)


@pytest.mark.parametrize("world", [{"rate_per_address": 3}], indirect=True)
async def test_an_address_that_asks_too_often_is_429_but_probes_go_on(world: Any) -> None:
    answers = [await world.ask("GET", "/users/me", as_user="root") for _ in range(10)]
    refused = [answer for answer in answers if answer.status == 429]
    assert answers[0].status == 200
    assert refused
    assert refused[0].code == "rate_limited"
    assert int(refused[0].headers["Retry-After"]) >= 1
    for path in ("//livez", "//ready", "//metrics"):
        assert (await world.ask("GET", path)).status == 200


@pytest.mark.parametrize("world", [{"rate_per_address": 1}], indirect=True)
async def test_a_forged_forwarded_for_is_ignored(world: Any) -> None:
    statuses = set()
    for number in range(4):
        headers = {"X-Forwarded-For": f"1.2.3.{number}"}
        answer = await world.ask("GET", "/users/me", as_user="root", headers=headers)
        statuses.add(answer.status)
    assert 429 in statuses


@pytest.mark.parametrize(
    "world",
    [{"rate_per_address": 1, "trusted_proxies": (ipaddress.ip_network("127.0.0.0/8"),)}],
    indirect=True,
)
async def test_a_trusted_proxy_speaks_for_its_clients(world: Any) -> None:
    for number in range(4):
        headers = {"X-Forwarded-For": f"9.9.9.9, 1.2.3.{number}"}
        answer = await world.ask("GET", "/users/me", as_user="root", headers=headers)
        assert answer.status == 200


PROXIES = (ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("fd00::/8"))


@pytest.mark.parametrize(
    ("peer", "forwarded", "address"),
    [
        ("1.1.1.1", "2.2.2.2", "1.1.1.1"),
        ("unix", "2.2.2.2", "unix"),
        ("10.0.0.1", "2.2.2.2", "2.2.2.2"),
        ("10.0.0.1", "3.3.3.3, 2.2.2.2", "2.2.2.2"),
        ("10.0.0.1", "3.3.3.3, 2.2.2.2, 10.0.0.2", "2.2.2.2"),
        ("10.0.0.1", "10.0.0.3, 10.0.0.2", "10.0.0.3"),
        ("10.0.0.1", "2.2.2.2, forged", "10.0.0.1"),
        ("10.0.0.1", "", "10.0.0.1"),
        ("10.0.0.1", ",".join(["4.4.4.4"] * 100), "4.4.4.4"),
        ("::ffff:10.0.0.1", "2.2.2.2", "2.2.2.2"),
        ("fd00::1%eth0", "2001:db8::1", "2001:db8::1"),
    ],
)
def test_the_rightmost_hop_that_is_not_ours_counts(peer: str, forwarded: str, address: str) -> None:
    assert remote_address(peer, forwarded, PROXIES) == address


def test_an_ipv6_network_is_one_client() -> None:
    assert client_of("2001:db8::1") == client_of("2001:db8::ffff:1%eth0") == "2001:db8::/64"
    assert client_of("2001:db8:0:1::1") != client_of("2001:db8::1")
    assert client_of("::ffff:1.2.3.4") == "1.2.3.4"
    assert client_of("unix") == "unix"


def test_a_full_bucket_allows_a_second_of_requests_and_then_the_rate() -> None:
    limiter = RateLimiter(10)
    admitted = sum(limiter.admit("a", 100.0) == 0 for _ in range(50))
    assert admitted == 10
    wait_s = limiter.admit("a", 100.0)
    assert 0 < wait_s <= 0.1 + 1e-6
    assert limiter.admit("a", 100.0 + wait_s + 1e-6) == 0
    assert limiter.admit("b", 100.0) == 0


@given(
    per_second=st.integers(1, 1000),
    gaps_s=st.lists(st.floats(0, 0.5), min_size=1, max_size=200),
)
def test_no_window_admits_more_than_burst_and_rate(per_second: int, gaps_s: list[float]) -> None:
    limiter, now_s, admitted = RateLimiter(per_second), 0.0, []
    for gap_s in gaps_s:
        now_s += gap_s
        if limiter.admit("a", now_s) == 0:
            admitted.append(now_s)
    for first, start_s in enumerate(admitted):
        for last in range(first, len(admitted)):
            window_s = admitted[last] - start_s
            assert last - first + 1 <= per_second * (1 + window_s) + 1 + 1e-6


def test_the_memory_of_a_limiter_is_bounded() -> None:
    limiter = RateLimiter(1, max_clients=100)
    for number in range(10_000):
        limiter.admit(str(number), 1.0)
    assert len(limiter) == 100


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("no_leader", 503),
        ("overloaded", 503),
        ("storage_full", 503),
        ("unavailable", 503),
        ("outcome_unknown", 504),
    ],
)
async def test_trouble_with_the_log_is_told_exactly(world: Any, code: str, status: int) -> None:
    world.log.trouble = Problem(code)
    for method, path, body in WRITES:
        answer = await world.ask(method, path, body, as_user="root")
        assert (answer.status, answer.code) == (status, code)
        assert ("Retry-After" in answer.headers) == (status == 503)


@pytest.mark.parametrize("world", [{"request_deadline_s": 0.1}], indirect=True)
async def test_a_write_that_hangs_has_an_unknown_outcome(world: Any) -> None:
    world.log.stuck = asyncio.Event()
    answer = await world.ask("POST", "/projects", {"name": "x"}, as_user="root")
    assert (answer.status, answer.code) == (504, "outcome_unknown")


@pytest.mark.parametrize("world", [{"request_deadline_s": 0.1}], indirect=True)
async def test_a_read_that_hangs_is_unavailable(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hang(*_: object, **__: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(type(world.log), "barrier", hang)
    answer = await world.ask("GET", "/projects", as_user="root")
    assert (answer.status, answer.code) == (503, "unavailable")


async def test_redirect_leads_to_the_leader(world: Any) -> None:
    world.log.leader, world.log.leader_address = False, "10.1.2.3:8080"
    for method, path, body in WRITES:
        answer = await world.ask(method, path + "?redirect=true&x=%2F", body, as_user="root")
        assert answer.status == 307
        assert answer.headers["Location"] == (
            f"http://10.1.2.3:8080/api/v1{path}?redirect=true&x=%2F"
        )
    assert world.log.executed == []
    unasked = await world.ask("POST", "/projects", {"name": "x"}, as_user="root")
    assert unasked.status == 201


async def test_redirect_keeps_an_encoded_slash(world: Any) -> None:
    world.log.leader = False
    answer = await world.ask("DELETE", "/projects/p/configs/a%2Fb?redirect=true", as_user="root")
    assert answer.headers["Location"].endswith("/projects/p/configs/a%2Fb?redirect=true")


async def test_redirect_on_the_leader_changes_nothing(world: Any) -> None:
    answer = await world.ask("POST", "/projects?redirect=true", {"name": "x"}, as_user="root")
    assert answer.status == 201
    wrong = await world.ask("POST", "/projects?redirect=yes", {"name": "x"}, as_user="root")
    assert (wrong.status, wrong.code) == (422, "invalid_parameter")


async def test_redirect_without_a_leader_is_503(world: Any) -> None:
    world.log.leader, world.log.leader_address = False, None
    answer = await world.ask("POST", "/projects?redirect=true", {"name": "x"}, as_user="root")
    assert (answer.status, answer.code) == (503, "no_leader")
    assert answer.headers["Retry-After"] == "1"


async def test_nobody_is_redirected_without_a_token(world: Any) -> None:
    world.log.leader = False
    answer = await world.ask("POST", "/projects?redirect=true", {"name": "x"})
    assert (answer.status, answer.code) == (401, "unauthenticated")


async def test_a_client_that_leaves_does_not_cancel_its_write(world: Any) -> None:
    world.log.stuck = asyncio.Event()
    asked = asyncio.ensure_future(world.ask("POST", "/projects", {"name": "x"}, as_user="root"))
    await until(lambda: b"guardian_http_requests_in_flight 1.0" in world.metrics.render())
    asked.cancel()
    world.log.stuck.set()
    await until(lambda: len(world.log.executed) == 1)


async def test_a_stop_lets_requests_under_way_finish(world: Any) -> None:
    world.log.stuck = asyncio.Event()
    asked = asyncio.ensure_future(world.ask("POST", "/projects", {"name": "x"}, as_user="root"))
    await until(lambda: b"guardian_http_requests_in_flight 1.0" in world.metrics.render())
    stopping = asyncio.ensure_future(world.server.stop())
    await asyncio.sleep(0)
    world.log.stuck.set()
    assert (await asked).status == 201
    await stopping
    with pytest.raises(OSError, match=r"."):
        await asyncio.open_connection(world.server.address.host, world.server.address.port)


async def test_a_taken_port_is_an_error_and_leaves_nothing_open(world: Any) -> None:
    taken = replace(world.settings, http=world.server.address, metrics=HostPort("127.0.0.1", 0))
    metrics = build_metrics_application(world.metrics)
    second = HttpServer(web.Application(), taken, world.metrics, metrics_application=metrics)
    with pytest.raises(OSError, match="address already in use"):
        await second.start()
    assert second.metrics_address == taken.metrics  # never bound


async def test_a_listener_for_metrics_needs_an_application(world: Any) -> None:
    wanted = replace(world.settings, metrics=HostPort("127.0.0.1", 0))
    with pytest.raises(ValueError, match="metrics_application"):
        HttpServer(web.Application(), wanted, world.metrics)


async def test_the_server_is_an_async_context_manager(world: Any) -> None:
    application = web.Application()
    async with HttpServer(application, world.settings, world.metrics) as server:
        address = server.address
        assert address.port != 0
        _, writer = await asyncio.open_connection(address.host, address.port)
        writer.close()
    with pytest.raises(OSError, match=r"."):
        await asyncio.open_connection(address.host, address.port)


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop turn until ``condition`` holds; the test's own timeout is the bound."""
    while not condition():  # noqa: ASYNC110 - what is waited for is the server's inner state
        await asyncio.sleep(0.001)
