"""The two JSON Schema engines behind one face. Only ever imported in a worker process.

fastjsonschema decides for drafts 4, 6 and 7, jsonschema-rs for 2019-09 and 2020-12 (whose keywords
the former would silently ignore). Faults are listed by jsonschema-rs for both, because it alone
knows exact places, whatever characters keys hold.
"""

from __future__ import annotations

import re
import types
import warnings
from collections.abc import Callable
from typing import Final, NoReturn

import fastjsonschema
import fastjsonschema.draft04
import jsonschema_rs

from guardian.adapters.schemas import faults
from guardian.adapters.schemas.draft import Draft
from guardian.adapters.schemas.guard import (
    DEFAULT_LIMITS,
    GuardedSchema,
    SchemaLimits,
    guard,
    invalid,
)
from guardian.adapters.schemas.patterns import Pattern
from guardian.domain.documents import parse_document
from guardian.domain.problems import Fault, Problem

FaultList = tuple[tuple[str, str], ...]

_VALIDATORS: Final[dict[Draft, type[jsonschema_rs.Validator]]] = {
    Draft.DRAFT_4: jsonschema_rs.Draft4Validator,
    Draft.DRAFT_6: jsonschema_rs.Draft6Validator,
    Draft.DRAFT_7: jsonschema_rs.Draft7Validator,
    Draft.DRAFT_2019_09: jsonschema_rs.Draft201909Validator,
    Draft.DRAFT_2020_12: jsonschema_rs.Draft202012Validator,
}
#: steps that listing faults may backtrack where a pattern needs look-around
_BACKTRACK_LIMIT: Final = 100_000


class Compiled:
    """A schema ready to validate.

    Args:
        body: the schema's JSON text.
        limits: how large it may be.

    Raises:
        Problem: everything that :func:`guard` raises, ``invalid_schema``, ``schema_too_complex``.
    """

    def __init__(self, body: bytes, limits: SchemaLimits = DEFAULT_LIMITS) -> None:
        guarded = guard(body, limits)
        self._guarded = guarded
        self._body = body
        self._limits = limits
        self._lister: jsonschema_rs.Validator | None = None
        self._accepts: Callable[[object], object] | None = None
        _check_against_metaschema(guarded)
        if guarded.draft.is_classic and isinstance(guarded.schema, dict):
            self._accepts = _compile_classic(guarded)
        else:
            self._lister = _compile_modern(guarded, jsonschema_rs.RegexOptions())

    def validate(self, document: bytes) -> FaultList:
        """What keeps the document from fitting; empty when it fits.

        Raises:
            Problem: ``schema_too_complex`` when the engine can not decide.
        """
        value = parse_document(document)
        try:
            if self._accepts is None:
                assert self._lister is not None
                return faults.listed(self._lister.iter_errors(value), value, document)
            return self._validate_classic(value, document)
        except (RecursionError, MemoryError, ArithmeticError) as error:
            raise Problem("schema_too_complex", "The document can not be checked") from error

    def _validate_classic(self, value: object, raw: bytes) -> FaultList:
        assert self._accepts is not None
        try:
            self._accepts(value)
        except fastjsonschema.JsonSchemaValueException as error:
            # where the two engines differ (formats, mostly) the deciding one has the last word
            return self._listed(value, raw) or (
                (
                    faults.pointer_of_name(str(error.name), value),
                    faults.message_of(str(error.rule), error.rule_definition),
                ),
            )
        return ()

    def _listed(self, value: object, raw: bytes) -> FaultList:
        if self._lister is None:
            options = jsonschema_rs.FancyRegexOptions(backtrack_limit=_BACKTRACK_LIMIT)
            self._lister = _compile_modern(guard(self._body, self._limits), options)
        return faults.listed(self._lister.iter_errors(value), value, raw)


def _check_against_metaschema(guarded: GuardedSchema) -> None:
    try:
        jsonschema_rs.meta.validate(guarded.schema)
    except jsonschema_rs.ValidationError as error:
        pointer = faults.pointer_of(error.instance_path)
        raise invalid(pointer, faults.message_of(error.kind.name, error.kind.value)) from None


def _compile_modern(
    guarded: GuardedSchema,
    options: jsonschema_rs.RegexOptions | jsonschema_rs.FancyRegexOptions,
) -> jsonschema_rs.Validator:
    try:
        return _VALIDATORS[guarded.draft](
            guarded.schema, pattern_options=options, validate_formats=True, offline=True
        )
    except jsonschema_rs.ValidationError as error:
        pointer = faults.pointer_of(error.instance_path)
        if error.kind.name == "pattern" or "regex" in error.message:
            raise invalid(
                pointer, "is not a regular expression without look-around or back-references"
            ) from None
        raise invalid(pointer, "can not be compiled") from None


def _compile_classic(guarded: GuardedSchema) -> Callable[[object], object]:
    patterns = {pattern: Pattern(pattern) for pattern in guarded.patterns}
    _regexes.patterns = patterns
    try:
        accepts = fastjsonschema.compile(
            guarded.schema, handlers=_REFUSE_ALL, use_default=False, detailed_exceptions=True
        )
    except fastjsonschema.JsonSchemaDefinitionException:
        raise Problem("invalid_schema", "A keyword or reference can not be compiled") from None
    except (SyntaxError, RecursionError, MemoryError) as error:
        # generated code nests as the schema does, and Python's own nesting is limited
        raise Problem("schema_too_complex", "Nested too deeply to compile") from error
    except Problem:
        raise
    except Exception as error:  # a code generator may fail in any way
        fault = Fault("", "can not be compiled")
        raise Problem("invalid_schema", errors=(fault,)) from error
    finally:
        _regexes.patterns = {}
    table = accepts.__globals__["REGEX_PATTERNS"]
    table.update((name, pattern) for name, pattern in patterns.items() if name in table)
    assert None not in table.values(), "every pattern of the schema was collected by the guard"
    return accepts


class _RefuseAll(dict[str, Callable[[str], object]]):
    """Handlers for every scheme, so that the library's own fetching is never reached."""

    def __contains__(self, scheme: object) -> bool:
        return True

    def __getitem__(self, scheme: str) -> Callable[[str], object]:
        return _refuse


def _refuse(uri: str) -> NoReturn:
    del uri
    raise Problem("remote_ref_forbidden")


_REFUSE_ALL: Final = _RefuseAll()


class _Regexes(types.SimpleNamespace):
    """Stands in for ``re`` in the code generator.

    It compiles each pattern of a schema while generating, which fails on ECMA-262 syntax that
    Python's ``re`` has not, and even searches with them. The compiled table is replaced by
    :class:`Pattern` objects afterwards.
    """

    patterns: dict[str, Pattern]

    def compile(self, pattern: str) -> re.Pattern[str] | None:
        """None for ECMA-262 syntax, which only patterns of the schema have."""
        try:
            with warnings.catch_warnings(action="ignore"):
                return re.compile(pattern)
        except re.error:
            return None

    def search(self, pattern: str, text: str) -> bool:
        return self.patterns[pattern].search(text)

    def sub(self, pattern: str, replacement: str, text: str) -> str:
        return re.sub(pattern, replacement, text)


_regexes: Final = _Regexes(patterns={})
setattr(fastjsonschema.draft04, "re", _regexes)  # noqa: B010 - not an exported name
