"""The routes about the server and the caller, and what Immich says where it has no route."""

from __future__ import annotations

from . import mime
from .accounts import ACCESS_TOKEN, FIRST, PASSWORD
from .answers import Answer, etag, json_answer
from .body import ConnectionGone
from .exchange import Exchange
from .release import Json, Refusal

INDEX = (
    b"<!doctype html><html><head><title>stub immich web</title><!-- metadata:tags --></head>"
    b"<body>stub</body></html>\n"
)
_FEATURES: Json = {
    "smartSearch": False,
    "facialRecognition": False,
    "duplicateDetection": False,
    "map": True,
    "reverseGeocoding": False,
    "importFaces": False,
    "sidecar": True,
    "search": True,
    "trash": True,
    "oauth": False,
    "oauthAutoLaunch": False,
    "ocr": False,
    "passwordLogin": True,
    "configFile": True,
    "email": False,
}
_CONFIG: Json = {
    "loginPageMessage": "",
    "trashDays": 30,
    "userDeleteDelay": 7,
    "oauthButtonText": "Login with OAuth",
    "isInitialized": True,
    "isOnboarded": True,
    "externalDomain": "",
    "publicUsers": True,
    "mapDarkStyleUrl": "https://tiles.immich.cloud/v1/style/dark.json",
    "mapLightStyleUrl": "https://tiles.immich.cloud/v1/style/light.json",
    "maintenanceMode": False,
}
_LONG_AGO = "2026-11-21T03:26:59.620Z"
# Immich lets its session cookies live for 400 days, the longest that browsers allow.
_COOKIE_AGE = 400 * 24 * 3600


async def ping(exchange: Exchange) -> Answer:
    return json_answer({"res": "pong"})


async def version(exchange: Exchange) -> Answer:
    return json_answer(exchange.release.version)


async def version_history(exchange: Exchange) -> Answer:
    name = exchange.release.name[1:]
    entry = {"id": "f516e070-7597-46dd-b42f-75efe2724f91", "createdAt": _LONG_AGO, "version": name}
    return json_answer([entry])


async def features(exchange: Exchange) -> Answer:
    v3 = exchange.release.is_v3
    return json_answer(_FEATURES | ({"realtimeTranscoding": False} if v3 else {}))


async def config(exchange: Exchange) -> Answer:
    v3 = exchange.release.is_v3
    return json_answer(_CONFIG | ({"minFaces": 3} if v3 else {}))


async def media_types(exchange: Exchange) -> Answer:
    images = mime.image_extensions(exchange.release)
    return json_answer({"video": list(mime.VIDEO), "image": images, "sidecar": list(mime.SIDECAR)})


async def about(exchange: Exchange) -> Answer:
    exchange.grant()
    name = exchange.release.name
    url = f"https://github.com/immich-app/immich/releases/tag/{name}"
    return json_answer({"version": name, "versionUrl": url, "licensed": False})


async def well_known(exchange: Exchange) -> Answer:
    return json_answer({"api": {"endpoint": "/api"}}, correlated=False)


async def my_user(exchange: Exchange) -> Answer:
    user = exchange.grant().user
    value: Json = {
        "id": user.id,
        "email": user.email,
        "name": user.name,
        "profileImagePath": "",
        "avatarColor": "gray",
        "profileChangedAt": _LONG_AGO,
        "storageLabel": "admin" if user.is_admin else None,
        "shouldChangePassword": False,
        "isAdmin": user.is_admin,
        "createdAt": _LONG_AGO,
        "deletedAt": None,
        "updatedAt": _LONG_AGO,
        "oauthId": "",
        "quotaSizeInBytes": exchange.behaviour.quota_bytes,
        "quotaUsageInBytes": exchange.instance.library.usage(user.id),
        "status": "active",
        "license": None,
    }
    return json_answer(value)


async def my_api_key(exchange: Exchange) -> Answer:
    grant = exchange.grant()
    if grant.api_key is None:
        raise Refusal(403, "Not authenticated with an API Key")
    value = {
        "id": "0f6bd3a4-7c4e-4a3e-9a65-3b8f0c1e2d11",
        "name": grant.api_key,
        "createdAt": _LONG_AGO,
        "updatedAt": _LONG_AGO,
        "permissions": ["all"] if grant.may_write else ["asset.read"],
    }
    return json_answer(value)


async def login(exchange: Exchange) -> Answer:
    asked = await exchange.json()
    if asked.get("email") != FIRST.email or asked.get("password") != PASSWORD:
        raise Refusal(401, "Incorrect email or password")
    value = {
        "accessToken": ACCESS_TOKEN,
        "userId": FIRST.id,
        "userEmail": FIRST.email,
        "name": FIRST.name,
        "isAdmin": FIRST.is_admin,
        "profileImagePath": "",
        "shouldChangePassword": False,
        "isOnboarded": True,
    }
    answer = json_answer(value, 201)
    common = f"Max-Age={_COOKIE_AGE}; Path=/"
    cookies = [
        f"immich_access_token={ACCESS_TOKEN}; {common}; HttpOnly; SameSite=Lax",
        f"immich_auth_type=password; {common}; HttpOnly; SameSite=Lax",
        f"immich_is_authenticated=true; {common}; SameSite=Lax",
    ]
    answer.headers[:0] = [("Set-Cookie", cookie) for cookie in cookies]
    return answer


async def elsewhere(exchange: Exchange) -> Answer:
    """Every path without a route: JSON 404 under /api, the web app for any other GET."""
    request = exchange.request
    if request.headers.get("Upgrade", "").lower() == "websocket":
        # engine.io ends an upgrade to a path that is not its own without a word.
        exchange.connection.vanish("fin")
        raise ConnectionGone
    if request.method in ("GET", "HEAD") and not request.path.startswith("/api/"):
        headers = [
            ("Content-Type", "text/html; charset=utf-8"),
            ("Cache-Control", "no-store"),
            ("Content-Length", str(len(INDEX))),
            ("ETag", etag(INDEX)),
        ]
        return Answer(200, headers, INDEX, correlated=False)
    raise Refusal(404, f"Cannot {request.method} {request.raw_path}")
