"""Handlers, one module per noun. Each takes an :class:`Exchange`, calls one use case and gives its
answer a shape; nothing is decided here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from guardian.http.exchange import Handler
from guardian.http.routes import (
    auth,
    cluster,
    configs,
    health,
    keys,
    meta,
    projects,
    read,
    roles,
    schemas,
    users,
)

#: by operation of the endpoint table
HANDLERS: Final[Mapping[str, Handler]] = {
    name: handler
    for noun in (
        auth,
        cluster,
        configs,
        health,
        keys,
        meta,
        projects,
        read,
        roles,
        schemas,
        users,
    )
    for name, handler in noun.HANDLERS.items()
}
