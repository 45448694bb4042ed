"""Configs and their revisions."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from guardian.http import bodies, shapes
from guardian.http.exchange import Exchange, Handler, page_shape, path_number
from guardian.http.parameters import expected_in_query


async def list_configs(exchange: Exchange) -> web.Response:
    consistency = exchange.consistency()
    seen = await exchange.services.configs.list(
        exchange.principal, exchange.path("project_id"), exchange.page(), consistency
    )
    return exchange.seen(seen, consistency, page_shape(seen.value, shapes.Config.of))


async def create_config(exchange: Exchange) -> web.Response:
    body = exchange.body(bodies.CreateConfig)
    written = await exchange.services.configs.create(
        exchange.principal,
        exchange.path("project_id"),
        body.key,
        body.schema_id,
        bytes(body.content),
        exchange.call(),
    )
    config = written.value
    return exchange.written(written, shapes.Config.of(config), 201, version=config.version)


async def get_config(exchange: Exchange) -> web.Response:
    consistency = exchange.consistency()
    seen = await exchange.services.configs.get(
        exchange.principal, exchange.path("project_id"), exchange.path("key"), consistency
    )
    config = seen.value
    return exchange.seen(seen, consistency, shapes.Config.of(config), version=config.version)


async def update_config(exchange: Exchange) -> web.Response:
    body = exchange.body(bodies.UpdateConfig)
    written = await exchange.services.configs.update(
        exchange.principal,
        exchange.path("project_id"),
        exchange.path("key"),
        bytes(body.content),
        exchange.expected(body.expected_version),
        exchange.call(),
        schema_id=body.schema_id if isinstance(body.schema_id, str) else None,
    )
    config = written.value
    return exchange.written(written, shapes.Config.of(config), 200, version=config.version)


async def delete_config(exchange: Exchange) -> web.Response:
    written = await exchange.services.configs.delete(
        exchange.principal,
        exchange.path("project_id"),
        exchange.path("key"),
        exchange.expected(expected_in_query(exchange.request)),
        exchange.call(),
    )
    return exchange.written(written, None, 204)


async def list_revisions(exchange: Exchange) -> web.Response:
    consistency = exchange.consistency()
    seen = await exchange.services.configs.revisions(
        exchange.principal,
        exchange.path("project_id"),
        exchange.path("key"),
        exchange.page(),
        consistency,
    )
    return exchange.seen(seen, consistency, page_shape(seen.value, shapes.Revision.of))


async def get_revision(exchange: Exchange) -> web.Response:
    consistency = exchange.consistency()
    seen = await exchange.services.configs.revision(
        exchange.principal,
        exchange.path("project_id"),
        exchange.path("key"),
        path_number(exchange.path("version")),
        consistency,
    )
    revision = seen.value
    shape = shapes.RevisionContent.of(revision)
    return exchange.seen(seen, consistency, shape, version=revision.version)


async def rollback_config(exchange: Exchange) -> web.Response:
    body = exchange.body(bodies.Rollback)
    written = await exchange.services.configs.rollback(
        exchange.principal,
        exchange.path("project_id"),
        exchange.path("key"),
        body.to_version,
        exchange.expected(body.expected_version),
        exchange.call(),
    )
    config = written.value
    return exchange.written(written, shapes.Config.of(config), 200, version=config.version)


HANDLERS: Final[dict[str, Handler]] = {
    "list_configs": list_configs,
    "create_config": create_config,
    "get_config": get_config,
    "update_config": update_config,
    "delete_config": delete_config,
    "list_revisions": list_revisions,
    "get_revision": get_revision,
    "rollback_config": rollback_config,
}
