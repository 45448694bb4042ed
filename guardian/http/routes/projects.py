"""Projects."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from guardian.http import bodies, shapes
from guardian.http.exchange import Exchange, Handler, page_shape
from guardian.http.parameters import parameter


async def create_project(exchange: Exchange) -> web.Response:
    name = exchange.body(bodies.CreateProject).name
    written = await exchange.services.projects.create(exchange.principal, name, exchange.call())
    shape = shapes.NewProject.of(written.value.project, written.value.api_key)
    return exchange.written(written, shape, 201)


async def list_projects(exchange: Exchange) -> web.Response:
    consistency = exchange.consistency()
    owner_id = parameter(exchange.request, "owner")
    seen = await exchange.services.projects.list(
        exchange.principal, owner_id, exchange.page(), consistency
    )
    return exchange.seen(seen, consistency, page_shape(seen.value, shapes.Project.of))


async def get_project(exchange: Exchange) -> web.Response:
    consistency = exchange.consistency()
    seen = await exchange.services.projects.get(
        exchange.principal, exchange.path("project_id"), consistency
    )
    return exchange.seen(seen, consistency, shapes.Project.of(seen.value))


async def delete_project(exchange: Exchange) -> web.Response:
    written = await exchange.services.projects.delete(
        exchange.principal, exchange.path("project_id"), exchange.call()
    )
    return exchange.written(written, None, 204)


HANDLERS: Final[dict[str, Handler]] = {
    "create_project": create_project,
    "list_projects": list_projects,
    "get_project": get_project,
    "delete_project": delete_project,
}
