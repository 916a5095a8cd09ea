"""A bridge in front of an upstream that keeps what it was sent."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from immich_bridge.serve import Server
from wire import Message, Peer, ScriptedUpstream, answer, recording_upstream

StartBridge = Callable[..., Awaitable[Server]]
Reply = bytes | Callable[[Message], bytes]


@dataclass
class Front:
    """What a test has in hand: the bridge's address, and both ends of what went through."""

    url: str
    host: bytes
    """What `Host` has to be at the upstream."""
    upstream: ScriptedUpstream
    seen: list[Message] = field(default_factory=list)
    """The requests that reached the upstream, whole."""
    reply: Reply = field(default_factory=answer)
    """What the upstream answers."""

    def forwarded(
        self, host: bytes = b"bridge", peer: bytes = b"127.0.0.1"
    ) -> list[tuple[bytes, bytes]]:
        """The fields that the bridge adds to a request."""
        return [
            (b"X-Forwarded-For", peer),
            (b"X-Forwarded-Proto", b"http"),
            (b"X-Forwarded-Host", host),
        ]


@asynccontextmanager
async def front_of_a_recorder(
    start_bridge: StartBridge, prefix: str = "", **settings: str
) -> AsyncIterator[Front]:
    """A bridge with `settings` in front of a recording upstream."""

    def reply(message: Message) -> bytes:
        return front.reply if isinstance(front.reply, bytes) else front.reply(message)

    seen: list[Message] = []
    async with recording_upstream(seen, reply) as upstream:
        bridge = await start_bridge(upstream.url + prefix, **settings)
        front = Front(bridge.address, urlsplit(upstream.url).netloc.encode(), upstream, seen)
        yield front


@asynccontextmanager
async def front_of(
    start_bridge: StartBridge, script: Callable[[Peer], Awaitable[None]], **settings: str
) -> AsyncIterator[tuple[Server, ScriptedUpstream]]:
    """A bridge with `settings` in front of an upstream that does on each connection as told."""
    async with ScriptedUpstream(script) as upstream:
        yield await start_bridge(upstream.url, **settings), upstream


def unused_port() -> int:
    """A port on which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


async def let_time_pass(seconds: float) -> None:
    """For tests of what happens, or must not happen, when nothing happens for a while."""
    await asyncio.sleep(seconds)
