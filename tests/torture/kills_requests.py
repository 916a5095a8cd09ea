"""The requests under which a server is killed: each knows what it needs, sends, and promises."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from functools import partial
from typing import Final, Protocol

from backup_uploads import ROUTES, Route, pattern, upload
from backup_wing import PASSWORD, USERNAME, Answer, Api, photo
from torture.kills_library import CREATION_TIME, Library

DAY: Final = "2025-12-10"
LARGE: Final = 2_500_000
"""More than is gathered before it is written: this photo takes several writes."""
CHUNKS: Final = 3


MakeRequest = Callable[[], "Request"]


class Refused(Exception):
    """An answer other than 200."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer)
        self.answer = answer


class Request(Protocol):
    """One request whose server may die of it."""

    @property
    def route(self) -> str:
        """By which the kills are counted."""

    async def prepare(self, library: Library) -> None:
        """Do what has to be done before, with no fault about."""

    async def send(self, library: Library) -> None:
        """Send it; raises when there is no answer. Tells `library` what may be and what is."""

    async def finish(self, library: Library) -> None:
        """Send it again to a server that lives."""


@dataclass
class Upload:
    """An upload of a whole photo by form or raw, or of all its chunks of which one is struck."""

    route: Route
    size: int = 5000
    replaces: bool = False
    """Whether another version of the photo is there."""
    extension: str = "jpg"
    """Other than that of the index: a second file of the photo, beside the first."""
    new_day: bool = False
    chunk: int = CHUNKS - 1
    """Which chunk is struck; the ones before it were confirmed."""
    _local_id: str = field(init=False)
    _file: str = field(init=False)
    _content: bytes = field(init=False)

    async def prepare(self, library: Library) -> None:
        """Index the photo, store the version before, send the chunks before."""
        self._local_id = library.new_name()
        day = _new_day(library) if self.new_day else DAY
        await _index(library, day, [self._local_id])
        place = library.names[self._local_id]
        if self.replaces or self.extension != "jpg":
            before = pattern(self.size + 1000, library.made)
            await self._store(library, before, f"{place}.jpg", "image/jpeg")
        self._file = f"{place}.{self.extension}"
        self._content = pattern(self.size, library.made + (1 << 20))
        if self.route == "chunk":
            for number in range(self.chunk):
                await self._send_chunk(library.api, number)

    async def send(self, library: Library) -> None:
        """Send it, and whatever chunks are left."""
        library.doubt(self._file, self._content)
        if self.route == "chunk":
            # All of them at the last one, or before: they may be there from the first attempt.
            pieces = [await self._send_chunk(library.api, n) for n in range(self.chunk, CHUNKS)]
            assert pieces[-1], "chunks that were confirmed are gone"
            library.confirm(self._file, self._content)
        else:
            await self._store(library, self._content, self._file, f"image/{self.extension}")

    async def finish(self, library: Library) -> None:
        """Send it again; as chunks then another version, those first of which none is left."""
        await self.send(library)
        if self.route == "chunk":
            left = {path.name[0] for path in library.storage.glob("photo/.chunks/1/*/?-*")}
            self._content = pattern(self.size, library.made + (1 << 21))
            order = sorted(range(CHUNKS), key=lambda number: str(number) in left)
            pieces = [await self._send_chunk(library.api, number) for number in order]
            assert pieces == [False] * (CHUNKS - 1) + [True], "chunks of two versions"
            library.confirm(self._file, self._content)

    async def _store(self, library: Library, content: bytes, file: str, file_type: str) -> None:
        route = "raw" if self.route == "chunk" else self.route
        api = library.api
        answer = await upload(api, route, content, local_id=self._local_id, file_type=file_type)
        _require_200(answer)
        library.confirm(file, content)

    async def _send_chunk(self, api: Api, number: int) -> bool:
        fields = {"local_id": self._local_id, "file_type": self.extension}
        fields |= {"chunk_number": str(number), "total_chunks": str(CHUNKS)}
        length = -(-len(self._content) // CHUNKS)
        piece = self._content[number * length : (number + 1) * length]
        answer = await api.upload_chunk(fields, piece)
        _require_200(answer)
        return bool(answer.json["complete"])


@dataclass
class Batch:
    """A batch of photos that are indexed."""

    size: int = 4
    new_day: bool = False
    known: int = 0
    """How many of them are known already."""
    route: str = field(default="index", init=False)
    _day: str = field(init=False)
    _local_ids: list[str] = field(init=False)

    async def prepare(self, library: Library) -> None:
        """Index those that are to be known."""
        self._day = _new_day(library) if self.new_day else DAY
        self._local_ids = [library.new_name() for _ in range(self.size)]
        if self.known:
            await _index(library, self._day, self._local_ids[: self.known])

    async def send(self, library: Library) -> None:
        """Index all of them, again those that were."""
        new = tuple(self._local_ids[self.known :])
        library.may_be_indexed.append((self._day, new))
        await _index(library, self._day, self._local_ids)

    async def finish(self, library: Library) -> None:
        """Index them again."""
        await self.send(library)


@dataclass
class Login:
    """A login, or a token that is swapped for a new one."""

    refresh: bool = False
    route: str = field(default="login", init=False)

    async def prepare(self, library: Library) -> None:
        """Nothing has to be done before."""

    async def send(self, library: Library) -> None:
        """Get a token, which is the library's from now on."""
        api = library.api
        answer = await (api.refresh() if self.refresh else api.login(USERNAME, PASSWORD))
        _require_200(answer)
        library.token = answer.json["token"]

    async def finish(self, library: Library) -> None:
        """Log in anew: a swap without a 200 may have been made all the same, after a crash."""
        self.refresh = False
        await self.send(library)


def kinds_of_requests() -> dict[str, MakeRequest]:
    """Every kind of request that writes, by its name."""
    kinds: dict[str, MakeRequest] = {
        "index": Batch,
        "index, first of its day": partial(Batch, new_day=True),
        "index, half known": partial(Batch, known=2),
        "index, long": partial(Batch, size=200),
    }
    for route in ROUTES:
        kinds |= {
            f"{route}, new": partial(Upload, route),
            f"{route}, first of its day": partial(Upload, route, new_day=True),
            f"{route}, replaced": partial(Upload, route, replaces=True),
            f"{route}, second format": partial(Upload, route, extension="heic"),
            f"{route}, large": partial(Upload, route, LARGE, replaces=True),
        }
    kinds["chunk, first"] = partial(Upload, "chunk", chunk=0)
    return kinds


def _require_200(answer: Answer) -> None:
    if answer.status != 200:
        raise Refused(answer)


def _new_day(library: Library) -> str:
    library.made += 1
    return (date(2000, 1, 1) + timedelta(days=library.made)).isoformat()


async def _index(library: Library, day: str, local_ids: Sequence[str]) -> None:
    photos = [photo(local_id, creation_time=CREATION_TIME) for local_id in local_ids]
    answer = await library.api.index(day, photos)
    _require_200(answer)
    folder = f"photo/1/{day.replace('-', '/')}/"
    for local_id, file in zip(local_ids, answer.json["assigned_files"], strict=True):
        name = folder + file["filename"].removesuffix(".jpg")
        assert library.names.setdefault(local_id, name) == name, "a photo was given two names"
