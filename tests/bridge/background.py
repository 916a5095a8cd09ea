"""A background upload as a test writes it down."""

from wire import Message, fetch, request

ROUTE = "/api/assets/background"
KEY = ("x-api-key", "standin-key")
NAMED = ("X-Filename", "IMG_0001.JPG")
JPEG = b"\xff\xd8\xff\xe0\x00\x10JFIF"


def photo(size: int = 100_000) -> bytes:
    """Bytes that begin as a JPEG does and repeat nowhere within 64 KiB."""
    counted = b"".join(number.to_bytes(4, "big") for number in range(size // 4 + 1))
    return (JPEG + counted)[:size]


def upload_request(
    *headers: tuple[str, str], body: bytes = b"", query: str = "", length: int | None = None
) -> bytes:
    """An upload; `length` is announced instead of that of `body`, which may be only its begin."""
    announced = [("Content-Length", str(length))] if length is not None else []
    return request("POST", ROUTE + query, *headers, *announced, body=body)


async def upload(
    url: str, *headers: tuple[str, str], body: bytes = b"", query: str = ""
) -> Message:
    """One upload with the key of the stand-in."""
    return await fetch(url, "POST", ROUTE + query, KEY, *headers, body=body)
