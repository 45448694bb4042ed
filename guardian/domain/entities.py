"""The nouns of Guardian, as values. No I/O, no framework.

Times are Unix milliseconds (UTC); they become RFC 3339 text at the HTTP edge.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Role(StrEnum):
    """What a user may do in one project. Each role includes the ones after it."""

    ADMIN = "admin"
    EDITOR = "editor"
    VIEWER = "viewer"

    def includes(self, other: Role) -> bool:
        order = (Role.VIEWER, Role.EDITOR, Role.ADMIN)
        return order.index(self) >= order.index(other)


@dataclass(frozen=True, slots=True)
class User:
    id: str
    email: str
    is_admin: bool
    created_at_ms: int


@dataclass(frozen=True, slots=True)
class Credentials:
    """A user with what is needed to check a password; never leaves the use cases."""

    user: User
    password_hash: str


@dataclass(frozen=True, slots=True)
class Project:
    id: str
    name: str
    owner_id: str
    created_at_ms: int


@dataclass(frozen=True, slots=True)
class RoleGrant:
    user_id: str
    role: Role


@dataclass(frozen=True, slots=True)
class ApiKeyInfo:
    """An API key without its secret."""

    id: str
    project_id: str
    name: str
    created_by: str
    created_at_ms: int


@dataclass(frozen=True, slots=True)
class Schema:
    """One version of a JSON Schema. ``body`` is the stored JSON text."""

    id: str
    name: str
    version: int
    body: bytes
    digest: bytes
    created_by: str
    created_at_ms: int


@dataclass(frozen=True, slots=True)
class SchemaState:
    """What the state machine knows of a schema. ``version`` 0 never occurs."""

    schema_id: str
    version: int
    body_digest: bytes
    deleted: bool
    usage_count: int
    #: changes whenever a config starts or stops using the schema or is rewritten under it
    usage_counter: int


@dataclass(frozen=True, slots=True)
class Config:
    """A config's current document. ``content`` is the stored JSON text, served as it is."""

    project_id: str
    key: str
    schema_id: str
    schema_version: int
    version: int
    revision: int
    content: bytes
    updated_by: str
    updated_at_ms: int


@dataclass(frozen=True, slots=True)
class Revision:
    """One version of a config, as history keeps it. A delete has no content."""

    version: int
    revision: int
    kind: str  #: create, update, rollback or delete
    content_digest: str
    updated_by: str
    updated_at_ms: int
    schema_id: str
    schema_version: int
    content: bytes | None = None


@dataclass(frozen=True, slots=True)
class Served:
    """What the read route answers with. ``version`` is 0 and ``content`` None when the project has
    no such config; ``state_revision`` is that of the state that was read."""

    project_id: str
    version: int
    revision: int
    content: bytes | None
    state_revision: int


@dataclass(frozen=True, slots=True)
class Principal:
    """Who is asking, after authentication."""

    user_id: str
    is_admin: bool

    @property
    def actor(self) -> str:
        """How the principal is named in the log."""
        return f"user:{self.user_id}"
