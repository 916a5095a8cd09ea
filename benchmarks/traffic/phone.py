"""A phone that uploads its photos and videos in the background."""

import asyncio
import random
from typing import Final

from traffic.immich import Immich
from traffic.photo import Photo
from traffic.tally import pause

MB: Final = 1_000_000
_PHOTO_BYTES: Final = (2 * MB, 8 * MB)
_VIDEO_BYTES: Final = (20 * MB, 100 * MB)
_VIDEO_EVERY: Final = 15
_READ_BACK_EVERY: Final = 10
_KEPT: Final = 5
"""Assets that are not deleted yet: a soak of any length shall not fill a disk."""


class Phone:
    """Uploads one file after another, reads some back, deletes what is older."""

    def __init__(self, immich: Immich, wait: float) -> None:
        self._immich = immich
        self._wait = wait

    async def run(self, stop: asyncio.Event) -> None:
        """Upload until `stop`; then leave nothing behind."""
        assets: list[str] = []
        number = random.randrange(_VIDEO_EVERY)
        while not stop.is_set():
            number += 1
            asset = await self._upload(number)
            if asset:
                assets.append(asset)
            if len(assets) > _KEPT:
                await self._immich.delete([assets.pop(0)])
            await pause(stop, self._wait)
        if assets:
            await self._immich.delete(assets)

    async def _upload(self, number: int) -> str | None:
        video = number % _VIDEO_EVERY == 0
        photo = Photo(random.randint(*(_VIDEO_BYTES if video else _PHOTO_BYTES)))
        kind, filename = ("video", "IMG_0001.MOV") if video else ("photo", "IMG_0001.HEIC")
        # Half of them with a checksum: both ways of the bridge shall be in use.
        digest = random.random() < 0.5
        asset = await self._immich.upload(kind, photo, filename, digest=digest)
        if asset and number % _READ_BACK_EVERY == 0:
            path = f"/api/assets/{asset}/original"
            await self._immich.get("read back", path, size=photo.size, sha1=photo.sha1)
        return asset
