"""What request bodies look like. Unknown members are refused; see :mod:`guardian.http.decoding`.

``Content`` and ``SchemaText`` members are any JSON value; they reach a handler as compact bytes in
the sender's member order, which is how they are stored and hashed. ``Content`` keeps to the limits
of documents; what a schema may be is for its validator to say.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, UnsetType

from guardian.domain.entities import Role

MAX_SAFE_INTEGER = 2**53 - 1

Version = Annotated[int, Meta(ge=1, le=MAX_SAFE_INTEGER, description="A version, 1 or more.")]
Text = Annotated[str, Meta(max_length=1024)]
Identifier = Annotated[str, Meta(min_length=1, max_length=128)]
Password = Annotated[str, Meta(max_length=4096)]
SchemaText = msgspec.Raw
Content = Annotated[msgspec.Raw, Meta(description="Any JSON value.", extra={"document": True})]


class Body(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of all request bodies."""


class Register(Body, frozen=True):
    email: Text
    password: Password


class Login(Body, frozen=True):
    email: Text
    password: Password


class Refresh(Body, frozen=True):
    refresh_token: Text


class Logout(Body, frozen=True):
    refresh_token: Text


class CreateUser(Body, frozen=True):
    email: Text
    password: Password
    is_admin: bool = False


class CreateProject(Body, frozen=True):
    name: Text


class CreateKey(Body, frozen=True):
    name: Text = ""


class GrantRole(Body, frozen=True):
    user_id: Identifier
    role: Role


class CreateSchema(Body, frozen=True):
    name: Text
    schema: SchemaText


class UpdateSchema(Body, frozen=True):
    schema: SchemaText
    expected_version: Version | UnsetType = UNSET


class CreateConfig(Body, frozen=True):
    key: Text
    schema_id: Identifier
    content: Content


class UpdateConfig(Body, frozen=True):
    content: Content
    expected_version: Version | UnsetType = UNSET
    schema_id: Identifier | UnsetType = UNSET


class WantedMember(Body, frozen=True):
    id: Identifier
    voter: bool = True


class ChangeMembers(Body, frozen=True):
    members: Annotated[list[WantedMember], Meta(min_length=1, max_length=64)]
    expected_version: Version


class TransferLeadership(Body, frozen=True):
    target: Identifier | None = None


class Rollback(Body, frozen=True):
    to_version: Version
    expected_version: Version | UnsetType = UNSET
