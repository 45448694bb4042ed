"""JSON Schemas."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from guardian.http import bodies, shapes
from guardian.http.exchange import Exchange, Handler, page_shape
from guardian.usecases.schemas import SchemaView


async def create_schema(exchange: Exchange) -> web.Response:
    body = exchange.body(bodies.CreateSchema)
    written = await exchange.services.schemas.create(
        exchange.principal, body.name, bytes(body.schema), exchange.call()
    )
    schema = shapes.Schema.of(written.value)
    return exchange.written(written, schema, 201, version=written.value.version)


async def list_schemas(exchange: Exchange) -> web.Response:
    consistency = exchange.consistency()
    seen = await exchange.services.schemas.list(exchange.principal, exchange.page(), consistency)
    return exchange.seen(seen, consistency, page_shape(seen.value, _listed))


def _listed(view: SchemaView) -> shapes.ListedSchema:
    return shapes.ListedSchema.of_usage(view.schema, view.usage_count)


async def get_schema(exchange: Exchange) -> web.Response:
    consistency = exchange.consistency()
    seen = await exchange.services.schemas.get(
        exchange.principal, exchange.path("schema_id"), consistency
    )
    schema = seen.value.schema
    return exchange.seen(seen, consistency, shapes.Schema.of(schema), version=schema.version)


async def update_schema(exchange: Exchange) -> web.Response:
    body = exchange.body(bodies.UpdateSchema)
    written = await exchange.services.schemas.update(
        exchange.principal,
        exchange.path("schema_id"),
        bytes(body.schema),
        exchange.expected(body.expected_version),
        exchange.call(),
    )
    schema = shapes.Schema.of(written.value)
    return exchange.written(written, schema, 200, version=written.value.version)


async def delete_schema(exchange: Exchange) -> web.Response:
    written = await exchange.services.schemas.delete(
        exchange.principal, exchange.path("schema_id"), exchange.call()
    )
    return exchange.written(written, None, 204)


HANDLERS: Final[dict[str, Handler]] = {
    "create_schema": create_schema,
    "list_schemas": list_schemas,
    "get_schema": get_schema,
    "update_schema": update_schema,
    "delete_schema": delete_schema,
}
