"""What Immich has of an upload, and whether that is what it should have."""

from immich_standin import StandIn
from immich_standin.journal import SeenRequest
from raw_upload import assert_nothing_stored, eventually
from resumable.urlsession import sending
from wire import Message


async def arrived(immich: StandIn, sent: int, size: int) -> None:
    """Return once Immich has the first `sent` bytes of a file of `size` bytes."""

    def has_them(seen: SeenRequest) -> bool:
        boundary = (seen.header("Content-Type") or "").partition("boundary=")[2].strip('"')
        form = int(seen.header("Content-Length") or 0)
        before = form - size - len(f"\r\n--{boundary}--\r\n")
        return seen.body_received >= before + sent

    await immich.wait_for_request(has_them)


def assert_stored(immich: StandIn, told: Message, photo: bytes) -> None:
    """Immich holds just this photo, and the client has heard so."""
    assert told.status == 201, told
    [asset] = immich.assets
    assert (asset.path.read_bytes() == photo) is True
    assert immich.files() == [asset.path]
    assert told.header("X-Immich-Asset-Id") == asset.id
    assert told.header("X-Immich-Status") == "created"


async def assert_cancelled(immich: StandIn) -> None:
    """Immich's request has ended before it was whole, and nothing is left of it."""
    seen = await immich.wait_for_abort(5)
    assert not seen.completed
    assert_nothing_stored(immich)
    await eventually(lambda: immich.open_connections == 0)


async def held(immich: StandIn, url: str, sent: bytes, size: int) -> str:
    """An upload of `size` bytes whose connection was cut when Immich had `sent`; its URL."""
    async with sending(url, sent, size=size) as (peer, location):
        await arrived(immich, len(sent), size)
        peer.reset()
    return location
