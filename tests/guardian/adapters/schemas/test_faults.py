"""Faults: where and what, alike on both engines."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from guardian.adapters.schemas.faults import message_of, pointer_of, pointer_of_name
from guardian.domain.problems import Fault

Validate = Callable[[object, object], Awaitable[tuple[Fault, ...]]]

DRAFTS = [
    "http://json-schema.org/draft-04/schema#",
    "http://json-schema.org/draft-06/schema#",
    "http://json-schema.org/draft-07/schema#",
    "https://json-schema.org/draft/2019-09/schema",
    "https://json-schema.org/draft/2020-12/schema",
]

SERVICE = {
    "type": "object",
    "required": ["name", "rate"],
    "additionalProperties": False,
    "properties": {
        "name": {"type": "string", "minLength": 2, "pattern": "^[a-z]+$"},
        "rate": {"type": "integer", "minimum": 1, "maximum": 10},
        "tags": {"type": "array", "uniqueItems": True, "items": {"enum": ["a", "b"]}},
    },
}


@pytest.mark.parametrize("draft", DRAFTS)
async def test_each_fault_is_listed_with_its_pointer(validate: Validate, draft: str) -> None:
    schema = {"$schema": draft, **SERVICE}
    faults = await validate(schema, {"rate": "x", "tags": ["a", "c", "a"], "extra": 1})
    assert sorted((fault.pointer, fault.message) for fault in faults) == [
        ("", "has members that are not allowed: extra"),
        ("", "must have the member 'name'"),
        ("/rate", "must be integer"),
        ("/tags", "must not have an item twice"),
        ("/tags/1", "must be one of the listed values"),
    ]
    assert await validate(schema, {"name": "ab", "rate": 3, "tags": ["a"]}) == ()


@pytest.mark.parametrize("draft", DRAFTS)
@pytest.mark.parametrize(
    ("key", "token"),
    [
        ("a.b", "a.b"),
        ("c[0]", "c[0]"),
        ("x/y~z", "x~1y~0z"),
        ("~1", "~01"),
        ("", ""),
        ("{k}", "{k}"),
        ("a b%20", "a b%20"),
        ("é\n", "é\n"),
    ],
)
async def test_pointers_are_exact_whatever_keys_hold(
    validate: Validate, draft: str, key: str, token: str
) -> None:
    schema = {"$schema": draft, "properties": {key: {"items": {"type": "integer"}}}}
    (fault,) = await validate(schema, {key: [1, "x"]})
    assert fault.pointer == f"/{token}/1"


@pytest.mark.parametrize("draft", [DRAFTS[2], DRAFTS[4]])
async def test_no_more_than_a_hundred_faults_are_listed(validate: Validate, draft: str) -> None:
    schema = {"$schema": draft, "items": {"type": "integer"}}
    assert len(await validate(schema, ["x"] * 5000)) == 100


@pytest.mark.parametrize("draft", [DRAFTS[2], DRAFTS[4]])
async def test_messages_do_not_quote_the_document(validate: Validate, draft: str) -> None:
    secret = "hunter2-hunter2"
    schema = {
        "$schema": draft,
        "properties": {
            "a": {"type": "integer"},
            "b": {"enum": [1]},
            "c": {"pattern": "^x"},
            "d": {"anyOf": [{"type": "null"}]},
            "e": {"format": "ipv4"},
            "f": {"maxLength": 2},
        },
    }
    faults = await validate(schema, dict.fromkeys("abcdef", secret))
    assert {fault.pointer for fault in faults} == {f"/{name}" for name in "abcdef"}
    assert secret not in str(faults)


@pytest.mark.parametrize("draft", DRAFTS)
async def test_formats_are_asserted(validate: Validate, draft: str) -> None:
    schema = {"$schema": draft, "format": "ipv4"}
    assert await validate(schema, "10.0.0.1") == ()
    assert [fault.pointer for fault in await validate(schema, "10.0.0.256")] == [""]


async def test_validation_leaves_defaults_out_of_the_document(validate: Validate) -> None:
    schema = {"properties": {"a": {"default": 1}}, "maxProperties": 0}
    assert await validate(schema, {}) == ()


@pytest.mark.parametrize("draft", DRAFTS)
async def test_booleans_numbers_and_null_are_told_apart(validate: Validate, draft: str) -> None:
    def typed(name: str) -> object:
        return {"$schema": draft, "type": name}

    assert await validate(typed("integer"), True) != ()
    assert await validate(typed("number"), False) != ()
    assert await validate(typed("boolean"), 0) != ()
    assert await validate({"$schema": draft, "enum": [0]}, False) != ()
    assert await validate({"$schema": draft, "enum": [1]}, 1.0) == ()


async def test_boolean_schemas(validate: Validate) -> None:
    assert await validate(True, {"a": 1}) == ()
    assert [fault.pointer for fault in await validate(False, 1)] == [""]


@pytest.mark.parametrize(
    ("name", "pointer"),
    [
        ("data", ""),
        ("data.a.b[1].c.d", "/a/b/1/c.d"),
        ("data.x[0][0][0]", "/x[0]/0/0"),
        ("data.a.b[7]", "/a.b"),
        ("data.nowhere", ""),
        ("data.", "/"),
        ("data..q", "//q"),
    ],
)
def test_a_dotted_name_is_resolved_against_the_document(name: str, pointer: str) -> None:
    document = {"a.b": 2, "a": {"b": [0, {"c.d": 1}]}, "x[0]": [[5]], "": {"q": 1}}
    assert pointer_of_name(name, document) == pointer


@pytest.mark.parametrize("draft", [DRAFTS[2], DRAFTS[4]])
async def test_empty_keys_keep_their_place_in_pointers(validate: Validate, draft: str) -> None:
    inner = {"type": "object", "properties": {"": {"type": "integer"}}}
    schema = {"$schema": draft, "properties": {"": inner, "a": inner}}
    faults = await validate(schema, {"": {"": "x"}, "a": {"": "y"}})
    assert {fault.pointer for fault in faults} == {"//", "/a/"}
    (fault,) = await validate(schema, {"": 7, "a": {"": 7}})
    assert fault.pointer == "/"


def test_pointers_and_messages_are_bounded() -> None:
    assert pointer_of(["a/b", 0, "~"]) == "/a~1b/0/~0"
    assert pointer_of([]) == ""
    assert len(message_of("pattern", "x" * 5000)) == 200
    assert message_of("newKeyword", {}) == "does not satisfy 'newKeyword'"
