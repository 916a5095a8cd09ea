"""The upload forms of the recordings."""

from __future__ import annotations

BOUNDARY = b"----brX7f3"
END = b"--" + BOUNDARY + b"--\r\n"
DATE = "2026-11-21T03:00:00.000Z"
FIELDS = {
    "deviceAssetId": "d-7b0139bf",
    "deviceId": "rec",
    "fileCreatedAt": DATE,
    "fileModifiedAt": DATE,
    "isFavorite": "false",
}
# Any bytes do: the stand-in looks into no image. The lengths are those that were recorded.
JPEG = b"\xff\xd8\xff" + b"0123456789abcdef" * 568 + b"\xff\xd9" + b"." * 4
MOV = b"\0\0\0\x14ftypqt  " + b"0123456789abcdef" * 477 + b"." * 12


def field(name: str, value: str | bytes, header: str = "") -> bytes:
    extra = f"\r\n{header}" if header else ""
    start = f'Content-Disposition: form-data; name="{name}"{extra}\r\n\r\n'
    raw = value.encode() if isinstance(value, str) else value
    return b"--" + BOUNDARY + b"\r\n" + start.encode() + raw + b"\r\n"


def fields(values: dict[str, str]) -> bytes:
    return b"".join(field(name, value) for name, value in values.items())


def file_part(disposition: bytes, content_type: str | None, data: bytes) -> bytes:
    header = b"\r\nContent-Disposition: " + disposition
    if content_type is not None:
        header += b"\r\nContent-Type: " + content_type.encode()
    return b"--" + BOUNDARY + header + b"\r\n\r\n" + data + b"\r\n"


def named(filename: str | bytes, name: str = "assetData") -> bytes:
    raw = filename.encode() if isinstance(filename, str) else filename
    return b'form-data; name="' + name.encode() + b'"; filename="' + raw + b'"'


def jpeg_part(data: bytes = JPEG, filename: str = "IMG_0001.jpg") -> bytes:
    return file_part(named(filename), "image/jpeg", data)


def upload_form(data: bytes = JPEG, filename: str = "IMG_0001.jpg", **values: str) -> bytes:
    """A whole form; fields may be changed or added."""
    return fields(FIELDS | values) + jpeg_part(data, filename) + END


def jpeg(size: int) -> bytes:
    """A photo of that size that is not the usual one."""
    return (JPEG * (size // len(JPEG) + 1))[:size]
