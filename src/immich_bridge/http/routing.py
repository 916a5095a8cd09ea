"""Routes in terms of aiohttp's router, and the one that takes what no other takes."""

from typing import NoReturn

from aiohttp import web
from aiohttp.typedefs import Handler


async def _invite_later(request: web.Request) -> None:
    """Leave `Expect: 100-continue` to whoever reads the body, after the head was checked."""


def add_route(app: web.Application, method: str, path: str, handler: Handler) -> None:
    """Route `method` (`*`: any) on exactly `path` to `handler`."""
    app.router.add_route(method, path, handler, expect_handler=_invite_later)


def add_fallback(app: web.Application, handler: Handler) -> None:
    """Route whatever no other route takes to `handler`."""
    resource = _Anything("/")
    resource.add_route("*", handler, expect_handler=_invite_later)
    app.router.register_resource(resource)


class _Anything(web.PlainResource):
    """Matches every target, also those that a path pattern cannot, such as `OPTIONS *`."""

    def _match(self, path: str) -> dict[str, str]:
        return {}

    def url_for(self) -> NoReturn:  # type: ignore[override]
        raise RuntimeError("there is no one URL of everything")
