"""Both engines against a third, independent one, on the keywords that the drafts share."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from guardian.adapters.schemas.engines import Compiled

ORACLES: dict[str, Any] = {
    "http://json-schema.org/draft-06/schema#": jsonschema.Draft6Validator,
    "http://json-schema.org/draft-07/schema#": jsonschema.Draft7Validator,
    "https://json-schema.org/draft/2019-09/schema": jsonschema.Draft201909Validator,
    "https://json-schema.org/draft/2020-12/schema": jsonschema.Draft202012Validator,
}

NAMES = st.sampled_from(["a", "b", "a.b", "c[0]", "x/y", "~", ""])
SMALL = st.integers(0, 4)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-5, 5)
    | st.sampled_from([0.5, 1.0, -0.0, 2.5])
    | st.sampled_from(["", "a", "ab", "abc", "é", "\U0001f600\U0001f600", "a\n"])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=8,
)
TYPES = st.sampled_from(["null", "boolean", "integer", "number", "string", "array", "object"])
PATTERNS = st.sampled_from(["^a", "b$", "^[a-b]+$", "é", "^$", r"\.", "(a|b)+"])


def keywords(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    by_name = st.dictionaries(NAMES, inner, max_size=3)
    some = st.lists(inner, min_size=1, max_size=3)
    return st.fixed_dictionaries(
        {},
        optional={
            "type": TYPES | st.lists(TYPES, min_size=1, max_size=3, unique=True),
            "enum": st.lists(VALUES, min_size=1, max_size=3),
            "const": VALUES,
            "minimum": st.integers(-3, 3),
            "exclusiveMaximum": st.integers(-3, 3),
            "multipleOf": st.sampled_from([1, 2, 0.5]),
            "minLength": SMALL,
            "maxLength": SMALL,
            "pattern": PATTERNS,
            "items": inner,
            "minItems": SMALL,
            "maxItems": SMALL,
            "uniqueItems": st.booleans(),
            "contains": inner,
            "properties": by_name,
            "patternProperties": st.dictionaries(PATTERNS, inner, max_size=2),
            "additionalProperties": inner,
            "propertyNames": inner,
            "minProperties": SMALL,
            "maxProperties": SMALL,
            "anyOf": some,
            "allOf": some,
            "oneOf": some,
            "not": inner,
        },
    )


SCHEMAS = st.recursive(st.booleans() | keywords(st.booleans()), keywords, max_leaves=6)


@settings(deadline=None, max_examples=120, suppress_health_check=[HealthCheck.too_slow])
@given(SCHEMAS.filter(lambda schema: isinstance(schema, dict)), VALUES)
def test_what_fits_does_not_depend_on_the_engine(schema: dict[str, Any], value: Any) -> None:
    raw = json.dumps(value).encode()
    for draft, oracle in ORACLES.items():
        named = {"$schema": draft, **schema}
        faults = Compiled(json.dumps(named).encode()).validate(raw)
        assert (faults == ()) == oracle(named).is_valid(value), (draft, faults)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(SCHEMAS.filter(lambda schema: isinstance(schema, dict)), VALUES)
def test_every_pointer_leads_to_a_place_in_the_document(schema: dict[str, Any], value: Any) -> None:
    raw = json.dumps(value).encode()
    for draft in ORACLES:
        for pointer, message in Compiled(
            json.dumps({"$schema": draft, **schema}).encode()
        ).validate(raw):
            assert message
            node = value
            for escaped in pointer.split("/")[1:]:
                token = escaped.replace("~1", "/").replace("~0", "~")
                node = node[int(token)] if isinstance(node, list) else node[token]
