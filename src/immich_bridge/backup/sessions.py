"""`/login`, `/refresh`, `/status`: from a password to a token and on."""

from collections.abc import Sequence

from aiohttp import web

from immich_bridge.backup.accounts import Accounts
from immich_bridge.backup.tokens import Session, Token, Tokens
from immich_bridge.config import Config
from immich_bridge.errors import BadRequest, Unauthorized
from immich_bridge.http.client_address import client_address
from immich_bridge.http.json_body import INVALID_FORMAT, read_json_object
from immich_bridge.http.rate_limit import RateLimit

_MAX_LOGIN_BODY = 16 * 1024


class Sessions:
    """The handlers of the three routes."""

    def __init__(
        self, config: Config, accounts: Accounts, tokens: Tokens, login_limit: RateLimit
    ) -> None:
        self._config = config
        self._accounts = accounts
        self._tokens = tokens
        self._login_limit = login_limit

    async def login(self, request: web.Request) -> web.Response:
        """`POST /login`."""
        await self._login_limit.hit(request, client_address(request, self._config.trusted_proxies))
        credentials = await read_json_object(
            request, limit=_MAX_LOGIN_BODY, idle_timeout=self._config.body_idle_timeout
        )
        username, password = credentials.get("username"), credentials.get("password")
        if not isinstance(username, str) or not isinstance(password, str):
            raise BadRequest(INVALID_FORMAT)
        if not username or not password:
            raise BadRequest(INVALID_FORMAT)
        user = await self._accounts.authenticate(username, password)
        token = await self._tokens.issue(user)
        if token is None:
            raise Unauthorized("invalid credentials")
        return _token_answer(token)

    async def refresh(self, request: web.Request) -> web.Response:
        """`POST /refresh`."""
        token = await self._tokens.refresh(bearer_token(request))
        if token is None:
            raise Unauthorized("token not found or expired")
        return _token_answer(token)

    async def status(self, request: web.Request) -> web.Response:
        """`GET /status`."""
        session = await self._tokens.check(bearer_token(request))
        if session is None:
            raise Unauthorized("token not found or expired")
        return web.json_response(
            {"status": "online", "user_id": session.user_id, "username": session.username}
        )


async def require_session(request: web.Request, tokens: Tokens) -> Session:
    """Whose request this is, in the words of `/photos/*`; raises `Unauthorized`."""
    session = await tokens.check(bearer_token(request))
    if session is None:
        raise Unauthorized("Token not found")
    return session


def bearer_token(request: web.Request) -> str:
    """The token of the `Authorization` header (RFC 6750 2.1)."""
    values: Sequence[str] = request.headers.getall("Authorization", ())
    if not values:
        raise Unauthorized("Authorization header is required")
    scheme, _, token = values[0].partition(" ")
    token = token.strip(" ")  # and not of what else Python takes for a space: it is no part of HTTP
    if scheme.lower() != "bearer" or not token or " " in token:
        raise Unauthorized("Invalid authorization header format")
    return token


def _token_answer(token: Token) -> web.Response:
    answer = web.json_response({"token": token.text, "expires_at": token.expires_at})
    answer.headers["Cache-Control"] = "no-store"
    return answer
