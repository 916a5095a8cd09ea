"""The ways in which a client's words come into the photo backup, and what has to become of them."""

import json
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import quote_from_bytes

from backup_uploads import DAY
from backup_wing import BOUNDARY, Answer, photo
from torture.names_caller import Caller
from wire import request

MAX_LOCAL_ID: Final = 512
_MAX_TYPE: Final = 255
_STORED: Final = re.compile(r"storage/photo/1/2025/12/10/IMG_\d{4,}\.[a-z0-9]{1,10}")
_ERRORS: Final = {400: "bad_request", 401: "unauthorized"}

Way = Callable[[Caller, str, int], Awaitable[None]]
"""Brings a name in; the number tells it from others. Asserts what comes back."""


def raw(name: str) -> bytes:
    """The bytes of a name; a lone surrogate has those that it would have."""
    return name.encode("utf-8", "surrogatepass")


def is_text(name: str) -> bool:
    """Whether a name can be written in UTF-8."""
    return not any("\ud800" <= character <= "\udfff" for character in name)


def is_local_id(name: str) -> bool:
    """Whether a photo can be indexed under that id."""
    return is_text(name) and "\0" not in name and len(name) <= MAX_LOCAL_ID


def assert_refused(answer: Answer, status: int = 400) -> None:
    """An error of ours, in JSON, that is the client's fault."""
    assert answer.error[:2] == (status, _ERRORS[status]), answer


@dataclass
class Ways:
    """The ways of user 1, to whom `token` belongs."""

    token: str
    stored: dict[str, bytes] = field(default_factory=dict)
    """What was answered with 200: the path that was named, and the bytes that were sent."""
    indexed: dict[str, str] = field(default_factory=dict)
    """Local id -> the file name that it was given."""

    def all(self) -> Mapping[str, Way]:
        """Every way for names; each name has been given to `index_all` before."""
        return {
            "form": self._form,
            "raw": self._raw,
            "chunk": self._chunk,
            "type of a form": self._form_type,
            "type in a query": self._raw_type,
            "type at the index": self._indexed_type,
            "extension": self._extension,
            "time": self._time,
            "date": self._date,
            "login": self._login,
        }

    async def index_all(self, caller: Caller, local_ids: list[str]) -> None:
        """Index photos under all those ids, and have each come back as it was given."""
        answer = await self._index(caller, *(photo(local_id) for local_id in local_ids))
        assert answer.status == 200, answer
        files = answer.json["assigned_files"]
        assert [file["local_id"] for file in files] == local_ids
        self.indexed |= {file["local_id"]: file["filename"] for file in files}

    async def refuse_id(self, caller: Caller, local_id: str) -> None:
        """Have an id refused at the index that no photo can have."""
        assert_refused(await self._index(caller, photo(local_id)))

    async def _form(self, caller: Caller, name: str, number: int) -> None:
        fields = {"local_id": raw(name), "file_type": b"image/jpeg"}
        await self._upload(caller, name, number, self._form_request("", fields, name, number))

    async def _raw(self, caller: Caller, name: str, number: int) -> None:
        query = f"local_id={quote_from_bytes(raw(name), safe='')}&file_type=jpg"
        await self._upload(caller, name, number, self._raw_request(query, number))

    async def _chunk(self, caller: Caller, name: str, number: int) -> None:
        fields = {
            "local_id": raw(name),
            "file_type": b"jpg",
            "upload_id": raw(name),
            "chunk_number": b"0",
            "total_chunks": b"1",
        }
        await self._upload(caller, name, number, self._form_request("/chunk", fields, "x", number))

    async def _form_type(self, caller: Caller, name: str, number: int) -> None:
        local_id = await self._fresh(caller, number)
        fields = {"local_id": local_id.encode(), "file_type": raw(name)}
        answer = await caller.ask(self._form_request("", fields, "x.jpg", number))
        self._stored_or_refused(answer, local_id, number)

    async def _raw_type(self, caller: Caller, name: str, number: int) -> None:
        local_id = await self._fresh(caller, number)
        query = f"file_type={quote_from_bytes(raw(name), safe='')}&local_id={local_id}"
        self._stored_or_refused(
            await caller.ask(self._raw_request(query, number)), local_id, number
        )

    async def _indexed_type(self, caller: Caller, name: str, number: int) -> None:
        answer = await self._index(caller, photo(_own_id(number), file_type=name))
        if not is_text(name) or "\0" in name or len(name) > _MAX_TYPE:
            assert_refused(answer)
            return
        # The type that was indexed, whatever it says, is that of the file with that extension.
        [file] = answer.json["assigned_files"]
        fields = {"local_id": _own_id(number).encode(), "file_type": raw(name)}
        uploaded = await caller.ask(self._form_request("", fields, "x", number))
        self._stored_or_refused(uploaded, _own_id(number), number)
        if not re.fullmatch(r"\.?[A-Za-z0-9]{1,10}", name):  # which would name another extension
            assert uploaded.json["filename"] == file["filename"]

    async def _extension(self, caller: Caller, name: str, number: int) -> None:
        answer = await self._index(caller, photo(_own_id(number), file_extension=name))
        if answer.status != 200:
            assert_refused(answer)
            return
        [file] = answer.json["assigned_files"]
        extension = re.fullmatch(r"IMG_\d{4,}\.([a-z0-9]{1,10})", file["filename"])
        assert extension is not None, file
        assert name.lower() in (extension[1], f".{extension[1]}")

    async def _time(self, caller: Caller, name: str, number: int) -> None:
        answer = await self._index(caller, photo(_own_id(number), creation_time=name))
        if answer.status != 200:  # Python reads many a digit as a time
            assert_refused(answer)

    async def _date(self, caller: Caller, name: str, number: int) -> None:
        assert_refused(await self._index(caller, photo(_own_id(number)), date=name))

    async def _login(self, caller: Caller, name: str, number: int) -> None:
        credentials = {"username": name, "password": name}
        assert_refused(
            await caller.ask(self._json_request("/login", credentials)),
            401 if is_text(name) else 400,
        )

    async def _fresh(self, caller: Caller, number: int) -> str:
        """The id of a photo that is there and has no file."""
        await self.index_all(caller, [_own_id(number)])
        return _own_id(number)

    async def _upload(self, caller: Caller, name: str, number: int, message: bytes) -> None:
        """Send a file under the id `name`; what cannot have been indexed is refused."""
        answer = await caller.ask(message)
        if is_local_id(name):
            # A file name that no header can hold makes the form none.
            if answer.status == 400 and re.search(r"[\0-\x08\n-\x1f\x7f]", name):
                return
            self._stored_or_refused(answer, name, number)
            assert answer.json["filename"] == self.indexed[name]
        elif is_text(name):
            # Clients of the API match this status and text.
            assert answer.error in (
                (500, "internal_error", "photo not found"),
                (400, "bad_request", answer.json["message"]),
            )
        else:
            assert_refused(answer)

    def _stored_or_refused(self, answer: Answer, local_id: str, number: int) -> None:
        if answer.status != 200:
            assert_refused(answer)
            return
        assert answer.json["local_id"] == local_id
        path = answer.json["file_path"]
        assert _STORED.fullmatch(path), answer
        assert path not in self.stored, "two photos have one place"
        self.stored[path] = _content(number)

    async def _index(
        self, caller: Caller, *photos: Mapping[str, object], date: str = DAY
    ) -> Answer:
        return await caller.ask(
            self._json_request("/photos/index", {"date": date, "photos": photos})
        )

    def _json_request(self, target: str, value: Any) -> bytes:
        return self._request(target, "application/json", json.dumps(value).encode())

    def _raw_request(self, query: str, number: int) -> bytes:
        return self._request(f"/photos/upload/stream?{query}", "image/jpeg", _content(number))

    def _form_request(
        self, route: str, fields: Mapping[str, bytes], filename: str, number: int
    ) -> bytes:
        quoted = raw(filename).replace(b"\\", b"\\\\").replace(b'"', b'\\"')
        disposition = b'Content-Disposition: form-data; name="%b"'
        delimiter = f"--{BOUNDARY}\r\n".encode()
        body = b"".join(
            delimiter + disposition % field.encode() + b"\r\n\r\n" + value + b"\r\n"
            for field, value in fields.items()
        )
        name = b"chunk_data" if route else b"file"
        body += delimiter + disposition % name + b'; filename="' + quoted + b'"\r\n\r\n'
        body += _content(number) + f"\r\n--{BOUNDARY}--\r\n".encode()
        return self._request(
            f"/photos/upload{route}", f"multipart/form-data; boundary={BOUNDARY}", body
        )

    def _request(self, target: str, content_type: str, body: bytes) -> bytes:
        return request(
            "POST",
            target,
            ("Authorization", f"Bearer {self.token}"),
            ("Content-Type", content_type),
            body=body,
        )


def _own_id(number: int) -> str:
    """The id of a photo that only this name's turn is about."""
    return f"photo-of-name-{number}"


def _content(number: int) -> bytes:
    return b"the photo of name %d" % number
