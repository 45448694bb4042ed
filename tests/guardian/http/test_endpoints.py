"""The endpoint table, the router, the handlers and the OpenAPI document say the same thing."""

from __future__ import annotations

import re
from typing import Any

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from guardian.domain.problems import CODES
from guardian.http.docs import docs_page
from guardian.http.endpoints import ENDPOINTS, PREFIX, Auth, codes_of
from guardian.http.openapi import openapi_document
from guardian.http.routes import HANDLERS

# Every request of the interface, as it is promised.
PROMISED = """
POST /auth/register  POST /auth/login  POST /auth/refresh  POST /auth/logout
GET /users  GET /users/me  GET /users/{user_id}  POST /users  DELETE /users/{user_id}
POST /projects  GET /projects  GET /projects/{project_id}  DELETE /projects/{project_id}
GET /projects/{project_id}/keys  POST /projects/{project_id}/keys
DELETE /projects/{project_id}/keys/{key_id}
GET /projects/{project_id}/roles  POST /projects/{project_id}/roles
DELETE /projects/{project_id}/roles/{user_id}
POST /schemas  GET /schemas  GET /schemas/{schema_id}  PUT /schemas/{schema_id}
DELETE /schemas/{schema_id}
GET /projects/{project_id}/configs  POST /projects/{project_id}/configs
GET /projects/{project_id}/configs/{key}  PUT /projects/{project_id}/configs/{key}
DELETE /projects/{project_id}/configs/{key}
GET /projects/{project_id}/configs/{key}/revisions
GET /projects/{project_id}/configs/{key}/revisions/{version}
POST /projects/{project_id}/configs/{key}/rollback
GET /read/{api_key}/{key}  GET /read/{key}
GET /cluster  PUT /cluster/members  POST /cluster/transfer
"""
PROMISED_OUTSIDE = "/ /livez /ready /readyz /health /healthz /metrics /openapi.json /docs"


def test_every_promised_request_is_in_the_table() -> None:
    promised = {
        (method, PREFIX + path) for method, path in re.findall(r"(\w+) (/\S*)", PROMISED)
    } | {("GET", path) for path in PROMISED_OUTSIDE.split()}
    assert {(endpoint.method, endpoint.path) for endpoint in ENDPOINTS} == promised


async def test_table_and_router_agree_in_both_directions(world: Any) -> None:
    routed = {
        (route.method, route.resource.canonical)
        for route in world.application.router.routes()
        if route.method != "HEAD"
    }
    assert routed == {(endpoint.method, endpoint.path) for endpoint in ENDPOINTS}
    heads = {r.resource.canonical for r in world.application.router.routes() if r.method == "HEAD"}
    assert heads == {endpoint.path for endpoint in ENDPOINTS if endpoint.method == "GET"}


def test_every_operation_has_one_handler() -> None:
    assert set(HANDLERS) == {endpoint.operation for endpoint in ENDPOINTS}


def test_every_code_of_the_table_can_be_met_somewhere() -> None:
    met = {code for endpoint in ENDPOINTS for code in codes_of(endpoint)}
    # the router's own, and those that wait for the parts that raise them
    elsewhere = {"method_not_allowed", "idempotency_in_progress", "data_integrity"}
    assert set(CODES) - met <= elsewhere


def test_only_sessions_probes_and_reads_by_key_need_no_token() -> None:
    without = {e.operation for e in ENDPOINTS if e.is_api and e.auth is not Auth.USER}
    assert without == {
        "register",
        "login",
        "refresh",
        "logout",
        "read_by_path",
        "read_by_header",
    }


def test_the_openapi_document_is_valid_and_complete() -> None:
    document = openapi_document("1.2.3")
    OpenAPIV31SpecValidator(document).validate()
    described = {
        (method.upper(), path)
        for path, operations in document["paths"].items()
        for method in operations
    }
    assert described == {(endpoint.method, endpoint.path) for endpoint in ENDPOINTS}


def test_the_openapi_document_names_the_codes_of_each_operation() -> None:
    operation = openapi_document("1")["paths"][f"{PREFIX}/projects/{{project_id}}/configs/{{key}}"][
        "put"
    ]
    schema = operation["responses"]["409"]["content"]["application/problem+json"]["schema"]
    assert schema["allOf"][1]["properties"]["code"]["enum"] == [
        "version_conflict",
        "idempotency_in_progress",
    ]
    assert {"200", "400", "401", "403", "404", "409", "412", "422", "428", "503", "504"} <= set(
        operation["responses"]
    )
    assert operation["security"] == [{"user": []}]


def test_metrics_on_a_listener_of_their_own_are_not_described() -> None:
    assert "/metrics" not in openapi_document("1", with_metrics=False)["paths"]


async def test_openapi_and_docs_are_served(world: Any) -> None:
    document = (await world.ask("GET", "//openapi.json")).json
    assert document["info"]["version"] == "1.2.3"
    page = await world.ask("GET", "//docs")
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    assert b"<script" not in page.raw
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]


@pytest.mark.parametrize("code", sorted(CODES))
def test_the_docs_page_explains_every_code(code: str) -> None:
    assert f'<tr id="{code}">'.encode() in docs_page("1")
