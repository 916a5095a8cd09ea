"""Who may come in: users, their keys and tokens, and the order in which Immich looks at them."""

from __future__ import annotations

from dataclasses import dataclass

from aiohttp import web

from .release import Refusal

API_KEY = "standin-key"
OTHER_API_KEY = "other-key"
READONLY_API_KEY = "readonly-key"
ACCESS_TOKEN = "standin-token"
SHARE_KEY = "standin-share"
PASSWORD = "standin-password"


@dataclass(frozen=True)
class User:
    id: str
    email: str
    name: str
    is_admin: bool


@dataclass(frozen=True)
class Grant:
    """A user, and what the credential at hand allows him."""

    user: User
    api_key: str | None = None
    may_write: bool = True

    def require(self, permission: str) -> None:
        if not self.may_write:
            raise Refusal(403, f"Missing required permission: {permission}")


FIRST = User("d9cf3a64-f9a7-4ee8-8b10-ed4cfc81dac1", "admin@example.com", "Admin", True)
SECOND = User("5f0c1a52-7d0e-4f0a-9a51-2b8f7c1d9e30", "other@example.com", "Other", False)
USERS = (FIRST, SECOND)

_GRANTS = {
    API_KEY: Grant(FIRST, "standin"),
    OTHER_API_KEY: Grant(SECOND, "other"),
    READONLY_API_KEY: Grant(FIRST, "readonly", may_write=False),
}


def authenticate(request: web.Request) -> Grant:
    """Whose request it is, in the order of Immich's auth guard; raises Refusal 401.

    A shared link comes before a session, a session before an API key.
    """
    headers, query = request.headers, request.query
    share_key = headers.get("x-immich-share-key") or query.get("key")
    if share_key:
        return _share(share_key, "key")
    share_slug = headers.get("x-immich-share-slug") or query.get("slug")
    if share_slug:
        return _share(share_slug, "slug")
    token = (
        headers.get("x-immich-user-token")
        or headers.get("x-immich-session-token")
        or query.get("sessionKey")
        or _bearer(headers.get("Authorization", ""))
        or request.cookies.get("immich_access_token")
    )
    if token:
        if token != ACCESS_TOKEN:
            raise Refusal(401, "Invalid user token")
        return Grant(FIRST)
    api_key = headers.get("x-api-key") or query.get("apiKey")
    if api_key:
        grant = _GRANTS.get(api_key)
        if grant is None:
            raise Refusal(401, "Invalid API key")
        return grant
    raise Refusal(401, "Authentication required")


def _share(value: str, kind: str) -> Grant:
    if value != SHARE_KEY:
        raise Refusal(401, f"Invalid share {kind}")
    return Grant(FIRST)


def _bearer(authorization: str) -> str | None:
    scheme, _, token = authorization.partition(" ")
    return token if scheme.lower() == "bearer" and token else None
