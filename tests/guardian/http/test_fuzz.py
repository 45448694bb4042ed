"""No input makes a 5xx, and every refusal is a problem document."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from guardian.http.endpoints import ENDPOINTS, Endpoint, codes_of

#: the service outlives the examples; what they leave in it is part of the search
ONE_SERVICE = settings(
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**54), 2**54) | st.floats() | st.text(max_size=20),
    lambda children: (
        st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=8), children, max_size=4)
    ),
    max_leaves=12,
)
MEMBERS = st.sampled_from(
    [
        "email", "password", "refresh_token", "name", "schema", "schema_id", "key", "content",
        "user_id", "role", "expected_version", "to_version", "is_admin",
    ]
)  # fmt: skip
PARAMETERS = st.sampled_from(
    [
        "limit", "cursor", "consistency", "min_revision", "owner", "expected_version", "redirect",
        "for", "x",
    ]
)  # fmt: skip
BODIES = st.dictionaries(MEMBERS, JSON, max_size=6).map(
    lambda body: json.dumps(body).encode("utf-8", "surrogatepass")
) | st.binary(max_size=200)
SEGMENT = st.text(max_size=12).map(lambda text: quote(text, safe="", errors="replace"))
WITH_BODY = [endpoint for endpoint in ENDPOINTS if endpoint.body is not None]


def assert_harmless(answer: Any, endpoint: Endpoint | None = None) -> None:
    assert answer.status < 500, (answer.status, answer.raw)
    assert answer.headers["X-Request-ID"]
    if endpoint is not None and answer.status >= 400:
        assert answer.code in codes_of(endpoint), "the table names every code"
    if answer.status >= 400:
        assert answer.code
        assert answer.json["status"] == answer.status
        assert b"Traceback" not in answer.raw


@ONE_SERVICE
@given(endpoint=st.sampled_from(WITH_BODY), body=BODIES)
async def test_no_body_makes_a_server_error(world: Any, endpoint: Endpoint, body: bytes) -> None:
    path = endpoint.path.format(project_id="p", schema_id="s", key="k")
    answer = await world.ask(endpoint.method, f"/{path}", data=body, as_user="root")
    assert_harmless(answer, endpoint)


@ONE_SERVICE
@given(data=st.data(), endpoint=st.sampled_from(ENDPOINTS))
async def test_no_path_makes_a_server_error(
    world: Any, data: st.DataObject, endpoint: Endpoint
) -> None:
    names = ("project_id", "schema_id", "key", "key_id", "user_id", "version", "api_key")
    values = {name: data.draw(SEGMENT, name) or "x" for name in names}
    answer = await world.ask(endpoint.method, "/" + endpoint.path.format(**values), as_user="root")
    assert_harmless(answer)


@ONE_SERVICE
@given(
    endpoint=st.sampled_from([e for e in ENDPOINTS if e.queries and "{" not in e.path]),
    query=st.dictionaries(
        PARAMETERS,
        SEGMENT,
        max_size=4,
    ),
)
async def test_no_query_makes_a_server_error(
    world: Any, endpoint: Endpoint, query: dict[str, str]
) -> None:
    text = "&".join(f"{name}={value}" for name, value in query.items())
    answer = await world.ask(endpoint.method, f"/{endpoint.path}?{text}", as_user="root")
    assert_harmless(answer, endpoint)


HEADER = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=40)


@ONE_SERVICE
@given(
    headers=st.dictionaries(
        st.sampled_from(
            [
                "Authorization", "X-API-Key", "If-Match", "If-None-Match", "Idempotency-Key",
                "Accept", "Content-Type", "Content-Encoding", "X-Request-ID", "X-Forwarded-For",
                "Expect",
            ]
        ),
        HEADER,
        max_size=4,
    ),
    operation=st.sampled_from(["GET /read/k", "PUT /projects/p/configs/k", "GET /users/me"]),
)  # fmt: skip
async def test_no_header_makes_a_server_error(
    world: Any, headers: dict[str, str], operation: str
) -> None:
    method, path = operation.split(" ")
    body = {"content": 1} if method == "PUT" else None
    assert_harmless(await world.ask(method, path, body, headers=headers))
