"""A phone that sends its photos to the bridge's own photo backup."""

import asyncio
import random
from typing import Any, Final

import aiohttp
from traffic.photo import Photo
from traffic.tally import Tally, Wrong, pause

_BYTES: Final = (2_000_000, 8_000_000)
_PHOTOS: Final = 20
"""Of a phone; they are sent again and again, each over the one before."""
_DAY: Final = "2025-12-10"
_TYPE: Final = "image/jpeg"


class BackupPhone:
    """Indexes its photos, then sends them as raw bodies and as forms."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        url: str,
        token: str,
        tally: Tally,
        number: int,
        wait: float,
    ) -> None:
        self._session = session
        self._url = url
        self._headers = {"Authorization": f"Bearer {token}"}
        self._tally = tally
        self._ids = [f"soak-{number}-{photo}" for photo in range(_PHOTOS)]
        self._wait = wait

    async def run(self, stop: asyncio.Event) -> None:
        """Send until `stop`."""
        while not stop.is_set():
            await self._index()
            for local_id in self._ids:
                if stop.is_set():
                    break
                photo = Photo(random.randint(*_BYTES))
                await (self._raw if random.random() < 0.5 else self._form)(local_id, photo)
                await pause(stop, self._wait)

    async def _index(self) -> None:
        photos = [
            {
                "local_id": local_id,
                "creation_time": f"{_DAY}T10:00:00Z",
                "file_extension": "jpg",
                "file_type": _TYPE,
            }
            for local_id in self._ids
        ]
        with self._tally.request("backup index"):
            answer = await self._post("/photos/index", json={"date": _DAY, "photos": photos})
            if len(answer["assigned_files"]) != len(photos):
                raise Wrong(f"{len(answer['assigned_files'])} names for {len(photos)} photos")

    async def _raw(self, local_id: str, photo: Photo) -> None:
        with self._tally.request("backup raw", photo.size):
            answer = await self._post(
                "/photos/upload/stream",
                params={"local_id": local_id, "file_type": _TYPE},
                data=photo,
                headers={"Content-Length": str(photo.size), "Repr-Digest": photo.repr_digest},
            )
            _check_size(answer, photo)

    async def _form(self, local_id: str, photo: Photo) -> None:
        form = aiohttp.FormData({"local_id": local_id, "file_type": _TYPE})
        form.add_field("file", photo.content, filename="IMG.JPG", content_type=_TYPE)
        with self._tally.request("backup form", photo.size):
            _check_size(await self._post("/photos/upload", data=form), photo)

    async def _post(
        self, path: str, *, headers: dict[str, str] | None = None, **request: Any
    ) -> dict[str, Any]:
        headers = {**self._headers, **(headers or {})}
        async with self._session.post(self._url + path, headers=headers, **request) as answer:
            if answer.status != 200:
                raise Wrong(f"{path}: {answer.status} {(await answer.text())[:200]}")
            value: dict[str, Any] = await answer.json()
            return value


def _check_size(answer: dict[str, Any], photo: Photo) -> None:
    if answer["size"] != photo.size:
        raise Wrong(f"{answer['size']} bytes stored instead of {photo.size}")


async def log_in(session: aiohttp.ClientSession, url: str, username: str, password: str) -> str:
    """A token of the photo backup; raises `Wrong`."""
    credentials = {"username": username, "password": password}
    async with session.post(f"{url}/login", json=credentials) as answer:
        if answer.status != 200:
            raise Wrong(f"the photo backup does not let {username} in: {answer.status}")
        return str((await answer.json())["token"])
