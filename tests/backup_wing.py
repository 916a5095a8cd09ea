"""The backup wing from outside: a client of its API, its settings, and a look into its file."""

import asyncio
import json
import sqlite3
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlencode

from immich_bridge.backup.accounts import User
from immich_bridge.serve import Server
from wire import Message, fetch

USERNAME = "admin"
PASSWORD = "SecurePassword123"
"""The user of the API document, and of the fixtures of `backup/conftest.py`."""

BOUNDARY = "a-boundary-that-no-photo-holds"

Header = tuple[str, str]
Part = tuple[str, str | bytes, str | None]
"""Name, content and, for a file, its name."""


class ServerProcess(Protocol):
    """A server as a process of its own."""

    process: asyncio.subprocess.Process
    url: str
    log: list[str]


StartBackup = Callable[..., Awaitable[Server]]
StartBackupProcess = Callable[..., Awaitable[ServerProcess]]
MakeUser = Callable[[str, str], Awaitable[User]]
Login = Callable[[Server, str, str], Awaitable[str]]
"""What the fixtures of the same names are."""


def settings_in(folder: Path) -> dict[str, str]:
    """Settings of a server that has everything in `folder` and lets anybody log in at any rate."""
    return {
        "BACKUP_ENABLED": "true",
        "IMMICH_SERVER_URL": "",
        "DB_PATH": str(folder / "data" / "app.db"),
        "STORAGE_DIR": str(folder / "storage"),
        "JWT_SECRET_PATH": str(folder / "data" / "jwt_secret.key"),
        "RATE_LIMIT_LOGIN": "0",
    }


def rows(database: str | Path, query: str, *parameters: object) -> list[dict[str, Any]]:
    """The result of a query, seen as another program that opens the file sees it."""
    with closing(sqlite3.connect(database, timeout=10)) as connection:
        connection.row_factory = sqlite3.Row
        result = [dict(row) for row in connection.execute(query, parameters)]
        connection.commit()
        return result


def photo(local_id: str = "IMG_1234", **fields: object) -> dict[str, object]:
    """A photo as a client announces it to `/photos/index`."""
    return {
        "local_id": local_id,
        "creation_time": "2025-12-10T10:00:00Z",
        "file_extension": "jpg",
        "file_type": "image/jpeg",
        **fields,
    }


def multipart(*parts: Part) -> tuple[Header, bytes]:
    """A form: its `Content-Type` and its body."""
    body = bytearray()
    for name, content, filename in parts:
        disposition = f'form-data; name="{name}"'
        if filename is not None:
            disposition += f'; filename="{filename}"'
        body += f"--{BOUNDARY}\r\nContent-Disposition: {disposition}\r\n\r\n".encode()
        body += content.encode() if isinstance(content, str) else content
        body += b"\r\n"
    body += f"--{BOUNDARY}--\r\n".encode()
    return ("Content-Type", f"multipart/form-data; boundary={BOUNDARY}"), bytes(body)


@dataclass(frozen=True)
class Answer:
    """An answer and the JSON in it."""

    message: Message

    @property
    def status(self) -> int:
        """The status code."""
        return self.message.status

    @property
    def json(self) -> Any:
        """The body, which has to be JSON and say so."""
        content_type = self.message.header("Content-Type") or ""
        assert content_type.partition(";")[0] == "application/json", self.message
        return json.loads(self.message.body)

    def header(self, name: str) -> str | None:
        """The only value of a header, or None."""
        return self.message.header(name)

    @property
    def error(self) -> tuple[int, str, str]:
        """Status, code and message of an error; it has no other members."""
        assert set(self.json) == {"error", "message"}, self.json
        return self.status, self.json["error"], self.json["message"]


class Api:
    """A client of the server at `url`; each call has a connection of its own."""

    def __init__(self, url: str, token: str | None = None) -> None:
        self.url = url
        self.token = token

    async def call(self, method: str, target: str, *headers: Header, body: bytes = b"") -> Answer:
        """Any request, with the token unless there is an `Authorization` among `headers`."""
        if self.token is not None and "authorization" not in {n.lower() for n, _ in headers}:
            headers = (("Authorization", f"Bearer {self.token}"), *headers)
        return Answer(await fetch(self.url, method, target, *headers, body=body))

    async def post_json(self, target: str, value: object, *headers: Header) -> Answer:
        """A POST of `value`; bytes are sent as they are."""
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        return await self.call(
            "POST", target, ("Content-Type", "application/json"), *headers, body=body
        )

    async def login(self, username: str, password: str) -> Answer:
        """`POST /login`; the token is not kept."""
        return await self.post_json("/login", {"username": username, "password": password})

    async def refresh(self) -> Answer:
        """`POST /refresh`; the new token is not kept."""
        return await self.post_json("/refresh", {})

    async def status(self) -> Answer:
        """`GET /status`."""
        return await self.call("GET", "/status")

    async def index(self, date: str, photos: Sequence[Mapping[str, object]]) -> Answer:
        """`POST /photos/index`."""
        return await self.post_json("/photos/index", {"date": date, "photos": photos})

    async def upload_form(
        self,
        fields: Mapping[str, str],
        file: bytes | None,
        *headers: Header,
        filename: str = "photo.jpg",
        file_first: bool = False,
    ) -> Answer:
        """`POST /photos/upload`, the file behind the fields unless `file_first`."""
        parts: list[Part] = [(name, value, None) for name, value in fields.items()]
        if file is not None:
            parts.insert(0 if file_first else len(parts), ("file", file, filename))
        content_type, body = multipart(*parts)
        return await self.call("POST", "/photos/upload", content_type, *headers, body=body)

    async def upload_stream(self, file: bytes, *headers: Header, **query: str) -> Answer:
        """`POST /photos/upload/stream?local_id=...&file_type=...`."""
        target = f"/photos/upload/stream?{urlencode(query)}"
        return await self.call("POST", target, *headers, body=file)

    async def upload_chunk(
        self, fields: Mapping[str, str], data: bytes | None, *headers: Header
    ) -> Answer:
        """`POST /photos/upload/chunk`: `local_id`, `file_type`, `chunk_number`, `total_chunks`."""
        parts: list[Part] = [(name, value, None) for name, value in fields.items()]
        if data is not None:
            parts.append(("chunk_data", data, "chunk"))
        content_type, body = multipart(*parts)
        return await self.call("POST", "/photos/upload/chunk", content_type, *headers, body=body)
