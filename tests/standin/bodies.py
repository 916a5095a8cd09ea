"""The bodies of the recorded requests, put together again from their summaries.

A summary tells which fields, which file part, how many bytes. Where that leaves something open,
the case's name tells it, and the recorded Content-Length tells whether it was understood.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
from base64 import b64encode
from collections.abc import Callable
from typing import Any

from .forms import (
    DATE,
    END,
    FIELDS,
    JPEG,
    MOV,
    field,
    fields,
    file_part,
    jpeg,
    jpeg_part,
    named,
    upload_form,
)

Recording = dict[str, Any]
Known = dict[str, str]
"""The ids of the assets that earlier requests made, by the earlier recording's name."""

_SUMMARY = re.compile(
    r"fields (?P<fields>\[.*?\])(?: \+ extra)?; "
    r"file part (?P<part>.*?) (?P<type>\S+) (?P<size>\d+) bytes(?:; then (?P<then>b['\"].*['\"]))?",
    re.DOTALL,
)


def body(recording: Recording, known: Known) -> bytes:
    name, recorded = recording["name"], recording["request"]
    if name in BODIES:
        return BODIES[name](known)
    if recorded["method"] != "POST":
        return b"x" if name == "s.PUT-original" else b""
    summary = _SUMMARY.fullmatch(recorded["body_summary"])
    if summary is None:
        # What is not told is an ordinary upload of that size.
        length = dict(recorded["headers"]).get("Content-Length", "3009651")
        return upload_form(jpeg(int(length) - len(upload_form(b""))))
    values = FIELDS | _values(name)
    sent = {key: values[key] for key in ast.literal_eval(summary["fields"])}
    disposition = summary["part"]
    if disposition.startswith("filename="):
        disposition = named(disposition.removeprefix("filename=")).decode()
    content_type = None if summary["type"] == "None" else summary["type"]
    size = int(summary["size"])
    data = MOV if content_type == "video/quicktime" else jpeg(size)
    part = file_part(NAMES.get(name, disposition.encode()), content_type, data[:size])
    then = ast.literal_eval(summary["then"]) if summary["then"] else b""
    before = EXTRA[name](known) if name in EXTRA else b""
    after = b"epilogue text" if name == "h.epilogue" else b""
    if name == "h.preamble":
        return before + fields(sent) + part + then + END
    return fields(sent) + before + part + then + END + after


def _values(name: str) -> dict[str, str]:
    """The field values that a case's name tells."""
    told = re.match(r"n\.(isFavorite|visibility|duration)-(.*?)(?:-on-jpg)?$", name)
    if told is not None:
        return {told[1]: "" if told[2] == "empty" else told[2]}
    if name.startswith("o.fileCreatedAt="):
        date = name.removeprefix("o.fileCreatedAt=")
        return {"fileCreatedAt": "" if date == "empty" else date}
    return VALUES.get(name, {})


VALUES = {
    "b.duplicate-different-name-and-dates": {
        "deviceAssetId": "d-other",
        "fileCreatedAt": "2001-01-01T00:00:00.000Z",
        "fileModifiedAt": "2001-01-01T00:00:00.000Z",
        "isFavorite": "true",
    },
    "f.empty-deviceAssetId": {"deviceAssetId": ""},
    "f.unknown-field": {"foo": "bar"},
    "x.created-later-than-modified": {"fileModifiedAt": "2020-01-01T00:00:00.000Z"},
    "x.tz-offset-after-extraction": {
        "fileCreatedAt": "2024-06-01T10:00:00.000+08:00",
        "fileModifiedAt": "2024-06-01T10:00:00.000+08:00",
    },
    "x.deviceAssetId-NUL": {"deviceAssetId": "a\0b"},
    "x.deviceId-NUL": {"deviceId": "a\0b"},
}

# Names that a summary cannot show, being text.
NAMES = {
    "j.raw-latin1": named("café.heic".encode("latin-1")),
    "j.raw-gbk": named("照片.heic".encode("gbk")),
}

ITEM = '{"key":"mobile-app","value":{"iCloudId":"x"}}'


def _value_item(text: str) -> str:
    return f'[{{"key":"mobile-app","value":{{"a":"{text}"}}}}]'


METADATA = {
    "k.mobile-app": f"[{ITEM}]",
    "k.yaiiu-app": '[{"key":"yaiiu-app","value":{"v":1}}]',
    "k.malformed": "not json",
    "k.empty-string": "",
    "k.empty-list": "[]",
    "k.object-not-list": ITEM,
    "k.value-string": '[{"key":"mobile-app","value":"str"}]',
    "k.value-missing": '[{"key":"mobile-app"}]',
    "k.null": "null",
    "k.extra-key": f'[{ITEM[:-1]},"x":1}}]',
    "k.two-same-key": f"[{ITEM},{ITEM}]",
    "k.with-utf8": _value_item("照片"),
    "x.metadata-two-same-key-aftermath": f"[{ITEM},{ITEM}]",
    "x.metadata-u0000": _value_item("\\u0000"),
    "x.metadata-lone-surrogate": _value_item("\\ud800"),
    "x.metadata-key-empty": '[{"key":"","value":{"a":"1"}}]',
    "x.metadata-two-different-keys": f'[{ITEM},{{"key":"yaiiu-app","value":{{"v":1}}}}]',
    "x.metadata-900KB": _value_item("x" * 900_000),
}
FILENAMES = {
    "i.filename-field-before-file": "BEFORE.jpg",
    "i.filename-field-before-differs-ext-heic": "BEFORE.heic",
    "i.filename-field-before-valid-part-txt": "BEFORE.jpg",
    "i.filename-field-before-txt-part-jpg": "BEFORE.txt",
    "i.filename-field-before-valid-part-noext-blob": "BEFORE.jpg",
    "i.filename-field-before-mov-for-jpeg-bytes": "BEFORE.mov",
    "i.filename-field-empty": "",
    "j.filename-field-utf8": "照片 é.HEIC",
    "j.filename-field-slash-path": "dir/sub/y.jpg",
    "j.filename-field-NUL": "a\0b.jpg",
    "x.nul-in-filename-aftermath": "a\0b.jpg",
}
LIVE_VIDEOS: dict[str, Callable[[Known], str]] = {
    "n.live-photo": lambda known: known["n.live-video"],
    "n.live-photo-of-timeline-video": lambda known: known["n.live-video-timeline"],
    "n.livePhotoVideoId-is-image": lambda known: known["n.plain-for-live"],
    "n.livePhotoVideoId-unknown": lambda _: "2927343e-ee6d-4d2c-8360-fbde38797268",
    "n.livePhotoVideoId-not-uuid": lambda _: "abc",
    "n.livePhotoVideoId-empty": lambda _: "",
    "n.livePhotoVideoId-undefined-string": lambda _: "undefined",
}
SIDECAR = b'<?xpacket?><x:xmpmeta xmlns:x="adobe:ns:meta/"/>'

Built = Callable[[Known], bytes]


def _fixed(data: bytes) -> Built:
    return lambda _: data


def _live_video(video: Callable[[Known], str]) -> Built:
    return lambda known: field("livePhotoVideoId", video(known))


def _extra() -> dict[str, Built]:
    """What stands between the fields and the file."""
    extra = {
        "f.duplicate-field-fileCreatedAt": _fixed(field("fileCreatedAt", DATE)),
        "f.sidecar-before-asset": _fixed(
            file_part(named("IMG_0001.jpg.xmp", "sidecarData"), "application/xml", SIDECAR)
        ),
        "h.preamble": _fixed(b"This is a preamble\r\n"),
        "h.field-with-content-type-json": _fixed(
            field("metadata", "[]", "Content-Type: application/json")
        ),
        "h.field-with-content-type-text-utf8": _fixed(
            field("filename", "照片.jpg", "Content-Type: text/plain; charset=utf-8")
        ),
        "h.field-900KB": _fixed(field("foo", "x" * 900_000)),
        "h.field-1.1MB": _fixed(field("foo", "x" * 1_100_000)),
        "h.field-name-101-bytes": _fixed(field("n" * 101, "v")),
        "h.fieldname-bracket-proto": _fixed(field("a[__proto__]", "x")),
        "h.1100-fields": _fixed(b"".join(field(f"f{n}", "v") for n in range(1100))),
        "n.live-video": _fixed(field("visibility", "hidden")),
    }
    for name, metadata in METADATA.items():
        extra[name] = _fixed(field("metadata", metadata))
    for name, filename in FILENAMES.items():
        extra[name] = _fixed(field("filename", filename))
    for name, video in LIVE_VIDEOS.items():
        extra[name] = _live_video(video)
    return extra


EXTRA = _extra()


def _with_extra(name: str) -> Built:
    """An upload whose summary is empty, with the extra field its name tells."""
    return lambda known: fields(FIELDS) + EXTRA[name](known) + jpeg_part() + END


def _fields_around(count: int) -> bytes:
    """The file after so many of the fields."""
    items = list(FIELDS.items())
    return fields(dict(items[:count])) + jpeg_part() + fields(dict(items[count:])) + END


def _dart() -> bytes:
    """The shape of Dart's MultipartRequest: lower-case headers, the Content-Type first."""
    delimiter = b"--dart-http-boundary-abc"
    body = b""
    for name, value in FIELDS.items():
        text = f'content-disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
        body += delimiter + b"\r\n" + text.encode()
    disposition = b"content-disposition: " + named("照片 é.HEIC")
    head = b"\r\ncontent-type: application/octet-stream\r\n" + disposition + b"\r\n\r\n"
    return body + delimiter + head + JPEG + b"\r\n" + delimiter + b"--\r\n"


def _long_header(count: int) -> Built:
    disposition = named("IMG_0001.jpg") + b"\r\nX-Long: " + b"a" * count
    return lambda _: fields(FIELDS) + file_part(disposition, "image/jpeg", JPEG) + END


def _second(data: bytes) -> Built:
    second = jpeg_part(data, "second.jpg")
    return lambda _: fields(FIELDS) + jpeg_part() + second + END


def _checksums(_: Known) -> bytes:
    digest = hashlib.sha1(JPEG).digest()
    checksums = {"x": digest.hex(), "y": b64encode(digest).decode(), "z": "0" * 40}
    assets = [{"id": key, "checksum": checksum} for key, checksum in checksums.items()]
    return json.dumps({"assets": assets}).encode()


WHOLE = upload_form()
DART = _dart()
BODIES: dict[str, Built] = {
    "c.bulk-upload-check": _checksums,
    "c.checksum-existing-nonmultipart-body": lambda _: b"{}",
    "f.no-assetData": lambda _: fields(FIELDS) + END,
    "f.assetData-as-text-field": lambda _: fields(FIELDS | {"assetData": "hello"}) + END,
    "f.two-assetData": _second(JPEG),
    "f.two-assetData-2MB-pause": _second(jpeg(2_009_097)),
    "f.json-body": lambda _: json.dumps(FIELDS).encode(),
    "f.raw-body": lambda _: JPEG,
    "f.raw-body-2MB-pause-before-body": lambda _: jpeg(2_009_097),
    "f.multipart-no-boundary-2MB-pause": lambda _: jpeg(2_009_097),
    "f.no-content-type": lambda _: JPEG,
    "f.no-body-CL0": lambda _: b"",
    "f.urlencoded": lambda _: b"a=b",
    "h.chunked-and-content-length": lambda _: WHOLE,
    "h.content-length-too-long-by-10-then-halfclose": lambda _: WHOLE,
    "h.content-length-too-short-by-2": lambda _: WHOLE,
    "h.LF-only": lambda _: upload_form(b"abc").replace(b"\r\n", b"\n"),
    "h.no-crlf-after-final-boundary": lambda _: WHOLE[:-2],
    "h.part-header-16KB": _long_header(15_000),
    "h.part-header-20KB": _long_header(20_000),
    "i.all-fields-after-file": lambda _: _fields_around(0),
    "i.file-between": lambda _: _fields_around(2),
    "l.chunked-closing-boundary-sent-final-chunk-withheld": lambda _: WHOLE,
    "l.content-length-1000-larger-than-multipart": lambda _: WHOLE,
    "m.no-closing-boundary": lambda _: WHOLE[: -len(END)],
    "m.no-closing-boundary-no-crlf": lambda _: WHOLE[: -len(END) - 2],
    "m.no-closing-boundary-chunked": lambda _: WHOLE[: -len(END)],
    "m.half-closing-boundary": lambda _: WHOLE[:-6],
    "m.closing-boundary-missing-dashes": lambda _: WHOLE[:-4] + b"\r\n",
    "m.headers-only-no-body-of-file": lambda _: upload_form(b"")[: -len(END) - 2],
    "m.garbage": lambda _: b"garbage " * 125,
    "s.upload-for-media": lambda _: upload_form(filename="照片 é.jpg"),
    "s.exist-v2": lambda _: b'{"deviceId":"rec","deviceAssetIds":["nope"]}',
    "s.json-11MB": lambda _: b'{"assets":[],"pad":"' + b"x" * (11_000_020 - 22) + b'"}',
    "s.json-malformed": lambda _: b'{"assets":[',
    "x.dart-http-shape": lambda _: DART,
    "x.deviceAssetId-utf8-invalid": lambda _: (
        field("deviceAssetId", b"\xff\xfe")
        + fields({key: value for key, value in FIELDS.items() if key != "deviceAssetId"})
        + jpeg_part()
        + END
    ),
    **{name: _with_extra(name) for name in [*METADATA, *FILENAMES] if name.startswith("x.")},
    "x.chunk-ext-and-trailers": lambda _: WHOLE,
    "x.early-401-then-client-idle": lambda _: upload_form(jpeg(2_000_000)),
}
