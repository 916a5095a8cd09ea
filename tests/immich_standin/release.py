"""Which Immich the stand-in plays: the two releases differ in texts, shapes and leniency."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]

REASONS = {
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    500: "Internal Server Error",
}


class Refusal(Exception):
    """An answer in Immich's error form: a status, a message, and on v3 a list of zod issues.

    ``keeps_file`` tells that Immich leaves the uploaded file behind as an orphan, which it does
    after every validation error. ``correlated`` is false for the errors of the JSON body parser,
    which run before v2 gives a request its correlation id.
    """

    def __init__(
        self,
        status: int,
        message: str | list[str],
        *,
        errors: list[Json] | None = None,
        keeps_file: bool = False,
        correlated: bool = True,
        cache_control: str | None = None,
    ) -> None:
        super().__init__(status, message)
        self.status = status
        self.message = message
        self.errors = errors
        self.keeps_file = keeps_file
        self.correlated = correlated
        self.cache_control = cache_control


@dataclass(frozen=True)
class Release:
    """One Immich release and the ways in which its wire format is its own."""

    major: int
    minor: int
    patch: int
    correlation_header: str

    @property
    def is_v3(self) -> bool:
        return self.major >= 3

    @property
    def name(self) -> str:
        return f"v{self.major}.{self.minor}.{self.patch}"

    @property
    def version(self) -> Json:
        version: Json = {"major": self.major, "minor": self.minor, "patch": self.patch}
        if self.is_v3:
            version["prerelease"] = None
        return version

    @property
    def announced_version(self) -> Json:
        """The version in socket.io's `on_server_version`: v2 sends its whole SemVer object."""
        if self.is_v3:
            return self.version
        return {
            "options": {},
            "loose": False,
            "includePrerelease": False,
            "raw": self.name[1:],
            **self.version,
            "prerelease": [],
            "build": [],
            "version": self.name[1:],
        }

    def correlates(self, refusal: Refusal) -> bool:
        return refusal.correlated or self.is_v3

    def error(self, refusal: Refusal, correlation_id: str) -> Json:
        """The JSON of an error: v3 answers the bare message, v2 Nest's whole exception body."""
        body: Json = {"message": refusal.message}
        if self.is_v3:
            if refusal.errors is not None:
                body["errors"] = refusal.errors
            return body
        # The body parser's 500 passes no Nest filter that would add the name of the status.
        if refusal.correlated or refusal.status != 500:
            body["error"] = REASONS[refusal.status]
        body["statusCode"] = refusal.status
        if refusal.correlated:
            body["correlationId"] = correlation_id
        return body


RELEASES: Mapping[int, Release] = {
    2: Release(2, 7, 5, "x-immich-cid"),
    3: Release(3, 1, 0, "X-Correlation-ID"),
}


def dump(value: Any) -> bytes:
    """JSON as ``JSON.stringify`` writes it: no spaces, and non-ASCII left as it is."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "backslashreplace")
