"""References that lead back to themselves.

``{"$ref": "#"}`` says nothing, and a validator that follows it never ends. A schema may well refer
to itself one level deeper in the document (trees do); what it may not is come back to where it was
while looking at the same value.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import unquote

from guardian.adapters.schemas.draft import Draft

_REFERENCES: Final = {
    Draft.DRAFT_2019_09: ("$ref", "$recursiveRef"),
    Draft.DRAFT_2020_12: ("$ref", "$dynamicRef"),
}
#: keywords that apply schemas to the value itself: one schema, several, or several by name
_SAME_ONE: Final = ("not", "if", "then", "else")
_SAME_LIST: Final = ("allOf", "anyOf", "oneOf")
_SAME_NAMED: Final = ("dependencies", "dependentSchemas")
#: keywords that apply schemas to what is in the value, or only hold schemas
_OTHERS: Final = (
    "items",
    "prefixItems",
    "additionalItems",
    "unevaluatedItems",
    "contains",
    "additionalProperties",
    "unevaluatedProperties",
    "propertyNames",
    "contentSchema",
)
_OTHERS_NAMED: Final = ("properties", "patternProperties", "definitions", "$defs")


def escaped(token: str) -> str:
    """A reference token of RFC 6901."""
    return token.replace("~", "~0").replace("/", "~1")


def reference_loop(root: dict[str, object], draft: Draft) -> str | None:
    """The pointer of a schema that applies itself to the very value it is applied to, or None.

    References that lead nowhere are for the compiler to refuse.
    """
    graph = _Graph(root, draft)
    graph.walk("", "", root)
    return graph.loop()


@dataclass(slots=True)
class _Graph:
    """Subschemas by pointer, and what each applies to the same value."""

    root: dict[str, object]
    draft: Draft
    #: pointers of the subschemas that it applies itself
    same: dict[str, list[str]] = field(default_factory=dict)
    #: (resource it stands in, fragment) of its references
    references: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    #: pointers by (resource, plain-name fragment)
    anchors: dict[tuple[str, str], str] = field(default_factory=dict)

    def walk(self, pointer: str, resource: str, schema: dict[str, object]) -> None:
        """Collect the subschemas of a schema. What only looks like one (in ``const``, ``enum``,
        ``default``) is data."""
        stack = [(pointer, resource, schema)]
        while stack:
            pointer, resource, node = stack.pop()
            resource = self._enter(pointer, resource, node)
            for token, child, is_same in _children(node):
                where = pointer + token
                if is_same:
                    self.same[pointer].append(where)
                stack.append((where, resource, child))

    def _enter(self, pointer: str, resource: str, node: dict[str, object]) -> str:
        """Note the schema; the resource (pointer of what has an ``$id``) that it belongs to."""
        given = node.get("id" if self.draft is Draft.DRAFT_4 else "$id")
        if isinstance(given, str) and given.startswith("#"):
            self.anchors[resource, given[1:]] = pointer
        elif isinstance(given, str):
            resource = pointer
        for name in ("$anchor", "$dynamicAnchor"):
            anchor = node.get(name)
            if isinstance(anchor, str):
                self.anchors[resource, anchor] = pointer
        targets = [node.get(name) for name in _REFERENCES.get(self.draft, ("$ref",))]
        fragments = [t[1:] for t in targets if isinstance(t, str) and t.startswith("#")]
        self.references[pointer] = [(resource, fragment) for fragment in fragments]
        self.same[pointer] = []
        return resource

    def _edges(self, pointer: str) -> list[str]:
        found: list[str] = []
        for resource, fragment in self.references[pointer]:
            plain = unquote(fragment)
            if not plain or plain.startswith("/"):
                found.append(resource + plain)
                self._reach(resource + plain, resource)
            elif (resource, plain) in self.anchors:
                found.append(self.anchors[resource, plain])
        if found and self.draft.is_classic:
            return found  # what stands beside a $ref is ignored
        return found + self.same[pointer]

    def _reach(self, pointer: str, resource: str) -> None:
        """Collect what stands at a place that no keyword makes a schema, but a reference does."""
        if pointer in self.same:
            return
        node: object = self.root
        for token in pointer.split("/")[1:]:
            name = token.replace("~1", "/").replace("~0", "~")
            if isinstance(node, dict):
                node = node.get(name)
            elif isinstance(node, list) and name.isdecimal() and int(name) < len(node):
                node = node[int(name)]
            else:
                return
        if isinstance(node, dict):
            self.walk(pointer, resource, node)

    def loop(self) -> str | None:
        """The first schema found that comes back to itself."""
        done: set[str] = set()
        for start in list(self.same):
            path: dict[str, Iterator[str]] = {}  # depth first, without the interpreter's stack
            if start not in done:
                path[start] = iter(self._edges(start))
            while path:
                here = next(reversed(path))
                target = next(path[here], None)
                if target is None:
                    done.add(here)
                    del path[here]
                elif target in path:
                    return target
                elif target in self.same and target not in done:
                    path[target] = iter(self._edges(target))
        return None


def _children(node: dict[str, object]) -> Iterator[tuple[str, dict[str, object], bool]]:
    """(reference tokens, subschema, whether it is applied to the same value) of a schema."""
    for name, value in node.items():
        is_same = name in _SAME_ONE or name in _SAME_LIST or name in _SAME_NAMED
        if isinstance(value, list) and (name in _SAME_LIST or name in _OTHERS):
            for index, item in enumerate(value):
                if isinstance(item, dict):
                    yield f"/{name}/{index}", item, is_same
        elif isinstance(value, dict) and (name in _SAME_NAMED or name in _OTHERS_NAMED):
            for key, item in value.items():
                if isinstance(item, dict):
                    yield f"/{name}/{escaped(key)}", item, is_same
        elif isinstance(value, dict) and (name in _SAME_ONE or name in _OTHERS):
            yield f"/{name}", value, is_same
