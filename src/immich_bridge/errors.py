"""The errors that this server answers with: each knows its status, code and message.

They are raised anywhere below the handlers and rendered in one place
(`http/error_answer.py`) as `{"error": code, "message": text}`.
"""

from collections.abc import Mapping
from typing import Any

RETRY_AFTER_SECONDS = 5
"""How soon a client may try again when Immich or this server is briefly away."""


class BridgeError(Exception):
    """An answer that is not a success. `message` is for people and holds no secret."""

    status = 500
    code = "internal_error"
    problem_type: str | None = None
    """The URI by which clients of a standard know the error (RFC 9457)."""

    def __init__(self, message: str, *, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.headers = dict(headers or {})
        self.details: Mapping[str, Any] = {}
        """Members of its own that the type of problem has."""


class StartError(Exception):
    """The server cannot start; the message says why in one line."""


class BadRequest(BridgeError):
    """The request cannot be understood."""

    status = 400
    code = "bad_request"


class Unauthorized(BridgeError):
    """No credentials, or none that are valid."""

    status = 401
    code = "unauthorized"

    def __init__(self, message: str) -> None:
        # No such answer without the name of a scheme (RFC 9110 15.5.2).
        super().__init__(message, headers={"WWW-Authenticate": "Bearer"})


class NotFound(BridgeError):
    """Nothing of ours lies here, and there is no Immich to ask."""

    status = 404
    code = "not_found"


class MethodNotAllowed(BridgeError):
    """The route exists, but not for this method."""

    status = 405
    code = "method_not_allowed"

    def __init__(self, method: str, allowed: str) -> None:
        super().__init__(
            f"{method} is not allowed here, only {allowed}", headers={"Allow": allowed}
        )


class RequestTimeout(BridgeError):
    """The sender fell silent in the middle of its body."""

    status = 408
    code = "request_timeout"


class Conflict(BridgeError):
    """The state of what the request is about is not what its sender takes it for."""

    status = 409
    code = "conflict"


class PreconditionFailed(BridgeError):
    """The client speaks another version of a protocol."""

    status = 412
    code = "precondition_failed"


class PayloadTooLarge(BridgeError):
    """The body is larger than a limit that the operator set."""

    status = 413
    code = "payload_too_large"


class UnsupportedMediaType(BridgeError):
    """The file is of no kind that Immich takes, or its kind cannot be told."""

    status = 415
    code = "unsupported_media_type"


class ChecksumMismatch(BridgeError):
    """The bytes that arrived are not those that the client digested."""

    status = 422
    code = "checksum_mismatch"


class RateLimited(BridgeError):
    """Too many requests in too short a time."""

    status = 429
    code = "rate_limited"


class ClientGone(BridgeError):
    """The client left before its request was whole; there is nobody left to answer.

    The status is the one that access logs of HTTP servers use for this; it is never sent.
    """

    status = 499
    code = "client_gone"


class InternalError(BridgeError):
    """A fault of ours."""


class NotImplementedHere(BridgeError):
    """A part of HTTP that is not offered on this route."""

    status = 501
    code = "not_implemented"


class BadGateway(BridgeError):
    """Immich vanished, or answered something that is not an answer of Immich's."""

    status = 502
    code = "bad_gateway"


class Unavailable(BridgeError):
    """Immich cannot be reached, or this server is stopping."""

    status = 503
    code = "unavailable"

    def __init__(self, message: str) -> None:
        super().__init__(message, headers={"Retry-After": str(RETRY_AFTER_SECONDS)})


class GatewayTimeout(BridgeError):
    """Immich stayed silent for longer than the operator allows."""

    status = 504
    code = "gateway_timeout"


class InsufficientStorage(BridgeError):
    """The disk or the quota is full."""

    status = 507
    code = "insufficient_storage"
