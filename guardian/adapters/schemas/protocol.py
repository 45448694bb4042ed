"""Frames between the pool and a worker, over a pair of pipes.

Parent to worker: operation, the two CPU limits, digest, then the schema's body (left out when the
worker should have it) and the document. Worker to parent: one JSON value. Each end trusts the
other, as one starts the other; lengths are still bounded so that a defect can not eat the memory.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

#: what a body or document may have at most; far above every limit of the service
MAX_PART_BYTES: Final = 64 << 20
MAX_REPLY_BYTES: Final = 1 << 20
DIGEST_BYTES: Final = 32

REQUEST: Final = struct.Struct(f"<BII{DIGEST_BYTES}sII")
REPLY: Final = struct.Struct("<I")


class Operation(IntEnum):
    """What a worker is asked."""

    CHECK = 1
    VALIDATE = 2


class Verdict(IntEnum):
    """What a worker answers."""

    READY = 0  #: once, when it has started
    FITS = 1  #: the schema is usable, or the document fits
    FAULTY = 2  #: the document does not fit; with faults
    PROBLEM = 3  #: the schema is refused; with a problem code
    UNKNOWN = 4  #: the worker does not have that schema; send the body


@dataclass(frozen=True, slots=True)
class Request:
    """One job. The limits are CPU time, milliseconds."""

    operation: Operation
    compile_ms: int
    validate_ms: int
    digest: bytes
    body: bytes
    document: bytes

    def encode(self) -> bytes:
        assert max(len(self.body), len(self.document)) <= MAX_PART_BYTES
        head = REQUEST.pack(
            self.operation,
            self.compile_ms,
            self.validate_ms,
            self.digest,
            len(self.body),
            len(self.document),
        )
        return head + self.body + self.document


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to a job: faults as (pointer, message), or a problem's code and detail."""

    verdict: Verdict
    faults: tuple[tuple[str, str], ...] = ()
    code: str = ""
    detail: str = ""

    def encode(self) -> bytes:
        raw = json.dumps([self.verdict, self.faults, self.code, self.detail]).encode()
        return REPLY.pack(len(raw)) + raw

    @classmethod
    def decode(cls, raw: bytes) -> Reply:
        verdict, faults, code, detail = json.loads(raw)
        return cls(Verdict(verdict), tuple((p, m) for p, m in faults), code, detail)
