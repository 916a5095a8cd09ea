"""Kinds of files: every one that Immich takes, told by name, by MIME type and by first bytes."""

import json
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from immich_bridge.media_types import (
    MIME_TYPES,
    SNIFF_BYTES,
    extension_for,
    extension_of,
    is_video,
    sniff,
)

TESTS = Path(__file__).parent


def recorded_extensions(version: int, kind: str) -> set[str]:
    """What a real Immich answers to `GET /api/server/media-types`, without the dots."""
    recordings = json.loads((TESTS / f"standin/recordings-v{version}.json").read_bytes())
    (answer,) = (each for each in recordings if each["name"] == "s.media-types")
    return {extension.removeprefix(".") for extension in answer["response"]["body"][kind]}


def ftyp(major: bytes, *compatible: bytes, version: int = 0) -> bytes:
    """A file type box (ISO/IEC 14496-12 section 4.3), with the box that follows it."""
    content = major + version.to_bytes(4) + b"".join(compatible)
    return (8 + len(content)).to_bytes(4) + b"ftyp" + content + b"\0\0\0\x26meta\0\0\0\0"


def tiff(order: str, *tags: int, at: int = 8) -> bytes:
    """A TIFF header and the directory with `tags` that it points to."""
    mark = b"II*\0" if order == "<" else b"MM\0*"
    head = mark + struct.pack(f"{order}I", at) + bytes(at - 8)
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, 0) for tag in tags)
    return head + struct.pack(f"{order}H", len(tags)) + entries + bytes(64)


def ebml(doctype: bytes) -> bytes:
    """The head of a Matroska or WebM file (RFC 8794 section 11.2)."""
    return (
        bytes.fromhex("1a45dfa3 01000000 0000001f 4286 8101 42f7 8101 42f2 8104 42f3 8108 4282")
        + bytes([0x80 | len(doctype)])
        + doctype
        + bytes.fromhex("4287 8104 4285 8102 18538067")
    )


def packets(size: int, before: bytes = b"") -> bytes:
    """Transport stream packets of `size` bytes, each with `before` in front of its sync byte."""
    return (before + b"\x47\x40\x00\x10" + b"\xff" * (size - len(before) - 4)) * 4


PHOTOS = {
    "jpeg with JFIF": ("jpg", b"\xff\xd8\xff\xe0\x00\x10JFIF\x00\x01\x01"),
    "jpeg with Exif": ("jpg", b"\xff\xd8\xff\xe1\x2f\xfeExif\x00\x00MM\x00*"),
    "jpeg from a raw table": ("jpg", b"\xff\xd8\xff\xdb\x00\x43\x00"),
    "png": ("png", b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"),
    "gif 87a": ("gif", b"GIF87a\x01\x00\x01\x00"),
    "gif 89a": ("gif", b"GIF89a\x01\x00\x01\x00"),
    "webp": ("webp", b"RIFF\x24\x1a\x00\x00WEBPVP8X"),
    "bmp": ("bmp", b"BM\x36\x00\x0c\x00\x00\x00\x00\x00\x36\x00\x00\x00"),
    "psd": ("psd", b"8BPS\x00\x01" + bytes(6) + b"\x00\x03"),
    "heic of an iPhone": ("heic", ftyp(b"heic", b"mif1", b"MiHB", b"MiHE", b"miaf", b"heic")),
    "heic of an iPhone 15": ("heic", ftyp(b"heic", b"mif1", b"MiHE", b"MiPr", b"tmap")),
    "heic of ten bits": ("heic", ftyp(b"heix", b"mif1", b"heix")),
    "heic burst": ("heic", ftyp(b"hevc", b"msf1", b"hevc", b"iso8")),
    "heic by a compatible brand": ("heic", ftyp(b"mif1", b"mif1", b"heic")),
    "heic of libheif": ("heic", ftyp(b"mif1", b"heix", b"mif1", b"miaf")),
    "heif": ("heif", ftyp(b"mif1", b"mif1", b"miaf", b"MiHB")),
    "heif without other brands": ("heif", ftyp(b"mif1")),
    "heif sequence": ("heif", ftyp(b"msf1", b"iso8")),
    "avif": ("avif", ftyp(b"avif", b"mif1", b"avif", b"miaf", b"MA1B")),
    "avif sequence": ("avif", ftyp(b"avis", b"avif", b"avis", b"msf1")),
    "avif by a compatible brand": ("avif", ftyp(b"mif1", b"mif1", b"avif", b"miaf")),
    "jxl codestream": ("jxl", b"\xff\x0a\xfa\x1f\x01\x91"),
    "jxl container": ("jxl", b"\x00\x00\x00\x0cJXL \x0d\x0a\x87\x0a" + ftyp(b"jxl ")),
    "jp2": ("jp2", b"\x00\x00\x00\x0cjP  \x0d\x0a\x87\x0a" + ftyp(b"jp2 ")),
    "tiff of Intel": ("tiff", tiff("<", 0x0100, 0x0101, 0x0102)),
    "tiff of Motorola": ("tiff", tiff(">", 0x0100, 0x0101, 0x0102)),
    "tiff whose directory comes last": ("tiff", b"II*\x00\xff\xff\xff\x7f" + bytes(504)),
    "dng": ("dng", tiff("<", 0x00FE, 0x0100, 0x0101, 0xC612, 0xC613)),
    "dng of an iPhone": ("dng", tiff(">", 0x00FE, 0x0100, 0x010F, 0x0110, 0x8769, 0xC612)),
    "dng behind a gap": ("dng", tiff(">", 0x00FE, 0xC612, at=200)),
    "cr2": ("cr2", b"II*\x00\x10\x00\x00\x00CR\x02\x00\xf2\xc1\x00\x00"),
    "cr3": ("cr3", ftyp(b"crx ", b"crx ", b"isom", version=1)),
    "crw": ("crw", b"II\x1a\x00\x00\x00HEAPCCDR\x02\x00\x01\x00"),
    "raf": ("raf", b"FUJIFILMCCD-RAW 0201FF393101X-T1"),
    "orf": ("orf", b"IIRO\x08\x00\x00\x00"),
    "orf of other cameras": ("orf", b"IIRS\x08\x00\x00\x00"),
    "orf of Motorola": ("orf", b"MMOR\x00\x00\x00\x08"),
    "rw2": ("rw2", b"IIU\x00\x18\x00\x00\x00\x88\xe7\x74\xd8"),
    "x3f": ("x3f", b"FOVb\x00\x00\x02\x00"),
    "mrw": ("mrw", b"\x00MRM\x00\x01\x8f\xf8\x00PRD"),
    "svg": ("svg", b'<svg xmlns="http://www.w3.org/2000/svg" width="1"/>'),
    "svg with a declaration": ("svg", b'<?xml version="1.0" encoding="UTF-8"?>\n<svg\n  width="1"'),
    "svg with a byte order mark": ("svg", b'\xef\xbb\xbf<?xml version="1.0"?><svg >'),
    "svg of Inkscape": (
        "svg",
        b'<?xml version="1.0" standalone="no"?>\n<!-- Created with\n Inkscape -->\n\n<svg\n id="a"',
    ),
    "svg of Illustrator": (
        "svg",
        b'<?xml version="1.0" encoding="utf-8"?>\r\n'
        b"<!-- Generator: Adobe Illustrator 16.0.0, SVG Export Plug-In -->\r\n"
        b'<!DOCTYPE svg PUBLIC "-//W3C//DTD SVG 1.1//EN" '
        b'"http://www.w3.org/Graphics/SVG/1.1/DTD/svg11.dtd">\r\n<svg version="1.1"',
    ),
}
VIDEOS = {
    "mov of an iPhone": ("mov", ftyp(b"qt  ", b"qt  ")),
    "mov that begins with wide": ("mov", b"\x00\x00\x00\x08wide\x00\x98\x96\x80mdat"),
    "mov that begins with mdat": ("mov", b"\x00\x98\x96\x80mdat\x00\x00\x00\x00"),
    "mov that begins with a long mdat": ("mov", b"\0\0\0\1mdat" + (1 << 33).to_bytes(8)),
    "mov that begins with moov": ("mov", b"\x00\x00\x0a\xd2moov\x00\x00\x00\x6cmvhd"),
    "mov that begins with free": ("mov", b"\x00\x00\x00\x08free\x00\x98\x96\x80mdat"),
    "mov that begins with skip": ("mov", b"\x00\x00\x00\x10skip"),
    "mov that begins with pnot": ("mov", b"\x00\x00\x00\x14pnot"),
    "mp4": ("mp4", ftyp(b"isom", b"isom", b"iso2", b"avc1", b"mp41", version=512)),
    "mp4 version 2": ("mp4", ftyp(b"mp42", b"mp41", b"mp42", b"isom")),
    "mp4 of DASH": ("mp4", ftyp(b"iso5", b"iso5", b"dash")),
    "mp4 of Sony": ("mp4", ftyp(b"MSNV", b"MSNV", b"isom")),
    "mp4 of a brand yet unknown": ("mp4", ftyp(b"new1", b"isom")),
    "m4v": ("m4v", ftyp(b"M4V ", b"M4V ", b"mp42", b"isom")),
    "m4v of high profile": ("m4v", ftyp(b"M4VH")),
    "3gp": ("3gp", ftyp(b"3gp4", b"isom", b"3gp4")),
    "3gp2": ("3gp", ftyp(b"3g2a", b"3g2a")),
    "avi": ("avi", b"RIFF\x24\x1a\x00\x00AVI LIST"),
    "mkv": ("mkv", ebml(b"matroska")),
    "webm": ("webm", ebml(b"webm")),
    "mpeg program stream": ("mpg", b"\x00\x00\x01\xba\x44\x00\x04\x00\x04\x01"),
    "mpeg video stream": ("mpg", b"\x00\x00\x01\xb3\x16\x00\xf0\xc4"),
    "transport stream": ("ts", packets(188)),
    "transport stream of AVCHD": ("m2ts", packets(192, b"\x00\x00\x12\x34")),
    "flv": ("flv", b"FLV\x01\x05\x00\x00\x00\x09"),
    "wmv": ("wmv", bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")),
    "mxf": ("mxf", bytes.fromhex("060e2b34020501010d01020101020400")),
}
NEITHER = {
    "nothing": b"",
    "one byte": b"\xff",
    "half of a jpeg's mark": b"\xff\xd8 and more",
    "text": b"Dear diary, the camera broke today.",
    "html with a drawing in it": b"<!doctype html><html><body><svg width=1></svg>",
    "another xml": b'<?xml version="1.0"?><svgx/>',
    "pdf": b"%PDF-1.7\n",
    "zip": b"PK\x03\x04\x14\x00",
    "mp3": b"ID3\x03\x00\x00\x00\x00",
    "wav": b"RIFF\x24\x1a\x00\x00WAVEfmt ",
    "ogg": b"OggS\x00\x02",
    "executable": b"\x7fELF\x02\x01\x01",
    "zeros": bytes(600),
    "a box too small for a box": b"\x00\x00\x00\x07moov\x00\x00\x00\x6cmvhd",
    "a broken file type box": b"\x00\x00\x00\x14ftyphe",
    "BM that is text": b"BMW is a car",
}


class TestExtensions:
    @pytest.mark.parametrize("kind", ["image", "video"])
    def test_are_those_that_both_releases_take(self, kind: str) -> None:
        both = recorded_extensions(2, kind) & recorded_extensions(3, kind)
        ours = {extension for extension in MIME_TYPES if is_video(extension) == (kind == "video")}
        assert ours == both

    @pytest.mark.parametrize("extension", sorted(MIME_TYPES))
    def test_are_found_in_names(self, extension: str) -> None:
        assert extension_of(f"IMG_0001.{extension}") == extension
        assert extension_of(f"照片 é.tar.{extension.upper()}") == extension

    @pytest.mark.parametrize(
        "name",
        ["", "jpg", ".jpg", "IMG_0001", "IMG.", "a.txt", "a.jpg.txt", "a.jpg ", "a.jp g", "a.mpo"],
    )
    def test_are_not_found_where_immich_finds_none(self, name: str) -> None:
        assert extension_of(name) is None

    def test_of_live_photos(self) -> None:
        assert is_video("mov")
        assert not is_video("heic")


class TestMimeTypes:
    @pytest.mark.parametrize("mime_type", sorted(set(MIME_TYPES.values())))
    def test_have_an_extension_of_their_own(self, mime_type: str) -> None:
        extension = extension_for(mime_type)
        assert extension is not None
        assert MIME_TYPES[extension] == mime_type

    @pytest.mark.parametrize(
        ("mime_type", "extension"),
        [
            ("image/jpeg", "jpg"),
            ("image/jpg", "jpg"),
            ("image/heic", "heic"),
            ("image/heic-sequence", "heic"),
            ("image/tiff", "tiff"),
            ("image/x-adobe-dng", "dng"),
            ("image/dng", "dng"),
            ("image/svg+xml", "svg"),
            ("video/quicktime", "mov"),
            ("video/mp4", "mp4"),
            ("video/x-m4v", "m4v"),
            ("video/avi", "avi"),
            ("video/3gpp2", "3gp"),
            (" IMAGE/HEIC ; charset=x", "heic"),
            ("video/mp4; codecs=hvc1", "mp4"),
        ],
    )
    def test_in_use(self, mime_type: str, extension: str) -> None:
        assert extension_for(mime_type) == extension

    @pytest.mark.parametrize(
        "mime_type", ["", "image", "image/*", "application/octet-stream", "audio/mp4", "text/plain"]
    )
    def test_that_tell_nothing(self, mime_type: str) -> None:
        assert extension_for(mime_type) is None

    def test_of_videos_are_not_those_of_photos(self) -> None:
        for extension, mime_type in MIME_TYPES.items():
            usual = extension_for(mime_type)
            assert usual is not None
            assert is_video(usual) == is_video(extension)


class TestSniff:
    @pytest.mark.parametrize(
        ("extension", "first"), [*PHOTOS.values(), *VIDEOS.values()], ids=[*PHOTOS, *VIDEOS]
    )
    def test_tells_the_kind(self, extension: str, first: bytes) -> None:
        assert extension in MIME_TYPES
        assert sniff(first) == extension
        assert sniff((first + bytes(range(1, 256)) * 3)[:SNIFF_BYTES]) == extension

    @pytest.mark.parametrize("first", [first for _, first in VIDEOS.values()], ids=VIDEOS)
    def test_never_takes_a_video_for_a_photo(self, first: bytes) -> None:
        assert is_video(sniff(first) or "")

    @pytest.mark.parametrize("first", NEITHER.values(), ids=NEITHER)
    def test_says_so_when_nothing_tells(self, first: bytes) -> None:
        assert sniff(first) is None

    @pytest.mark.parametrize("name", ["IMG_0001.HEIC", "IMG_0001.MOV", "IMG_0002.JPG"])
    def test_of_files_of_a_camera(self, name: str) -> None:
        first = (TESTS / "samples" / name).read_bytes()[:SNIFF_BYTES]
        assert sniff(first) == extension_of(name)

    @given(st.binary(max_size=600))
    def test_never_raises(self, first: bytes) -> None:
        assert sniff(first) in {None, *MIME_TYPES}

    @given(
        st.sampled_from([first for _, first in (*PHOTOS.values(), *VIDEOS.values())]),
        st.integers(0, 40),
        st.binary(max_size=100),
    )
    def test_never_raises_on_damaged_files(self, first: bytes, kept: int, rest: bytes) -> None:
        assert sniff(first[:kept] + rest) in {None, *MIME_TYPES}

    @given(st.sampled_from("<>"), st.integers(0, 2**16), st.binary(max_size=80))
    def test_never_raises_on_any_directory(self, order: str, at: int, rest: bytes) -> None:
        mark = {"<": b"II*\0", ">": b"MM\0*"}[order]
        assert sniff(mark + struct.pack(f"{order}I", at) + rest) in {"tiff", "dng", "cr2"}
