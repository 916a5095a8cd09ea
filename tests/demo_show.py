"""The showing: sends the samples through the bridge, fetches them back, and tells what happened."""

import asyncio
import contextlib
import hashlib
import os
import sys
import unicodedata
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import aiohttp

from demo_deliveries import DELIVERIES, Delivery
from demo_servers import DemoError
from immich_standin import StandIn

UPLOAD_PATH = "/api/assets/background"
PIECE = 1024
PIECE_SECONDS = 0.02
"""Pause after each piece on a terminal: without it nobody would see the bar move."""
BAR_WIDTH = 24


@dataclass
class Arrival:
    """An upload that Immich took."""

    delivery: Delivery
    asset_id: str


class Show:
    """Sends, looks, and tells; `failures` counts what was not as it should be."""

    def __init__(self, session: aiohttp.ClientSession, bridge_url: str) -> None:
        self.failures = 0
        self.arrivals: list[Arrival] = []
        self._session = session
        self._bridge = bridge_url
        self._terminal = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
        self._name_width = max(_width(delivery.shown_name) for delivery in DELIVERIES)

    async def all(self) -> None:
        """The whole showing."""
        await self._send_all()
        await self._show_arrivals()

    async def _send_all(self) -> None:
        """Send every sample, one after the other, with a line for each."""
        say(f"\nSending raw bytes to POST {self._bridge}{UPLOAD_PATH}")
        for delivery in DELIVERIES:
            status, outcome, asset_id, message = await self._send(delivery)
            expected = outcome == delivery.outcome
            self.failures += not expected
            if outcome == "created":
                self.arrivals.append(Arrival(delivery, asset_id))
            said = f"{status} {outcome}{': ' + message if message else ''}"
            wrong = "" if expected else f"  NOT {delivery.outcome}"
            self._end_bar()
            say(f"  {self._padded(delivery)}  {delivery.note}\n    -> {said}{wrong}")

    async def _show_arrivals(self) -> None:
        """Ask Immich, through the bridge, what it has, and compare the bytes."""
        say("\nIn Immich now, asked for and downloaded through the bridge")
        header = f"{'type':<15}  {'size':>8}  {'SHA-1 of what came back':<40}  original"
        say(f"  {'name':<{self._name_width}}  {header}")
        assets = []
        for arrival in self.arrivals:
            path = f"/api/assets/{arrival.asset_id}"
            asset = await self._get_json(path)
            content = await self._get(f"{path}/original")
            assets.append((arrival, asset))
            identical = (
                content == arrival.delivery.original
                and asset["originalFileName"] == arrival.delivery.shown_name
            )
            self.failures += not identical
            sha1 = hashlib.sha1(content, usedforsecurity=False).hexdigest()
            verdict = "identical" if identical else "DIFFERENT"
            say(
                f"  {self._padded(arrival.delivery)}  {asset['originalMimeType']:<15}"
                f"  {_size(len(content)):>8}  {sha1}  {verdict}"
            )
        await self._show_live_photo(assets)
        say("\nOn disk")
        for arrival, asset in assets:
            say(f"  {self._padded(arrival.delivery)}  {asset['originalPath']}")

    async def _show_live_photo(self, assets: list[tuple[Arrival, dict[str, Any]]]) -> None:
        ids = {arrival.asset_id: arrival.delivery.sample for arrival in self.arrivals}
        for arrival, asset in assets:
            wanted = arrival.delivery.live_photo_video
            if not wanted:
                continue
            video = ids.get(asset["livePhotoVideoId"])
            metadata = await self._get_json(f"/api/assets/{arrival.asset_id}/metadata")
            stored = metadata[0]["value"] if metadata else {}
            sent = arrival.delivery.headers
            self.failures += video != wanted or stored.get("iCloudId") != sent["X-iCloud-Id"]
            say(f"\n{arrival.delivery.sample} is a Live Photo with {video}")
            say(f"  iCloud id {stored.get('iCloudId')}")
            say(f"  at {stored.get('latitude')}, {stored.get('longitude')}")

    async def _send(self, delivery: Delivery) -> tuple[int, str, str, str]:
        """Upload as iOS does; returns status, outcome, asset id, and the message of an error."""
        body = delivery.body
        headers = {
            "x-api-key": delivery.key or StandIn.api_key,
            # iOS knows only that it sends a file.
            "Content-Type": "application/octet-stream",
            "Content-Length": str(len(body)),
            **delivery.headers,
        }
        if not delivery.query:
            headers["X-Filename"] = delivery.shown_name
            headers["X-Content-Type"] = delivery.content_type
            headers["X-File-Created-At"] = delivery.created_at
        if delivery.live_photo_video:
            headers["X-Live-Photo-Video-Id"] = next(
                (
                    a.asset_id
                    for a in self.arrivals
                    if a.delivery.sample == delivery.live_photo_video
                ),
                "",
            )
        async with self._session.post(
            self._bridge + UPLOAD_PATH,
            params=delivery.query,
            headers=headers,
            data=self._pieces(delivery, body),
        ) as answer:
            # All that iOS lets an app see of the answer.
            asset_id = answer.headers.get("X-Immich-Asset-Id", "")
            outcome = answer.headers.get("X-Immich-Status") or answer.headers.get("X-Bridge-Error")
            message = ""
            if answer.status >= 400:
                with contextlib.suppress(ValueError, aiohttp.ClientError):
                    message = str((await answer.json(content_type=None)).get("message", ""))
            return answer.status, outcome or "without a verdict", asset_id, message

    async def _pieces(self, delivery: Delivery, body: bytes) -> AsyncIterator[bytes]:
        for start in range(0, len(body), PIECE):
            yield body[start : start + PIECE]
            self._draw_bar(delivery, min(start + PIECE, len(body)), len(body))
            await asyncio.sleep(PIECE_SECONDS if self._terminal else 0)

    async def _get(self, path: str) -> bytes:
        headers = {"x-api-key": StandIn.api_key}
        async with self._session.get(self._bridge + path, headers=headers) as answer:
            content = await answer.read()
            if answer.status != 200:
                raise DemoError(f"GET {path} answered {answer.status}")
            return content

    async def _get_json(self, path: str) -> Any:
        headers = {"x-api-key": StandIn.api_key}
        async with self._session.get(self._bridge + path, headers=headers) as answer:
            if answer.status != 200:
                raise DemoError(f"GET {path} answered {answer.status}")
            return await answer.json()

    def _draw_bar(self, delivery: Delivery, sent: int, total: int) -> None:
        if self._terminal:
            done = BAR_WIDTH * sent // total
            bar = "#" * done + "." * (BAR_WIDTH - done)
            line = f"\r  {self._padded(delivery)}  [{bar}] {_size(sent)} of {_size(total)}"
            print(line, end="\x1b[K", flush=True)

    def _end_bar(self) -> None:
        if self._terminal:
            print(end="\r\x1b[K")

    def _padded(self, delivery: Delivery) -> str:
        name = delivery.shown_name
        return name + " " * (self._name_width - _width(name))


def say(line: str) -> None:
    """Print a line at once, also into a pipe."""
    print(line, flush=True)


def _size(count: int) -> str:
    return f"{count / 1000:.1f} kB"


def _width(text: str) -> int:
    """Columns that the text takes on a terminal."""
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)
