"""Regular expressions that can not hang.

A pattern is matched by a linear-time engine, with ECMA-262 semantics, wherever that is possible.
What that engine can not do (look-around) is left to the standard library's backtracking engine, but
only in shapes that do not explode. The worker's CPU limit stands behind both.
"""

from __future__ import annotations

import re
import re._constants as op  # type: ignore[import-not-found]
import re._parser as parser  # type: ignore[import-not-found]
import warnings
from typing import Final

import jsonschema_rs

from guardian.domain.problems import Problem

_UNBOUNDED_FROM: Final = 64
_REPEATS: Final = (op.MAX_REPEAT, op.MIN_REPEAT)


class Pattern:
    """A compiled pattern. Raises ``Problem`` ``invalid_schema`` or ``schema_too_complex``."""

    __slots__ = ("_backtracking", "_linear", "pattern")

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self._linear = _linear(pattern)
        self._backtracking = None if self._linear is not None else _backtracking(pattern)

    def search(self, text: str) -> bool:
        """Whether the pattern matches somewhere in ``text``."""
        if self._linear is not None:
            return self._linear.is_valid(text)
        assert self._backtracking is not None
        return self._backtracking.search(text) is not None


def _linear(pattern: str) -> jsonschema_rs.Validator | None:
    try:
        return jsonschema_rs.Draft7Validator(
            {"pattern": pattern}, pattern_options=jsonschema_rs.RegexOptions()
        )
    except jsonschema_rs.ValidationError:
        return None


def _backtracking(pattern: str) -> re.Pattern[str]:
    try:
        with warnings.catch_warnings(action="ignore"):  # on what may mean something else one day
            compiled = re.compile(pattern, re.ASCII)
            tree = parser.parse(pattern, re.ASCII)
    except (re.error, RecursionError, OverflowError):
        raise Problem("invalid_schema", "A pattern is not a regular expression") from None
    if _explodes(tree, repeated=False):
        raise Problem(
            "schema_too_complex",
            "A pattern with look-around may neither nest repeats nor refer back",
        )
    return compiled


def _explodes(tree: object, *, repeated: bool) -> bool:
    """Whether the tree has a back-reference, or a repeat inside a repeat."""
    if isinstance(tree, parser.SubPattern | list):
        return any(_explodes(item, repeated=repeated) for item in tree)
    if not isinstance(tree, tuple):
        return False
    if tree and tree[0] in (op.GROUPREF, op.GROUPREF_EXISTS):
        return True
    if len(tree) == 2 and tree[0] in _REPEATS:
        _, most, body = tree[1]
        unbounded = most is op.MAXREPEAT or most >= _UNBOUNDED_FROM
        if unbounded and repeated:
            return True
        return _explodes(body, repeated=repeated or unbounded)
    return any(_explodes(item, repeated=repeated) for item in tree)
