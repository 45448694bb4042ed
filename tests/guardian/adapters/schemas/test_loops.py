"""Schemas that refer to themselves: at the same value never, deeper in the document freely."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from guardian.domain.problems import Fault, Problem

DRAFT_4 = "http://json-schema.org/draft-04/schema#"
DRAFT_2019 = "https://json-schema.org/draft/2019-09/schema"
DRAFT_2020 = "https://json-schema.org/draft/2020-12/schema"

LOOPS: list[tuple[object, str]] = [
    ({"$ref": "#"}, ""),
    ({"$ref": "#/definitions/a", "definitions": {"a": {"$ref": "#"}}}, ""),
    ({"definitions": {"a": {"$ref": "#/definitions/b"}, "b": {"$ref": "#/definitions/a"}}}, "/d"),
    ({"properties": {"a/b": {"$ref": "#/properties/a~1b"}}}, "/properties/a~1b"),
    ({"definitions": {"ä": {"$ref": "#/definitions/%C3%A4"}}}, "/definitions/ä"),
    ({"definitions": {"a": {"$id": "#x", "$ref": "#x"}}}, "/definitions/a"),
    ({"x": {"y": {"$ref": "#/x/y"}}, "items": {"$ref": "#/x/y"}}, "/x/y"),
    *(({name: [{}, {"$ref": "#"}]}, "") for name in ("allOf", "anyOf", "oneOf")),
    *(({name: {"$ref": "#"}}, "") for name in ("not", "if")),
    ({"dependencies": {"a": {"$ref": "#"}}}, ""),
    ({"$schema": DRAFT_4, "definitions": {"a": {"id": "#x", "$ref": "#x"}}}, "/definitions/a"),
    ({"$schema": DRAFT_2019, "$recursiveRef": "#"}, ""),
    ({"$schema": DRAFT_2020, "$anchor": "here", "$ref": "#here", "type": "object"}, ""),
    ({"$schema": DRAFT_2020, "dependentSchemas": {"a": {"$ref": "#"}}}, ""),
    ({"$schema": DRAFT_2020, "$defs": {"r": {"$id": "http://r/", "$ref": "#"}}}, "/$defs/r"),
]

LEGAL: list[object] = [
    {"properties": {"child": {"$ref": "#"}}},
    {"items": {"$ref": "#"}},
    {"additionalProperties": {"anyOf": [{"type": "integer"}, {"$ref": "#"}]}},
    {
        "$ref": "#/definitions/node",
        "definitions": {"node": {"properties": {"next": {"$ref": "#/definitions/node"}}}},
    },
    {"allOf": [{"$ref": "#/definitions/a"}, {"$ref": "#/definitions/a"}], "definitions": {"a": {}}},
    {"const": {"$ref": "#"}},
    {"enum": [{"$ref": "#"}]},
    {"properties": {"$ref": {"type": "string"}}},
    {"$schema": DRAFT_2020, "prefixItems": [{"$ref": "#"}]},
    {"$schema": DRAFT_2019, "additionalProperties": {"$recursiveRef": "#"}},
    {
        "$schema": DRAFT_2020,
        "$dynamicAnchor": "node",
        "properties": {"children": {"items": {"$dynamicRef": "#node"}}},
    },
]


@pytest.mark.parametrize(("schema", "pointer"), LOOPS)
async def test_a_reference_that_comes_back_without_going_deeper_is_refused(
    refusal: Callable[[object], Awaitable[Problem]], schema: object, pointer: str
) -> None:
    problem = await refusal(schema)
    assert problem.code == "invalid_schema"
    (fault,) = problem.errors
    assert fault.message == "leads back to itself without going into the document"
    assert fault.pointer.startswith(pointer)


@pytest.mark.parametrize("schema", LEGAL)
async def test_a_schema_may_refer_to_itself_deeper_in_the_document(
    validate: Callable[[object, object], Awaitable[tuple[Fault, ...]]], schema: object
) -> None:
    await validate(schema, {"child": {"child": {}}})


async def test_long_chains_are_followed_without_recursion(
    refusal: Callable[[object], Awaitable[Problem]],
) -> None:
    chain = {f"d{n}": {"$ref": f"#/definitions/d{n + 1}"} for n in range(3000)}
    chain["d3000"] = {"$ref": "#/definitions/d0"}
    problem = await refusal({"definitions": chain})
    assert problem.errors[0].message.startswith("leads back")
