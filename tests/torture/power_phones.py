"""Phones that back up photos while a log is written, each one request after the other."""

import asyncio
import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any, Final

from backup_uploads import Route, upload
from backup_wing import PASSWORD, USERNAME, Answer, Api, photo

DAYS: Final = (date(2025, 12, 10), date(2025, 12, 11))
EXTENSIONS: Final = ("jpg", "heic", "mov")
SHARED: Final = "shared/L0/001"
"""The photo that several phones send."""
_SMALL: Final = range(100, 30_000)
_LARGE: Final = range(1_100_000, 1_200_000)
"""Too large to be held in memory until it is whole."""

FileKey = tuple[str, str]
"""A file as its clients name it: local id and extension."""


@dataclass(eq=False)
class Step:
    """A request, and its answer in the recording. `began` and `ended` are hours of one clock."""

    id: str
    began: int = 0
    ended: int = 0
    answer: Any = None

    async def send(self, api: Api) -> Answer:
        """Send the request, also for a second time."""
        raise NotImplementedError

    @property
    def request_id(self) -> tuple[str, str]:
        """The header by which its answer is found in the log."""
        return "X-Request-Id", self.id


@dataclass(eq=False)
class Login(Step):
    """A login; its token is that of all phones."""

    async def send(self, api: Api) -> Answer:
        """Log in; `api` has the token from then on."""
        credentials = {"username": USERNAME, "password": PASSWORD}
        answer = await api.post_json("/login", credentials, self.request_id)
        api.token = answer.json["token"]
        return answer


@dataclass(eq=False)
class Index(Step):
    """The photos of a day get their names."""

    day: date = DAYS[0]
    local_ids: Sequence[str] = ()

    async def send(self, api: Api) -> Answer:
        """Index them."""
        batch = {"date": f"{self.day}", "photos": [photo(local_id) for local_id in self.local_ids]}
        return await api.post_json("/photos/index", batch, self.request_id)

    def names(self) -> dict[str, str]:
        """Local id -> the name that it got in the recording."""
        return {file["local_id"]: file["filename"] for file in self.answer["assigned_files"]}


@dataclass(eq=False)
class Version:
    """What one upload wants a file to be. `steps` are the requests that bring it, in order."""

    key: FileKey
    content: bytes
    abandoned: bool = False
    """Whether it stops before its last chunk."""
    steps: list[Step] = field(default_factory=list)


@dataclass(eq=False)
class Whole(Step):
    """A photo in one request."""

    version: Version = field(kw_only=True)
    route: Route = "raw"

    async def send(self, api: Api) -> Answer:
        """Upload it."""
        local_id, extension = self.version.key
        return await upload(
            api,
            self.route,
            self.version.content,
            self.request_id,
            local_id=local_id,
            file_type=extension,
        )


@dataclass(eq=False)
class Chunk(Step):
    """One chunk of a photo."""

    version: Version = field(kw_only=True)
    number: int = 0
    total: int = 1

    @property
    def data(self) -> bytes:
        """Its bytes."""
        content = self.version.content
        cut = [len(content) * n // self.total for n in range(self.total + 1)]
        return content[cut[self.number] : cut[self.number + 1]]

    async def send(self, api: Api) -> Answer:
        """Upload it."""
        local_id, extension = self.version.key
        fields = {"local_id": local_id, "file_type": extension}
        fields |= {"chunk_number": str(self.number), "total_chunks": str(self.total)}
        return await api.upload_chunk(fields, self.data, self.request_id)


@dataclass
class Phone:
    """A client; its next request waits for the answer to the one before."""

    steps: list[Step]

    async def run(self, api: Api, steps: Sequence[Step], clock: Iterator[int]) -> None:
        """Send `steps`, all of which have to be answered with 200."""
        for step in steps:
            step.began = next(clock)
            answer = await step.send(api)
            step.ended = next(clock)
            assert answer.status == 200, answer
            step.answer = answer.json


class Household:
    """Phones that share an account, and what they send; the same for the same chance."""

    def __init__(self, chance: random.Random, *, phones: int, uploads: int, crowd: int = 0) -> None:
        self._chance = chance
        self._ids = itertools.count()
        self._sizes = iter(chance.sample(_SMALL, phones * (uploads + 4)))
        self._large = iter(_LARGE)
        self.versions: list[Version] = []
        self.login = Login(self._id())
        self.first = Phone([self.login, Index(self._id(), day=DAYS[0], local_ids=[SHARED])])
        others = [Phone(list(self._plan(number, uploads))) for number in range(phones)]
        if crowd:
            # So many rows that SQLite has to move what its log holds into the database.
            ids = [f"crowd {number:05} {'-' * 400}" for number in range(crowd)]
            others.append(Phone([Index(self._id(), day=DAYS[1], local_ids=ids)]))
        self.phones = [self.first, *others]

    @property
    def steps(self) -> list[Step]:
        """Everything that is sent."""
        return [step for phone in self.phones for step in phone.steps]

    async def run(self, api: Api, part: int, parts: int) -> None:
        """Everybody at once does one part of what they have to do."""
        clock = itertools.count(part * 1_000_000)
        if part == 0:
            await self.first.run(api, self.first.steps, clock)
        async with asyncio.TaskGroup() as running:
            for phone in self.phones[1:]:
                cut = [len(phone.steps) * n // parts for n in range(parts + 1)]
                running.create_task(phone.run(api, phone.steps[cut[part] : cut[part + 1]], clock))

    def _plan(self, phone: int, uploads: int) -> Iterator[Step]:
        day = DAYS[phone % 3 == 2]
        local_ids = [f"phone{phone}/{number:03}" for number in range(max(1, uploads // 3))]
        yield Index(self._id(), day=day, local_ids=local_ids)
        keys = [(local_id, extension) for local_id in local_ids for extension in EXTENSIONS]
        if phone % 2:
            for _ in range(2):  # the second takes the place of the first
                yield from self._chunks((local_ids[0], "jpg"), total=3)
        else:
            yield self._whole((local_ids[0], "jpg"), size=next(self._large) if not phone else None)
            yield self._whole((local_ids[0], "jpg"))
            yield self._whole((SHARED, "jpg"))
        for _ in range(uploads - 3):
            key = (SHARED, "jpg") if self._chance.random() < 0.15 else self._chance.choice(keys)
            if key[0] == SHARED or self._chance.random() < 0.7:
                yield self._whole(key)
            else:
                yield from self._chunks(key, total=self._chance.randint(2, 4))
        new = [f"phone{phone}/{number:03}" for number in range(900, 903)]
        yield Index(self._id(), day=day, local_ids=[*local_ids, *new])

    def _whole(self, key: FileKey, size: int | None = None) -> Step:
        version = self._version(key, size)
        step = Whole(self._id(), version=version, route=self._chance.choice(("form", "raw")))
        version.steps.append(step)
        return step

    def _chunks(self, key: FileKey, total: int) -> Iterator[Step]:
        numbers = self._chance.sample(range(total), total)
        if self._chance.random() < 0.3:
            # One that is given up for another version, which begins with the same chunk.
            yield from self._set(self._version(key, abandoned=True), numbers[:1], total)
        yield from self._set(self._version(key), numbers, total)

    def _set(self, version: Version, numbers: Sequence[int], total: int) -> Iterator[Step]:
        version.steps += [
            Chunk(self._id(), version=version, number=number, total=total) for number in numbers
        ]
        yield from version.steps

    def _version(
        self, key: FileKey, size: int | None = None, *, abandoned: bool = False
    ) -> Version:
        content = self._chance.randbytes(size or next(self._sizes))
        version = Version(key, content, abandoned)
        self.versions.append(version)
        return version

    def _id(self) -> str:
        return f"step-{next(self._ids)}"
