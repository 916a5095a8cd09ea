"""Names in a background upload: what the form that reaches Immich makes of them."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import quote_from_bytes

from python_multipart.multipart import parse_options_header

from bridge.test_form import by_hand
from raw_upload import KEY, ROUTE, assert_error
from torture.names_caller import Caller
from torture.names_ways import is_text, raw
from wire import Message, answer, request

_ASSET: Final = "ef96f635-61c7-4639-9e60-61a11c4bbfba"
CREATED: Final = answer(
    "201 Created",
    ("Content-Type", "application/json"),
    body=json.dumps({"id": _ASSET, "status": "created"}).encode(),
)
"""What an Immich that takes everything answers."""
_WORDS: Final = {
    "X-Filename": "filename",
    "X-Device-Asset-Id": "deviceAssetId",
    "X-Device-Id": "deviceId",
    "X-iCloud-Id": "iCloudId",
}
_FIELDS: Final = ("deviceAssetId", "deviceId", "fileCreatedAt", "fileModifiedAt", "isFavorite")
_MAX_FILENAME_BYTES: Final = 4096
_CONTROL: Final = re.compile(r"[\0-\x1f\x7f]")


@dataclass
class Forwarded:
    """Sends names to a bridge whose Immich puts what it gets into `seen`."""

    seen: list[Message]
    taken: int = 0
    refused: int = 0
    _names: dict[bytes, tuple[str, str | None]] = field(default_factory=dict)
    """Body -> the name, and the MIME type if the name was given for one."""

    async def in_headers(self, caller: Caller, name: str, number: int) -> None:
        """Send the name in every header that takes any text."""
        # What ends a header is no part of one; a query can hold it.
        if re.search(r"[\0\r\n]", name):
            await self.in_query(caller, name, number)
            return
        lines = b"".join(b"%b: %b\r\n" % (word.encode(), raw(name)) for word in _WORDS)
        # A lone surrogate's bytes are no UTF-8, and so each of them is a character.
        sent = name if is_text(name) else raw(name).decode("latin-1")
        await self._send(caller, sent.strip(" \t"), number, lines, b"")

    async def in_query(self, caller: Caller, name: str, number: int) -> None:
        """Send the name in every query parameter that takes any text."""
        value = quote_from_bytes(raw(name), safe="")
        query = "&".join(f"{parameter}={value}" for parameter in _WORDS.values())
        await self._send(caller, name, number, b"", b"?" + query.encode())

    async def as_type(self, caller: Caller, name: str, number: int) -> None:
        """Send the name as the MIME type."""
        value = quote_from_bytes(raw(name), safe="")
        answer = await self._ask(caller, number, b"", f"?contentType={value}".encode())
        if answer.status == 201:
            self.taken += 1
            self._names[_photo(number)] = "", name
        else:
            self.refused += 1
            assert answer.status in (400, 415)
            assert_error(
                answer,
                answer.status,
                {400: "bad_request", 415: "unsupported_media_type"}[answer.status],
            )

    def assert_forms_hold_just_the_names(self) -> None:
        """Look through all that Immich got."""
        assert len(self.seen) == self.taken
        for form in self.seen:
            _assert_one_name(form, self._names)

    async def _send(
        self, caller: Caller, name: str, number: int, lines: bytes, query: bytes
    ) -> None:
        type_line = b"X-Content-Type: image/jpeg\r\n"
        answer = await self._ask(caller, number, type_line + lines, query)
        last = re.split(r"[/\\]", name)[-1]
        too_long = len(raw(last)) > _MAX_FILENAME_BYTES
        if not is_text(name) or _CONTROL.search(name) or too_long:
            self.refused += 1
            assert_error(answer, 400, "bad_request")
        else:
            self.taken += 1
            assert answer.status == 201, (name, answer)
            self._names[_photo(number)] = name, None

    async def _ask(self, caller: Caller, number: int, lines: bytes, query: bytes) -> Message:
        body = _photo(number)
        head = request("POST", ROUTE, KEY, ("Content-Length", str(len(body))))
        target = f"POST {ROUTE} ".encode()
        head = head.replace(target, target[:-1] + query + b" ", 1).removesuffix(b"\r\n")
        return (await caller.ask(head, lines, b"\r\n", body)).message


def _photo(number: int) -> bytes:
    return b"\xff\xd8\xff the photo of name %d" % number


def _assert_one_name(form: Message, names: dict[bytes, tuple[str, str | None]]) -> None:
    content_type, options = parse_options_header(form.header("Content-Type"))
    assert content_type == b"multipart/form-data"
    *fields, (file_head, body) = by_hand(form.body, options[b"boundary"].decode())
    name, mime_type = names[body]
    values = {_only_name(head): value for head, value in fields}
    assert len(values) == len(fields)
    assert [*values] == [*_FIELDS, *(["metadata"] if name else [])]
    if name:
        assert values["deviceAssetId"] == values["deviceId"] == name.encode()
        [item] = json.loads(values["metadata"])
        assert item["value"]["iCloudId"] == name
    _assert_file_head(file_head, name, mime_type)


def _only_name(head: Sequence[bytes]) -> str:
    [line] = head
    match = re.fullmatch(rb'Content-Disposition: form-data; name="([A-Za-z]+)"', line)
    assert match is not None, head
    return match[1].decode()


def _assert_file_head(head: Sequence[bytes], name: str, mime_type: str | None) -> None:
    assert len(head) == 2, head
    lines = dict(line.split(b": ", 1) for line in head)
    kind, options = parse_options_header(lines[b"Content-Disposition"])
    assert kind == b"form-data"
    assert options.keys() == {b"name", b"filename"}
    assert options[b"name"] == b"assetData"
    # It reads header bytes as Latin-1, as WSGI has it.
    filename = options[b"filename"].decode()
    last = re.split(r"[/\\]", name)[-1]
    if last.strip():
        # An extension is added where Immich would know none.
        assert filename in (last, f"{last}.jpg")
    else:
        assert re.fullmatch(r"(IMG|VID)_\d{8}_\d{6}\.\w+", filename), filename
    written = lines[b"Content-Type"].decode()
    if mime_type is None:
        assert written == "image/jpeg"
    else:
        assert written == mime_type.partition(";")[0].strip().lower()
        assert re.fullmatch(r"[\w!#$&^.+-]+/[\w!#$&^.+-]+", written, re.ASCII)
