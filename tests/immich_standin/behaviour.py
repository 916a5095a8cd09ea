"""The ways in which the stand-in can be told to misbehave."""

from __future__ import annotations

import asyncio
import dataclasses
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Behaviour:
    """What the stand-in does wrong; the default does nothing wrong.

    ``method``, ``path`` (a prefix of the request target) and ``times`` narrow a misbehaviour to
    some requests; ``reset_on_accept`` concerns a connection that has not said anything yet, so
    of these it heeds ``times`` alone.
    """

    method: str | None = None
    path: str = "/"
    times: int | None = None
    """How many requests (or connections) it still applies to; None: all of them."""

    early_status: int | None = None
    """Answer with this status before the body is read."""
    answer_status: int | None = None
    """Read the whole body, store nothing, and answer with this status."""
    answer_body: str = '{"message":"The stand-in was told to answer this"}'
    answer_headers: dict[str, str] = field(default_factory=dict)

    stall_after: int | None = None
    """Stop reading the body after so many bytes, until ``release()``."""
    vanish_after: int | None = None
    """Close the connection after so many body bytes, as ``vanish_with`` says."""
    vanish_with: str = "rst"
    """"rst": reset with SO_LINGER 0; "fin": an orderly close."""

    never_answer: bool = False
    """Handle the request, then say nothing until ``release()`` and close."""
    lose_answer: bool = False
    """Handle the request, then close without a byte of the answer, as ``vanish_with`` says."""
    hold_answer: bool = False
    """Handle the request, and answer only after ``release()``."""
    cut_answer_after: int | None = None
    """Close in the middle of the answer, after so many bytes of its body."""
    cut_chunked: bool = False
    """Send the answer to be cut in chunks, where it would have had a Content-Length."""

    close_idle: bool = False
    """Close the connection right after each answer, whose head promises keep-alive."""
    reset_on_accept: bool = False
    """Reset each new connection as soon as it is accepted."""

    quota_bytes: int | None = None
    """Every user's quota; Immich counts against it only after the whole body."""

    released: asyncio.Event = field(default_factory=asyncio.Event, repr=False, compare=False)

    def release(self) -> None:
        """Let go what ``stall_after``, ``hold_answer`` and ``never_answer`` hold back."""
        self.released.set()

    def take(self, method: str, target: str) -> bool:
        """Whether it applies to this request, which then counts against ``times``."""
        if self.method not in (None, method) or not target.startswith(self.path):
            return False
        return self.take_one()

    def take_one(self) -> bool:
        """Count one request or connection against ``times``; False when none was left."""
        if self.times is None:
            return True
        if self.times <= 0:
            return False
        self.times -= 1
        return True

    def as_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in SETTINGS}

    @classmethod
    def from_json(cls, settings: dict[str, Any]) -> Behaviour:
        """A behaviour from its settings; raises ValueError for one that does not exist."""
        unknown = settings.keys() - SETTINGS
        if unknown:
            raise ValueError(f"no such behaviour: {', '.join(sorted(unknown))}")
        return cls(**settings)


SETTINGS = tuple(f.name for f in dataclasses.fields(Behaviour) if f.name != "released")
