"""What kind of photo or video a file is: by extension, by MIME type, by its first bytes.

Immich takes or refuses a file by the extension of its name alone, and only after the
whole transfer; so the right extension has to be found before the first byte is sent on.
The extensions are those that Immich v2 and v3 both take (`GET /api/server/media-types`).
"""

import re
from typing import Final

SNIFF_BYTES: Final = 512
"""How many first bytes `sniff` wants to see: MPEG-TS packets repeat after 192 bytes."""

_IMAGES: Final = {
    "jpg": "image/jpeg",
    "jpeg": "image/jpeg",
    "jpe": "image/jpeg",
    "insp": "image/jpeg",
    "heic": "image/heic",
    "heif": "image/heif",
    "hif": "image/heif",
    "png": "image/png",
    "gif": "image/gif",
    "webp": "image/webp",
    "avif": "image/avif",
    "bmp": "image/bmp",
    "tiff": "image/tiff",
    "tif": "image/tiff",
    "jxl": "image/jxl",
    "jp2": "image/jp2",
    "svg": "image/svg+xml",
    "psd": "image/vnd.adobe.photoshop",
    "dng": "image/x-adobe-dng",
    "3fr": "image/x-hasselblad-3fr",
    "ari": "image/x-arriflex-ari",
    "arw": "image/x-sony-arw",
    "cap": "image/x-phaseone-cap",
    "cin": "image/x-phantom-cin",
    "cr2": "image/x-canon-cr2",
    "cr3": "image/x-canon-cr3",
    "crw": "image/x-canon-crw",
    "dcr": "image/x-kodak-dcr",
    "erf": "image/x-epson-erf",
    "fff": "image/x-hasselblad-fff",
    "iiq": "image/x-phaseone-iiq",
    "k25": "image/x-kodak-k25",
    "kdc": "image/x-kodak-kdc",
    "mrw": "image/x-minolta-mrw",
    "nef": "image/x-nikon-nef",
    "nrw": "image/x-nikon-nrw",
    "orf": "image/x-olympus-orf",
    "ori": "image/x-olympus-ori",
    "pef": "image/x-pentax-pef",
    "raf": "image/x-fuji-raf",
    "raw": "image/x-panasonic-raw",
    "rw2": "image/x-panasonic-rw2",
    "rwl": "image/x-leica-rwl",
    "sr2": "image/x-sony-sr2",
    "srf": "image/x-sony-srf",
    "srw": "image/x-samsung-srw",
    "x3f": "image/x-sigma-x3f",
}
_VIDEOS: Final = {
    "mov": "video/quicktime",
    "mp4": "video/mp4",
    "m4v": "video/x-m4v",
    "insv": "video/mp4",
    "3gp": "video/3gpp",
    "3gpp": "video/3gpp",
    "avi": "video/x-msvideo",
    "flv": "video/x-flv",
    "mkv": "video/x-matroska",
    "webm": "video/webm",
    "wmv": "video/x-ms-wmv",
    "mpg": "video/mpeg",
    "mpeg": "video/mpeg",
    "mpe": "video/mpeg",
    "vob": "video/mpeg",
    "mts": "video/mp2t",
    "m2ts": "video/mp2t",
    "m2t": "video/mp2t",
    "ts": "video/mp2t",
    "mxf": "application/mxf",
}
MIME_TYPES: Final = {**_IMAGES, **_VIDEOS}
"""Extension without dot -> MIME type, for every extension that Immich takes."""

# Names in use beside the registered ones.
_ALIASES: Final = {
    "image/jpg": "jpg",
    "image/pjpeg": "jpg",
    "image/heic-sequence": "heic",
    "image/heif-sequence": "heif",
    "image/dng": "dng",
    "image/x-dng": "dng",
    "image/x-tiff": "tiff",
    "image/x-ms-bmp": "bmp",
    "image/x-bmp": "bmp",
    "image/x-photoshop": "psd",
    "image/x-canon-crw": "crw",
    "image/x-nikon-nef": "nef",
    "image/x-fujifilm-raf": "raf",
    "image/x-panasonic-rw2": "rw2",
    "video/mov": "mov",
    "video/m4v": "m4v",
    "video/x-mp4": "mp4",
    "application/mp4": "mp4",
    "video/avi": "avi",
    "video/msvideo": "avi",
    "video/matroska": "mkv",
    "video/3gpp2": "3gp",
    "video/mp2p": "mpg",
    "video/vnd.dlna.mpeg-tts": "mts",
    "video/x-ms-asf": "wmv",
    "video/mxf": "mxf",
}
# setdefault order: the first extension of a type is its usual one.
_EXTENSIONS: Final[dict[str, str]] = dict(_ALIASES)
for _extension, _mime_type in MIME_TYPES.items():
    _EXTENSIONS.setdefault(_mime_type, _extension)

# ISO base media file format: the major brand after "ftyp" (ISO/IEC 14496-12 section 4.3).
_BRANDS: Final = {
    b"heic": "heic",
    b"heix": "heic",
    b"heim": "heic",
    b"heis": "heic",
    b"hevc": "heic",
    b"hevx": "heic",
    b"mif1": "heif",
    b"msf1": "heif",
    b"mif2": "heif",
    b"avif": "avif",
    b"avis": "avif",
    b"crx ": "cr3",
    b"qt  ": "mov",
    b"M4V ": "m4v",
    b"M4VH": "m4v",
    b"M4VP": "m4v",
}
# A QuickTime file from before "ftyp" begins with one of these atoms.
_QUICKTIME_ATOMS: Final = (b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")
_MAGIC: Final = (
    (b"\xff\xd8\xff", "jpg"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"GIF87a", "gif"),
    (b"GIF89a", "gif"),
    (b"8BPS", "psd"),
    (b"\xff\x0a", "jxl"),
    (b"\x00\x00\x00\x0cJXL \r\n\x87\n", "jxl"),
    (b"\x00\x00\x00\x0cjP  \r\n\x87\n", "jp2"),
    (b"FUJIFILMCCD-RAW", "raf"),
    (b"IIRO", "orf"),
    (b"IIRS", "orf"),
    (b"MMOR", "orf"),
    (b"IIU\x00", "rw2"),
    (b"II\x1a\x00\x00\x00HEAPCCDR", "crw"),
    (b"FOVb", "x3f"),
    (b"\x00MRM", "mrw"),
    (b"FLV\x01", "flv"),
    (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "wmv"),
    (b"\x00\x00\x01\xba", "mpg"),
    (b"\x00\x00\x01\xb3", "mpg"),
    (b"\x06\x0e\x2b\x34\x02\x05\x01\x01", "mxf"),
)
_DNG_VERSION_TAG: Final = 0xC612
# Editors put a byte order mark, a declaration, a comment and a document type before the root.
_SVG: Final = re.compile(
    rb"(\xef\xbb\xbf)?\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)?(<!DOCTYPE svg[^>]*>\s*)?<svg[\s>]",
    re.DOTALL,
)


def extension_of(filename: str) -> str | None:
    """The lower-cased extension of `filename` when Immich takes it, else None.

    A name that is nothing but an extension (`.jpg`) has none: so says Node, and so Immich v2.
    """
    stem, dot, extension = filename.rpartition(".")
    extension = extension.lower()
    return extension if dot and stem and extension in MIME_TYPES else None


def extension_for(mime_type: str) -> str | None:
    """The usual extension of a MIME type (parameters are ignored), or None if Immich has none."""
    return _EXTENSIONS.get(mime_type.partition(";")[0].strip().lower())


def is_video(extension: str) -> bool:
    """Whether Immich holds files of this extension for videos."""
    return extension in _VIDEOS


def sniff(first: bytes) -> str | None:
    """The extension that fits a file that begins with `first`, or None when nothing tells.

    `first` should be the first `SNIFF_BYTES` of the file, or all of a smaller one.
    """
    for magic, extension in _MAGIC:
        if first.startswith(magic):
            return extension
    for sniffer in (_sniff_iso_media, _sniff_riff, _sniff_tiff, _sniff_matroska, _sniff_rest):
        if (found := sniffer(first)) is not None:
            return found
    return None


def _sniff_iso_media(first: bytes) -> str | None:
    box = first[4:8]
    if box == b"ftyp" and len(first) >= 12:
        brand = first[8:12]
        if brand[:2] == b"3g":
            return "3gp"
        if brand in (b"mif1", b"msf1"):
            # The general HEIF brands; the compatible brands name the codec.
            end = min(int.from_bytes(first[:4]), len(first))
            compatible = [first[at : at + 4] for at in range(16, end, 4)]
            special = [_BRANDS[b] for b in compatible if _BRANDS.get(b) in ("heic", "avif")]
            return special[0] if special else "heif"
        return _BRANDS.get(brand, "mp4")
    # A size of 1 says that a 64-bit size follows; a box is 8 bytes long at least.
    if box in _QUICKTIME_ATOMS and (first[:4] == b"\0\0\0\1" or int.from_bytes(first[:4]) >= 8):
        return "mov"
    return None


def _sniff_riff(first: bytes) -> str | None:
    if first[:4] != b"RIFF":
        return None
    return {b"WEBP": "webp", b"AVI ": "avi"}.get(first[8:12])


def _sniff_tiff(first: bytes) -> str | None:
    """TIFF and the raw formats that are TIFF inside: Canon's CR2, Adobe's (and Apple's) DNG."""
    if first[:4] == b"II*\x00":
        order = "little"
    elif first[:4] == b"MM\x00*":
        order = "big"
    else:
        return None
    if first[8:10] == b"CR":
        return "cr2"

    def number(at: int, size: int) -> int:
        return int.from_bytes(first[at : at + size], order)  # type: ignore[arg-type]

    directory = number(4, 4)
    for entry in range(number(directory, 2)):
        at = directory + 2 + 12 * entry
        if at + 2 > len(first):
            break
        if number(at, 2) == _DNG_VERSION_TAG:
            return "dng"
    return "tiff"


def _sniff_matroska(first: bytes) -> str | None:
    if first[:4] != b"\x1aE\xdf\xa3":
        return None
    return "webm" if b"webm" in first[:64] else "mkv"


def _sniff_rest(first: bytes) -> str | None:
    if first[:2] == b"BM" and first[6:10] == bytes(4):
        return "bmp"
    # MPEG transport stream: a sync byte every 188 bytes, or 192 with timestamps in front.
    if len(first) > 188 and first[0] == first[188] == 0x47:
        return "ts"
    if len(first) > 196 and first[4] == first[196] == 0x47:
        return "m2ts"
    if _SVG.match(first):
        return "svg"
    return None
