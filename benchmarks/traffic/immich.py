"""The requests to Immich that phones and browsers of a soak have in common."""

import hashlib
import uuid
from collections.abc import Mapping
from typing import Any

import aiohttp
from traffic.photo import Photo
from traffic.tally import Tally, Wrong

UPLOAD = "/api/assets/background"


class Immich:
    """What is at `url`, as the clients of a soak use it. Every call is counted."""

    def __init__(self, session: aiohttp.ClientSession, url: str, key: str, tally: Tally) -> None:
        self.session = session
        self.url = url
        self.headers = {"x-api-key": key}
        self._tally = tally

    async def upload(self, kind: str, photo: Photo, filename: str, *, digest: bool) -> str | None:
        """Upload as iOS does; the id of the asset, or None if it went wrong."""
        headers = {
            **self.headers,
            "X-Filename": filename,
            "X-Device-Asset-Id": str(uuid.uuid4()),
            "Content-Type": "application/octet-stream",
            "Content-Length": str(photo.size),
        }
        if digest:
            headers["x-immich-checksum"] = photo.sha1
        with self._tally.request(kind, photo.size):
            async with self.session.post(self.url + UPLOAD, data=photo, headers=headers) as answer:
                text = await answer.text()
                if answer.status != 201:
                    raise Wrong(f"{answer.status} {text[:200]}")
                return answer.headers["X-Immich-Asset-Id"]
        return None

    async def get(
        self,
        kind: str,
        path: str,
        *,
        expected: tuple[int, ...] = (200,),
        size: int | None = None,
        sha1: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Get `path`; it counts as wrong unless status, size and digest are what is expected."""
        with self._tally.request(kind, size or 0):
            url = self.url + path
            async with self.session.get(url, headers={**self.headers, **(headers or {})}) as answer:
                received, digest = 0, hashlib.sha1(usedforsecurity=False)
                async for piece in answer.content.iter_any():
                    received += len(piece)
                    if sha1:
                        digest.update(piece)
                if answer.status not in expected:
                    raise Wrong(f"{path}: {answer.status}")
                if size is not None and received != size:
                    raise Wrong(f"{path}: {received} bytes instead of {size}")
                if sha1 and digest.hexdigest() != sha1:
                    raise Wrong(f"{path}: not the bytes that were uploaded")

    async def delete(self, asset_ids: list[str]) -> None:
        """Delete for good."""
        body: dict[str, Any] = {"ids": asset_ids, "force": True}
        with self._tally.request("delete"):
            url = self.url + "/api/assets"
            async with self.session.delete(url, json=body, headers=self.headers) as answer:
                if answer.status != 204:
                    raise Wrong(f"{answer.status} {(await answer.text())[:200]}")
