"""A browser with Immich's web page open: JSON, a screen of thumbnails, a piece of a video."""

import asyncio
import random
from collections.abc import Sequence
from typing import Final

from traffic.immich import Immich
from traffic.tally import pause

_JSON: Final = ("/api/server/about", "/api/users/me", "/api/albums", "/api/server/features")
_SCREEN: Final = 8
"""Thumbnails that are asked for at once: about what a browser opens connections for."""
_RANGE: Final = 1024 * 1024


class Browser:
    """Browses `assets`, whose first is larger than 1 MiB."""

    def __init__(self, immich: Immich, assets: Sequence[str], wait: float) -> None:
        self._immich = immich
        self._assets = assets
        self._wait = wait

    async def run(self, stop: asyncio.Event) -> None:
        """Browse until `stop`."""
        while not stop.is_set():
            asset = random.choice(self._assets)
            for path in (*_JSON, f"/api/assets/{asset}"):
                await self._immich.get("JSON", path)
            screen = random.choices(self._assets, k=_SCREEN)
            # A real Immich has made no thumbnail yet, and says so, or cannot make any.
            await asyncio.gather(
                *(
                    self._immich.get("thumbnail", f"/api/assets/{a}/thumbnail", expected=(200, 404))
                    for a in screen
                )
            )
            await self._immich.get(
                "range",
                f"/api/assets/{self._assets[0]}/original",
                expected=(206,),
                size=_RANGE,
                headers={"Range": f"bytes=0-{_RANGE - 1}"},
            )
            await pause(stop, self._wait)
