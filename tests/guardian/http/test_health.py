"""Probes, metrics, and how much they tell to whom."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import aiohttp
import pytest

from guardian.domain.problems import Problem
from guardian.http import HealthReport, NodeHealth
from guardian.settings import HostPort
from guardian.usecases.ports import ClusterView

WELL = HealthReport(recovered=True, knows_leader=True, caught_up=True)


@pytest.mark.parametrize(
    ("report", "ready", "locally"),
    [
        (WELL, 200, 200),
        (replace(WELL, degraded=("postgres",)), 200, 200),
        (replace(WELL, knows_leader=False), 503, 200),
        (replace(WELL, caught_up=False), 503, 200),
        (replace(WELL, recovered=False), 503, 503),
        (replace(WELL, draining=True), 503, 503),
        (replace(WELL, out=("quarantined",)), 503, 200),
        (replace(WELL, out=("not_a_member",)), 503, 200),
        (replace(WELL, degraded=("disk_stalled",)), 200, 200),
    ],
)
async def test_ready_follows_the_report(
    world: Any, report: HealthReport, ready: int, locally: int
) -> None:
    world.health.current = report
    for path in ("//ready", "//readyz", "//health", "//healthz"):
        answer = await world.ask("GET", path)
        assert answer.status == ready, path
        assert answer.json.get("degraded", []) == list(report.degraded)
        assert ("Retry-After" in answer.headers) == (ready == 503)
    assert (await world.ask("GET", "//ready?for=local")).status == locally
    assert (await world.ask("GET", "//livez")).status == 200


async def test_reasons_are_for_administrators(world: Any) -> None:
    await world.add_user("anyone")
    world.health.current = replace(WELL, knows_leader=False)
    assert (await world.ask("GET", "//ready")).json == {"status": "not_ready"}
    assert (await world.ask("GET", "//ready", as_user="anyone")).json == {"status": "not_ready"}
    told = (await world.ask("GET", "//ready", as_user="root")).json
    assert told == {"status": "not_ready", "reasons": ["no_leader"]}
    forged = await world.ask("GET", "//ready", headers={"Authorization": "Bearer x"})
    assert forged.json == {"status": "not_ready"}


async def test_a_wrong_question_is_422(world: Any) -> None:
    answer = await world.ask("GET", "//ready?for=everybody")
    assert (answer.status, answer.code) == (422, "invalid_parameter")


async def test_welcome_names_the_service(world: Any) -> None:
    answer = (await world.ask("GET", "//")).json
    assert (answer["name"], answer["version"]) == ("guardian", "1.2.3")
    for path in answer["links"].values():
        if path != "/api/v1":
            assert (await world.ask("GET", f"/{path}")).status == 200


async def test_metrics_count_by_route_template(world: Any) -> None:
    await world.ask("GET", "/users/nobody", as_user="root")
    await world.ask("GET", "/nothing")
    text = (await world.ask("GET", "//metrics")).raw.decode()
    users = 'method="GET",route="/api/v1/users/{user_id}",status="404"'
    assert f"guardian_http_requests_total{{{users}}} 1.0" in text
    assert 'route="unmatched",status="404"' in text
    assert 'guardian_http_problems_total{code="not_found"} 2.0' in text
    assert "nobody" not in text


@pytest.mark.parametrize("world", [{"metrics": HostPort("127.0.0.1", 0)}], indirect=True)
async def test_metrics_can_have_a_listener_of_their_own(world: Any) -> None:
    assert (await world.ask("GET", "//metrics")).status == 404
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://{world.server.metrics_address}/metrics") as answer,
    ):
        assert answer.status == 200
        assert b"guardian_http_requests_total" in await answer.read()
        assert "Server" not in answer.headers


class ViewedLog:
    """A log of which only the picture of the cluster is wanted."""

    view = ClusterView("n", "follower", 1, None, 0, 0, ())

    rebuilding = False

    def cluster(self) -> ClusterView:
        return self.view

    def require_local(self) -> None:
        if self.rebuilding:
            raise Problem("unavailable")


def test_a_node_that_rebuilds_its_state_is_not_ready_even_for_local_reads() -> None:
    log = ViewedLog()
    log.view = replace(log.view, leader_id="m")
    health = NodeHealth(log, lambda: True)  # type: ignore[arg-type]
    log.rebuilding = True
    assert not health.report().ready(local=True)
    log.rebuilding = False
    assert health.report().ready(local=True)


@pytest.mark.parametrize("condition", ["not_a_member", "removed", "quarantined"])
def test_a_node_that_takes_no_part_is_not_ready_and_says_why(condition: str) -> None:
    log = ViewedLog()
    log.view = replace(log.view, leader_id="m", conditions=(condition,))
    report = NodeHealth(log, lambda: True).report()  # type: ignore[arg-type]
    assert not report.ready(local=False)
    assert report.reasons(local=False) == [condition]
    assert report.degraded == ()


def test_a_node_whose_disk_hangs_is_ready_but_degraded() -> None:
    log = ViewedLog()
    log.view = replace(log.view, leader_id="m", conditions=("disk_stalled",))
    report = NodeHealth(log, lambda: False).report()  # type: ignore[arg-type]
    assert report.ready(local=False)
    assert report.degraded == ("postgres", "disk_stalled")


def test_a_node_is_caught_up_once_it_applied_what_was_committed_when_it_met_a_leader() -> None:
    log, database_is_up = ViewedLog(), True
    health = NodeHealth(log, lambda: database_is_up)  # type: ignore[arg-type]
    assert not health.report().knows_leader
    log.view = replace(log.view, leader_id="m", commit_index=10, applied_index=4)
    assert not health.report().ready(local=False)
    assert health.report().ready(local=True)
    log.view = replace(log.view, commit_index=99, applied_index=10)
    assert health.report().ready(local=False)
    log.view = replace(log.view, commit_index=1000)  # load does not make it flap
    assert health.report().ready(local=False)
    database_is_up = False
    assert health.report().degraded == ("postgres",)
    assert health.report().ready(local=False)
    health.drain()
    assert not health.report().ready(local=True)
