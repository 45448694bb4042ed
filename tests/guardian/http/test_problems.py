"""Every refusal has one shape."""

from __future__ import annotations

import json
from typing import Any

import pytest

from guardian.domain.problems import CODES, Fault, Problem
from guardian.http.problems import problem_response, request_id_of


@pytest.mark.parametrize("code", sorted(CODES))
def test_every_code_makes_a_problem_document(code: str) -> None:
    response = problem_response(Problem(code), "r1")
    assert response.status == CODES[code].status
    assert response.content_type == "application/problem+json"
    assert response.headers["X-Request-ID"] == "r1"
    assert isinstance(response.body, bytes)
    assert json.loads(response.body) == {
        "type": f"/docs#{code}",
        "title": CODES[code].title,
        "status": CODES[code].status,
        "detail": CODES[code].title,
        "code": code,
        "request_id": "r1",
    }
    assert ("Retry-After" in response.headers) == (CODES[code].retry == "later")
    assert ("WWW-Authenticate" in response.headers) == (response.status == 401)


def test_faults_versions_and_extras_are_members() -> None:
    problem = Problem(
        "document_invalid",
        "one sentence",
        errors=(Fault("/a~1b", "is bad"),),
        current_version=7,
        extra={"count": 3, "status": 200},
    )
    body = problem_response(problem, "r").body
    assert isinstance(body, bytes)
    document = json.loads(body)
    assert document["errors"] == [{"pointer": "/a~1b", "message": "is bad"}]
    assert (document["current_version"], document["count"]) == (7, 3)
    assert document["status"] == 422  # an extra never hides a member of RFC 9457


@pytest.mark.parametrize(("wait_s", "header"), [(0.2, "1"), (1.2, "2"), (599.0, "599")])
def test_retry_after_is_rounded_up(wait_s: float, header: str) -> None:
    response = problem_response(Problem("rate_limited", retry_after_s=wait_s), "r")
    assert response.headers["Retry-After"] == header


@pytest.mark.parametrize("given", ["a", "req-1", "A.b_c-9", "x" * 128])
def test_a_harmless_request_id_is_kept(given: str) -> None:
    assert request_id_of(given) == given


@pytest.mark.parametrize("given", [None, "", "-a", "x" * 129, "a b", "a\nb", "ä", "<x>", "a\n"])
def test_any_other_request_id_is_replaced(given: str | None) -> None:
    made = request_id_of(given)
    assert made != given
    assert len(made) == 32


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "//", 200),
        ("GET", "//nothing", 404),
        ("PATCH", "//livez", 405),
        ("OPTIONS", "//livez", 204),
        ("GET", "/users", 401),
        ("POST", "/auth/login", 415),
    ],
)
async def test_every_response_carries_the_request_id(
    world: Any, method: str, path: str, status: int
) -> None:
    answer = await world.ask(method, path, headers={"X-Request-ID": "mine-1"})
    assert (answer.status, answer.headers["X-Request-ID"]) == (status, "mine-1")
    if status >= 400:
        assert answer.json["request_id"] == "mine-1"
    other = await world.ask(method, path)
    assert len(other.headers["X-Request-ID"]) == 32


async def test_a_defect_is_500_without_a_word_about_it(
    world: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(token: str) -> None:
        raise RuntimeError("secret internals")

    monkeypatch.setattr(
        type(world.services.accounts), "authenticate", lambda _, token: broken(token)
    )
    answer = await world.ask("GET", "/users", as_user="root")
    assert (answer.status, answer.code) == (500, "internal_error")
    assert b"secret" not in answer.raw
    (record,) = [record for record in caplog.records if record.exc_info]
    assert record.name == "guardian.http.middleware.refuse"


async def test_refusals_of_one_kind_differ_in_nothing_but_the_request_id(world: Any) -> None:
    project, _, _ = await world.furnish()
    await world.add_user("stranger")
    bodies = set()
    for path in (f"/projects/{project}", "/projects/absent", f"/projects/{project}/configs/a"):
        answer = await world.ask("GET", path, as_user="stranger", headers={"X-Request-ID": "r"})
        assert answer.status == 404
        bodies.add(answer.raw)
    assert len(bodies) == 1
