"""Schemas made to fetch, hang, overflow or confuse."""

from __future__ import annotations

import hashlib
import json
import socket
import sys
from collections.abc import Awaitable, Callable, Iterator

import pytest

from guardian.adapters.schemas.engines import Compiled
from guardian.adapters.schemas.pool import PoolLimits, WorkerPool
from guardian.domain.problems import Fault, Problem

Refusal = Callable[[object], Awaitable[Problem]]
Validate = Callable[[object, object], Awaitable[tuple[Fault, ...]]]

DRAFT_4 = "http://json-schema.org/draft-04/schema#"
DRAFT_7 = "http://json-schema.org/draft-07/schema#"
DRAFT_2019 = "https://json-schema.org/draft/2019-09/schema"
DRAFT_2020 = "https://json-schema.org/draft/2020-12/schema"
BOTH_ENGINES = pytest.mark.parametrize("draft", [DRAFT_7, DRAFT_2020])


def anyof_tree(levels: int) -> object:
    schema: object = {"type": "string"}
    for _ in range(levels):
        schema = {"anyOf": [schema, schema]}
    return schema


def nested(opening: str, levels: int) -> bytes:
    return (opening * levels + "{}" + "}" * (levels * opening.count("{"))).encode()


@pytest.fixture(scope="module")
def engines_without_network() -> Iterator[object]:
    """The engines in this process, where opening a socket or a file by URL is an error."""
    attempts: list[str] = []
    armed = True

    def hook(event: str, args: tuple[object, ...]) -> None:
        if armed and (event.startswith(("socket.", "urllib.")) or event == "http.client.connect"):
            attempts.append(event)

    sys.addaudithook(hook)
    yield attempts
    armed = False


REMOTE = [
    "http://169.254.169.254/latest",
    "https://example.com/x.json",
    "file:///etc/passwd",
    "ftp://host/x",
    "//host/x",
    "http://[::1]/",
    "http://2130706433/",
    "other.json",
    "other.json#/definitions/a",
    "",
    "data:,{}",
    "urn:x",
]


@BOTH_ENGINES
@pytest.mark.parametrize("target", REMOTE)
def test_a_reference_out_of_the_document_is_refused_and_nothing_is_opened(
    draft: str, target: str, engines_without_network: list[str]
) -> None:
    for schema in (
        {"$schema": draft, "$ref": target},
        {"$schema": draft, "properties": {"a": {"items": [{"not": {"$ref": target}}]}}},
        {"$schema": draft, "$id": "http://example.com/root", "allOf": [{"$ref": target}]},
    ):
        with pytest.raises(Problem) as caught:
            Compiled(json.dumps(schema).encode())
        assert caught.value.code == "remote_ref_forbidden"
        assert caught.value.errors[0].pointer.endswith("/$ref")
    assert engines_without_network == []


@BOTH_ENGINES
def test_ids_are_allowed_and_never_fetched(draft: str, engines_without_network: list[str]) -> None:
    schema = {
        "$schema": draft,
        "$id": "http://127.0.0.1:9/root.json",
        "properties": {"a": {"$ref": "#/definitions/a"}},
        "definitions": {"a": {"type": "integer"}},
    }
    compiled = Compiled(json.dumps(schema).encode())
    assert compiled.validate(b'{"a":1}') == ()
    assert compiled.validate(b'{"a":"x"}') == (("/a", "must be integer"),)
    assert engines_without_network == []


def test_the_guard_of_the_socket_test_sees_sockets(engines_without_network: list[str]) -> None:
    with socket.socket() as probe, pytest.raises(OSError):
        probe.connect(("127.0.0.1", 1))
    assert engines_without_network
    engines_without_network.clear()


async def test_a_dynamic_reference_out_of_the_document_is_refused(refusal: Refusal) -> None:
    for name, draft in (("$dynamicRef", DRAFT_2020), ("$recursiveRef", DRAFT_2019)):
        problem = await refusal({"$schema": draft, name: "http://example.com/x#a"})
        assert problem.code == "remote_ref_forbidden"


async def test_a_member_that_is_called_ref_is_no_reference(validate: Validate) -> None:
    schema = {"properties": {"$ref": {"type": "string"}}}
    assert await validate(schema, {"$ref": "http://example.com"}) == ()
    assert [f.pointer for f in await validate(schema, {"$ref": 1})] == ["/$ref"]


@pytest.mark.parametrize(
    "uri",
    [
        "http://json-schema.org/draft-03/schema#",
        "http://json-schema.org/schema#",
        "https://json-schema.org/draft/next/schema",
        "http://json-schema.org/draft-07/schema#/definitions/x",
        "draft-07",
        "",
    ],
)
async def test_any_other_draft_is_refused(refusal: Refusal, uri: str) -> None:
    problem = await refusal({"$schema": uri})
    assert problem.code == "unsupported_draft"
    assert problem.errors[0].pointer == "/$schema"


@pytest.mark.parametrize(
    ("schema", "pointer"),
    [
        ({"maxLength": -1}, "/maxLength"),
        ({"minimum": "x"}, "/minimum"),
        ({"multipleOf": 0}, "/multipleOf"),
        ({"multipleOf": 1e-300}, "/multipleOf"),
        ({"type": "strin"}, "/type"),
        ({"properties": {"a/b": {"required": "x"}}}, "/properties/a~1b/required"),
        ({"properties": []}, "/properties"),
        ({"enum": 1}, "/enum"),
        ({"pattern": "["}, "/pattern"),
        ({"patternProperties": {"(": {}}}, "/patternProperties"),
        ({"items": {"not": 1}}, "/items"),
        ({"$schema": 7}, "/$schema"),
        ([], ""),
        ("x", ""),
        (None, ""),
    ],
)
@BOTH_ENGINES
async def test_a_bad_keyword_is_an_invalid_schema_with_its_pointer(
    refusal: Refusal, draft: str, schema: object, pointer: str
) -> None:
    if isinstance(schema, dict):
        schema = {"$schema": draft, **schema}
    problem = await refusal(schema)
    assert problem.code == "invalid_schema"
    assert problem.errors[0].pointer.startswith(pointer)


@BOTH_ENGINES
async def test_a_reference_to_nothing_is_an_invalid_schema(refusal: Refusal, draft: str) -> None:
    problem = await refusal({"$schema": draft, "$ref": "#/definitions/nowhere"})
    assert problem.code == "invalid_schema"


@pytest.mark.parametrize(
    "body",
    [
        json.dumps(anyof_tree(12)).encode(),
        nested('{"properties":{"a":', 500),
        nested('{"not":', 65),
        nested('{"items":', 100_000),
        b'{"description":"' + b"x" * (1 << 20) + b'"}',
        json.dumps({"enum": list(range(10_001))}).encode(),
    ],
    ids=["2^12 anyOf", "500 levels", "65 levels", "100k levels", "over 1 MiB", "10,001 nodes"],
)
async def test_a_schema_beyond_the_limits_is_too_complex(refusal: Refusal, body: bytes) -> None:
    assert (await refusal(body)).code == "schema_too_complex"


async def test_a_schema_at_the_depth_limit_never_breaks_the_compiler(pool: WorkerPool) -> None:
    for body in (nested('{"properties":{"a":', 31), nested('{"not":', 63), nested('{"items":', 63)):
        try:
            await pool.check_schema(body)
        except Problem as problem:
            refused_with = problem.code
        else:
            refused_with = "schema_too_complex"
        assert refused_with == "schema_too_complex"
    assert pool.replaced == 0


@BOTH_ENGINES
@pytest.mark.parametrize(
    "pattern", ["^(a+)+$", "(a|a)*$", "^(a|aa)+$", "(.*)*b$", "^(([a-z])+.)+$"]
)
async def test_patterns_that_explode_elsewhere_are_decided_in_linear_time(
    pool: WorkerPool, validate_in_pool: Validate, draft: str, pattern: str
) -> None:
    schema = {"$schema": draft, "pattern": pattern}
    await validate_in_pool(schema, "a" * 50_000 + "!")
    by_key = {"$schema": draft, "patternProperties": {pattern: {"type": "integer"}}}
    await validate_in_pool(by_key, {"a" * 50 + "!": 1})
    assert pool.replaced == 0


async def test_look_around_works_in_shapes_that_can_not_explode(validate: Validate) -> None:
    schema = {"pattern": "^(?!foo)[a-z]+(?=-)"}
    assert await validate(schema, "bar-") == ()
    assert [fault.pointer for fault in await validate(schema, "foo-")] == [""]


@pytest.mark.parametrize(
    "pattern", ["^(?=(a+)+$)", r"^(a*)\1$", "(?!x)(a*)*$", "(?=a)(a{64,}){2,}b"]
)
async def test_look_around_in_other_shapes_is_too_complex(refusal: Refusal, pattern: str) -> None:
    assert (await refusal({"pattern": pattern})).code == "schema_too_complex"
    assert (await refusal({"patternProperties": {pattern: {}}})).code == "schema_too_complex"


async def test_patterns_are_ecma_262(validate: Validate) -> None:
    assert await validate({"pattern": r"^\d$"}, "٣") != ()
    assert await validate({"pattern": r"^\p{Lu}$"}, "É") == ()
    assert await validate({"pattern": "^a$"}, "a\n") != ()
    assert await validate({"patternProperties": {"^a$": False}}, {"a\n": 1}) == ()


async def test_a_job_that_runs_out_of_cpu_time_ends_its_worker_only() -> None:
    schema = {"items": {"enum": [[number] for number in range(4000)]}}
    body = json.dumps(schema).encode()
    digest = hashlib.sha256(body).digest()
    document = json.dumps([[number] for number in range(20_000, 60_000)]).encode()
    async with WorkerPool(PoolLimits(workers=1, validate_ms=100)) as pool:
        with pytest.raises(Problem) as caught:
            await pool.validate(body, digest, document)
        assert caught.value.code == "schema_too_complex"
        assert pool.replaced == 1
        assert await pool.validate(body, digest, b"[[1]]") == ()
        assert await pool.validate(b"{}", hashlib.sha256(b"{}").digest(), b"1") == ()
        assert pool.replaced == 1


async def test_a_schema_that_takes_too_long_to_compile_is_too_complex() -> None:
    wide = {"properties": {f"p{n}": {"type": "string", "minLength": n} for n in range(2500)}}
    async with WorkerPool(PoolLimits(workers=1, compile_ms=50)) as pool:
        with pytest.raises(Problem) as caught:
            await pool.check_schema(json.dumps(wide).encode())
        assert caught.value.code == "schema_too_complex"
        assert pool.replaced == 1
        await pool.check_schema(b"{}")


@pytest.mark.parametrize(
    "text",
    ['"', "'", "\\", "\n", '"""', "{x}", "{{", "%s", "__import__('os')._exit(3)", "\0", "#", "é"],
)
async def test_hostile_text_in_every_position_is_only_text(
    pool: WorkerPool, validate_in_pool: Validate, text: str
) -> None:
    schema = {
        "properties": {text: {"const": text, "description": text}},
        "required": [text],
        "definitions": {text: {"enum": [text]}},
        "title": text,
        "default": text,
    }
    assert await validate_in_pool(schema, {text: text}) == ()
    assert await validate_in_pool(schema, {text: text + "x"}) != ()
    assert await validate_in_pool(schema, {}) != ()
    assert pool.replaced == 0
