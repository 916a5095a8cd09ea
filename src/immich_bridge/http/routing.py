"""Routes in terms of aiohttp's router, and the one that takes what no other takes."""

from collections.abc import Iterator
from typing import Final, NoReturn

from aiohttp import web
from aiohttp.typedefs import Handler

UNROUTED: Final = "unrouted"
"""The label of requests that no route takes."""


async def _invite_later(request: web.Request) -> None:
    """Leave `Expect: 100-continue` to whoever reads the body, after the head was checked."""


def add_route(app: web.Application, method: str, path: str, handler: Handler) -> None:
    """Route `method` (`*`: any) on exactly `path` to `handler`."""
    app.router.add_route(method, path, handler, expect_handler=_invite_later)


def add_fallback(app: web.Application, handler: Handler, label: str) -> None:
    """Route whatever no other route takes to `handler`; log and metrics call it `label`."""
    resource = _Anything("/")
    resource.label = label
    resource.add_route("*", handler, expect_handler=_invite_later)
    app.router.register_resource(resource)


def route_label(request: web.Request) -> str:
    """What log and metrics call the route of `request`: one of a few, whatever the path."""
    return _label(request.match_info.route.resource)


def route_labels(app: web.Application) -> Iterator[str]:
    """The label of each route."""
    return map(_label, app.router.resources())


def _label(resource: web.AbstractResource | None) -> str:
    if resource is None:
        return UNROUTED
    return resource.label if isinstance(resource, _Anything) else resource.canonical


class _Anything(web.PlainResource):
    """Matches every target, also those that a path pattern cannot, such as `OPTIONS *`."""

    label = UNROUTED

    def _match(self, path: str) -> dict[str, str]:
        return {}

    def url_for(self) -> NoReturn:  # type: ignore[override]
        raise RuntimeError("there is no one URL of everything")
