"""What answers look like, and how they are made from entities.

Stored documents are spliced in as the bytes they are (``msgspec.Raw``), never parsed.
"""

from __future__ import annotations

import time
from typing import Annotated, Generic, TypeVar

import msgspec
from msgspec import Meta

from guardian.domain import entities
from guardian.domain.entities import Role
from guardian.usecases.ports import ClusterView

T = TypeVar("T")

Time = Annotated[str, Meta(description="RFC 3339, UTC.", extra_json_schema={"format": "date-time"})]


def rfc3339(unix_ms: int) -> str:
    """``2026-01-31T12:00:00.123Z``"""
    whole, milliseconds = divmod(unix_ms, 1000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole)) + f".{milliseconds:03d}Z"


def known(text: str) -> str | None:
    """None for what the answer no longer knows."""
    return text or None


def known_time(unix_ms: int) -> str | None:
    """As :func:`rfc3339`; None for a time that the answer no longer knows."""
    return rfc3339(unix_ms) if unix_ms else None


class Items(msgspec.Struct, Generic[T], frozen=True):
    """One page of a list."""

    items: list[T]
    next_cursor: str | None


class TokenPair(msgspec.Struct, frozen=True):
    access_token: str
    refresh_token: str
    token_type: str
    expires_in: Annotated[int, Meta(description="Life of the access token, seconds.")]


class User(msgspec.Struct, frozen=True):
    id: str
    email: str
    is_admin: bool
    created_at: Time

    @classmethod
    def of(cls, user: entities.User) -> User:
        return cls(user.id, user.email, user.is_admin, rfc3339(user.created_at_ms))


class Project(msgspec.Struct, frozen=True):
    id: str
    name: str
    owner_id: str
    created_at: Time

    @classmethod
    def of(cls, project: entities.Project) -> Project:
        created_at = rfc3339(project.created_at_ms)
        return cls(project.id, project.name, project.owner_id, created_at)


_GONE = "Null when the answer is replayed and the thing was deleted since."
_SHOWN_ONCE = Meta(description="Shown this once; null when the answer is replayed.")


class NewProject(msgspec.Struct, frozen=True):
    id: str
    name: str
    owner_id: str
    created_at: Annotated[Time | None, Meta(description=_GONE)]
    api_key: Annotated[str | None, _SHOWN_ONCE]

    @classmethod
    def of(cls, project: entities.Project, api_key: str | None) -> NewProject:
        created_at = known_time(project.created_at_ms)
        return cls(project.id, project.name, project.owner_id, created_at, api_key)


class ApiKey(msgspec.Struct, frozen=True):
    id: str
    project_id: str
    name: str
    created_by: str
    created_at: Time

    @classmethod
    def of(cls, key: entities.ApiKeyInfo) -> ApiKey:
        created_at = rfc3339(key.created_at_ms)
        return cls(key.id, key.project_id, key.name, key.created_by, created_at)


class NewApiKey(msgspec.Struct, frozen=True):
    id: str
    project_id: str
    name: str
    created_by: str
    created_at: Annotated[Time | None, Meta(description=_GONE)]
    api_key: Annotated[str | None, _SHOWN_ONCE]

    @classmethod
    def of(cls, key: entities.ApiKeyInfo, api_key: str | None) -> NewApiKey:
        created_at = known_time(key.created_at_ms)
        return cls(key.id, key.project_id, key.name, key.created_by, created_at, api_key)


class Grant(msgspec.Struct, frozen=True):
    user_id: str
    role: Role

    @classmethod
    def of(cls, grant: entities.RoleGrant) -> Grant:
        return cls(grant.user_id, grant.role)


class Schema(msgspec.Struct, frozen=True):
    id: str
    name: Annotated[str | None, Meta(description=_GONE)]
    version: int
    schema: msgspec.Raw
    created_by: Annotated[str | None, Meta(description=_GONE)]
    created_at: Annotated[Time | None, Meta(description=_GONE)]

    @classmethod
    def of(cls, schema: entities.Schema) -> Schema:
        return cls(
            schema.id,
            known(schema.name),
            schema.version,
            msgspec.Raw(schema.body),
            known(schema.created_by),
            known_time(schema.created_at_ms),
        )


class ListedSchema(msgspec.Struct, frozen=True):
    id: str
    name: str
    version: int
    schema: msgspec.Raw
    created_by: str
    created_at: Time
    usage_count: int

    @classmethod
    def of_usage(cls, schema: entities.Schema, usage_count: int) -> ListedSchema:
        return cls(
            schema.id,
            schema.name,
            schema.version,
            msgspec.Raw(schema.body),
            schema.created_by,
            rfc3339(schema.created_at_ms),
            usage_count,
        )


class Config(msgspec.Struct, frozen=True):
    project_id: str
    key: str
    schema_id: str
    schema_version: int
    version: int
    revision: int
    content: msgspec.Raw
    updated_by: str
    updated_at: Time

    @classmethod
    def of(cls, config: entities.Config) -> Config:
        return cls(
            config.project_id,
            config.key,
            config.schema_id,
            config.schema_version,
            config.version,
            config.revision,
            msgspec.Raw(config.content),
            config.updated_by,
            rfc3339(config.updated_at_ms),
        )


class Revision(msgspec.Struct, frozen=True):
    version: int
    revision: int
    kind: str
    content_digest: str
    updated_by: str
    updated_at: Time

    @classmethod
    def of(cls, revision: entities.Revision) -> Revision:
        return cls(
            revision.version,
            revision.revision,
            revision.kind,
            revision.content_digest,
            revision.updated_by,
            rfc3339(revision.updated_at_ms),
        )


class RevisionContent(msgspec.Struct, frozen=True):
    """``content`` is null for a delete (and for a document that is null; ``kind`` tells)."""

    version: int
    revision: int
    kind: str
    content_digest: str
    updated_by: str
    updated_at: Time
    content: msgspec.Raw

    @classmethod
    def of(cls, revision: entities.Revision) -> RevisionContent:
        return cls(
            revision.version,
            revision.revision,
            revision.kind,
            revision.content_digest,
            revision.updated_by,
            rfc3339(revision.updated_at_ms),
            msgspec.Raw(b"null" if revision.content is None else revision.content),
        )


class Document(msgspec.Struct, frozen=True):
    """What a holder of an API key reads."""

    key: str
    version: int
    content: msgspec.Raw


class Member(msgspec.Struct, frozen=True):
    id: str
    raft_address: str
    http_address: str
    voter: bool
    healthy: bool


class Joiner(msgspec.Struct, frozen=True):
    id: str
    raft_address: str
    http_address: str
    wants_vote: bool


_CONDITIONS = (
    "What keeps this node from its part: not_a_member, removed, quarantined, disk_stalled."
)


class Cluster(msgspec.Struct, frozen=True):
    node_id: str
    role: Annotated[str, Meta(description="leader, follower, candidate, learner or outside")]
    term: int
    leader_id: str | None
    commit_index: int
    applied_index: int
    members: list[Member]
    members_version: Annotated[int, Meta(description="To name when changing the members.")]
    stage: Annotated[str, Meta(description="stable, staging or joint")]
    waits_for: Annotated[str | None, Meta(description="What a change of the members waits for.")]
    joiners: Annotated[list[Joiner], Meta(description="Nodes that asked this one to join.")]
    conditions: Annotated[list[str], Meta(description=_CONDITIONS)]

    @classmethod
    def of(cls, view: ClusterView) -> Cluster:
        members = [
            Member(m.id, m.raft_address, m.http_address, m.voter, m.healthy) for m in view.members
        ]
        joiners = [Joiner(j.id, j.raft_address, j.http_address, j.wants_vote) for j in view.joiners]
        return cls(
            view.node_id,
            view.role,
            view.term,
            view.leader_id,
            view.commit_index,
            view.applied_index,
            members,
            view.members_version,
            view.stage,
            view.waits_for,
            joiners,
            list(view.conditions),
        )


class MembersChanged(msgspec.Struct, frozen=True):
    """The members are as wanted; ``caught_up`` false: a new voter is a learner for now."""

    caught_up: bool
    cluster: Cluster


class Ready(msgspec.Struct, frozen=True, omit_defaults=True):
    """``ready`` or ``not_ready``; what is degraded; why, for administrators."""

    status: str
    degraded: list[str] = []
    reasons: list[str] = []


class Word(msgspec.Struct, frozen=True):
    status: str


class Welcome(msgspec.Struct, frozen=True):
    name: str
    version: str
    links: dict[str, str]


class ProblemFault(msgspec.Struct, frozen=True):
    pointer: Annotated[str, Meta(description="RFC 6901")]
    message: str


class ProblemDocument(msgspec.Struct, frozen=True):
    """RFC 9457."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    request_id: str
    errors: list[ProblemFault] | msgspec.UnsetType = msgspec.UNSET
    current_version: int | msgspec.UnsetType = msgspec.UNSET
