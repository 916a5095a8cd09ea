"""A video whose connection breaks three times: the demo of uploads that can be resumed."""

import asyncio
import random
from itertools import pairwise
from typing import Final

import aiohttp

from demo_deliveries import SAMPLES
from demo_servers import DemoError
from demo_show import UPLOAD_PATH, say
from immich_standin import StandIn
from wire import Message, connect, request

_SIZE: Final = 12_000_000
_CUTS: Final = (0, 3_100_000, 3_900_000, 9_700_000, _SIZE)
_VERSION: Final = ("Upload-Draft-Interop-Version", "8")
_HEADERS: Final = (_VERSION, ("x-api-key", StandIn.api_key))


class ResumeShow:
    """Sends, breaks off, and goes on as an iPhone does; `failures` counts what was wrong."""

    def __init__(self, session: aiohttp.ClientSession, bridge_url: str) -> None:
        self.failures = 0
        self._session = session
        self._bridge = bridge_url
        start = (SAMPLES / "IMG_0004.MOV").read_bytes()[:64]
        self._video = start + random.Random(5).randbytes(_SIZE - len(start))

    async def all(self) -> None:
        """The whole showing."""
        say(f"\nA video of {_megabytes(_SIZE)} through three tunnels")
        url, answer = "", Message(b"", [])
        for start, end in pairwise(_CUTS):
            offset = await self._offset(url) if url else 0
            if offset > start:
                raise DemoError(f"the bridge claims {offset} bytes, of {start} that were sent")
            found, answer = await self._send(url, offset, end)
            url = url or found
            if end < _SIZE:
                say(f"  sent from {_megabytes(offset)} on, cut off at {_megabytes(end)}")
        asset_id = answer.header("X-Immich-Asset-Id")
        headers = {"x-api-key": StandIn.api_key}
        path = f"{self._bridge}/api/assets/{asset_id}/original"
        async with self._session.get(path, headers=headers) as stored:
            identical = answer.status == 201 and await stored.read() == self._video
        self.failures += not identical
        verdict = "identical" if identical else "DIFFERENT"
        say(f"  sent from {_megabytes(offset)} on, to its end")
        say(f"    -> {answer.status} {answer.header('X-Immich-Status')}: one asset, {verdict}")

    async def _offset(self, url: str) -> int:
        """Where the bridge wants the upload to go on."""
        async with connect(self._bridge) as peer:
            await peer.send(request("HEAD", url, *_HEADERS))
            told = await peer.read_answer("HEAD")
        return int(told.header("Upload-Offset") or 0)

    async def _send(self, url: str, offset: int, end: int) -> tuple[str, Message]:
        """Send what is between, then break the connection; at the very end, read the answer."""
        more = [
            *_HEADERS,
            ("Upload-Complete", "?1"),
            ("Content-Length", str(_SIZE - offset)),
        ]
        async with connect(self._bridge) as peer:
            if url:
                more += [
                    ("Upload-Offset", str(offset)),
                    ("Content-Type", "application/partial-upload"),
                ]
                await peer.send(request("PATCH", url, *more))
            else:
                await peer.send(request("POST", UPLOAD_PATH, *more, ("X-Filename", "IMG_0005.MOV")))
                url = (await peer.read_head()).header("Location") or ""
            await peer.send(self._video[offset:end])
            if end == _SIZE:
                return url, await peer.read_answer()
            await asyncio.sleep(0.2)  # some seconds of a train ride
            peer.reset()
        return url, Message(b"", [])


def _megabytes(count: int) -> str:
    return f"{count / 1_000_000:.1f} MB"
