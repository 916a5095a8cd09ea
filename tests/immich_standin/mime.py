"""Which extensions Immich takes, and the media types it gives them."""

from __future__ import annotations

import posixpath

from .release import Release

VIDEO = {
    ".3gp": "video/3gpp",
    ".3gpp": "video/3gpp",
    ".avi": "video/avi",
    ".flv": "video/x-flv",
    ".insv": "video/mp4",
    ".m2t": "video/mp2t",
    ".m2ts": "video/mp2t",
    ".m4v": "video/x-m4v",
    ".mkv": "video/x-matroska",
    ".mov": "video/quicktime",
    ".mp4": "video/mp4",
    ".mpe": "video/mpeg",
    ".mpeg": "video/mpeg",
    ".mpg": "video/mpeg",
    ".mts": "video/mp2t",
    ".mxf": "application/mxf",
    ".ts": "video/mp2t",
    ".vob": "video/mpeg",
    ".webm": "video/webm",
    ".wmv": "video/x-ms-wmv",
}

# In the order of /api/server/media-types.
_IMAGE_EXTENSIONS = (
    *(".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".png", ".webp", ".3fr", ".ari", ".arw", ".cap"),
    *(".cin", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".fff", ".iiq", ".k25", ".kdc"),
    *(".mrw", ".nef", ".nrw", ".orf", ".ori", ".pef", ".psd", ".raf", ".raw", ".rw2", ".rwl"),
    *(".sr2", ".srf", ".srw", ".x3f", ".heic", ".heif", ".hif", ".insp", ".jp2", ".jpe", ".jxl"),
    *(".mpo", ".svg", ".tif", ".tiff"),
)
_IMAGE_TYPES = {
    ".jpg": "image/jpeg",
    ".jpe": "image/jpeg",
    ".insp": "image/jpeg",
    ".mpo": "image/jpeg",
    ".tif": "image/tiff",
    ".svg": "image/svg+xml",
}
IMAGE = {ext: _IMAGE_TYPES.get(ext, f"image/{ext[1:]}") for ext in _IMAGE_EXTENSIONS}
SIDECAR = (".xmp",)


def extension(name: str, release: Release) -> str:
    """The extension as it stands, with its case: v2 sees none in ``.jpg``, v3 sees ``.jpg``."""
    base = posixpath.basename(name)
    if release.is_v3 and base.rfind(".") == 0:
        return base
    return posixpath.splitext(base)[1]


def image_extensions(release: Release) -> list[str]:
    """The image extensions a release takes: `.mpo` came with v3."""
    return [ext for ext in _IMAGE_EXTENSIONS if ext != ".mpo" or release.is_v3]


def is_asset(name: str, release: Release) -> bool:
    ext = extension(name, release).lower()
    return ext in VIDEO or ext in image_extensions(release)


def media_type(name: str, release: Release) -> str:
    ext = extension(name, release).lower()
    return VIDEO.get(ext) or IMAGE.get(ext) or "application/octet-stream"


def asset_type(name: str, release: Release) -> str:
    return "VIDEO" if extension(name, release).lower() in VIDEO else "IMAGE"
