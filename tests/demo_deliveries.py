"""What the demo sends: the samples, with the metadata that an iPhone would give them."""

import base64
import hashlib
from dataclasses import dataclass, field
from pathlib import Path

SAMPLES = Path(__file__).parent / "samples"
ICLOUD_ID = "3F2A8C1E-5B7D-4E90-A1C6-9D8E7F605142:001:AfJk2mQx7bTzR1vLw0yHc9sNdE4g"
WRONG_KEY = "not-a-key-of-anyone"


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """One upload, and how it should end.

    `outcome` is what the answer's `X-Immich-Status` or `X-Bridge-Error` should say.
    """

    sample: str
    note: str
    outcome: str = "created"
    name: str = ""
    content_type: str
    created_at: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    query: dict[str, str] = field(default_factory=dict)
    live_photo_video: str = ""
    """The sample, sent before, that is the moving part of this photo."""
    key: str = ""
    damaged: bool = False

    @property
    def shown_name(self) -> str:
        """The name that the file gets in Immich."""
        return self.name or self.sample

    @property
    def original(self) -> bytes:
        """The bytes of the sample."""
        return (SAMPLES / self.sample).read_bytes()

    @property
    def body(self) -> bytes:
        """The bytes that are sent: the sample's, or with one of them wrong."""
        content = bytearray(self.original)
        if self.damaged:
            content[len(content) // 2] ^= 0xFF
        return bytes(content)


def _digest(sample: str) -> dict[str, str]:
    """RFC 9530: what the bytes must be, wherever they get damaged."""
    digest = hashlib.sha256((SAMPLES / sample).read_bytes()).digest()
    return {"Repr-Digest": f"sha-256=:{base64.b64encode(digest).decode()}:"}


DELIVERIES = (
    Delivery(
        sample="IMG_0001.MOV",
        note="the moving part of a Live Photo",
        content_type="video/quicktime",
        created_at="2026-06-21T05:41:07+02:00",
        headers={"X-Duration": "1500"},
    ),
    Delivery(
        sample="IMG_0001.HEIC",
        note="its photo, with iCloud id, coordinates and checksum",
        content_type="image/heic",
        created_at="2026-06-21T05:41:07+02:00",
        headers={
            "X-iCloud-Id": ICLOUD_ID,
            "X-Latitude": "46.5584",
            "X-Longitude": "8.5616",
            **_digest("IMG_0001.HEIC"),
        },
        live_photo_video="IMG_0001.MOV",
    ),
    Delivery(
        sample="IMG_0002.JPG",
        note="a favourite; metadata in the query instead of headers",
        content_type="image/jpeg",
        query={
            "filename": "IMG_0002.JPG",
            "contentType": "image/jpeg",
            "fileCreatedAt": "2026-06-21T12:30:45+02:00",
            "isFavorite": "true",
        },
    ),
    Delivery(
        sample="IMG_0003.PNG",
        note="IMG_0003.PNG under a name in two scripts",
        name="Zürich bei Nacht 夜景.png",
        content_type="image/png",
        created_at="2026-06-21T23:12:30+02:00",
    ),
    Delivery(
        sample="IMG_0004.MOV",
        note="a video",
        content_type="video/quicktime",
        created_at="2026-06-21T21:20:00+02:00",
        headers={"X-Duration": "3000"},
    ),
    Delivery(
        sample="IMG_0002.JPG",
        note="sent again: known by its bytes",
        outcome="duplicate",
        content_type="image/jpeg",
        created_at="2026-06-21T12:30:45+02:00",
    ),
    Delivery(
        sample="IMG_0003.PNG",
        note="with a wrong key",
        outcome="immich_401",
        content_type="image/png",
        created_at="2026-06-21T23:12:30+02:00",
        key=WRONG_KEY,
    ),
    Delivery(
        sample="IMG_0004.MOV",
        note="with one byte damaged on the way",
        outcome="checksum_mismatch",
        content_type="video/quicktime",
        created_at="2026-06-21T21:20:00+02:00",
        headers=_digest("IMG_0004.MOV"),
        damaged=True,
    ),
)
