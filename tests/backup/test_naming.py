"""Which names files get, and that nothing a client sends can be more than an extension."""

import re
from datetime import date, timedelta
from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from immich_bridge.backup.naming import (
    day_folder,
    file_stem,
    normal_extension,
    parse_date,
    uploaded_extension,
)
from immich_bridge.media_types import MIME_TYPES

SAFE_EXTENSION = re.compile(r"[a-z0-9]{1,10}")


@given(st.dates())
def test_a_date_is_read_as_it_is_written(day: date) -> None:
    assert parse_date(day.isoformat()) == day


@pytest.mark.parametrize("text", ["2024-02-29", "2000-02-29", "0001-01-01", "9999-12-31"])
def test_a_day_that_exists_is_taken(text: str) -> None:
    day = parse_date(text)
    assert day is not None
    assert day.isoformat() == text


@pytest.mark.parametrize(
    "text",
    [
        "2023-02-29",
        "1900-02-29",
        "2025-04-31",
        "2025-13-01",
        "2025-00-10",
        "2025-01-00",
        "2025-01-32",
        "0000-01-01",
    ],
)
def test_a_day_that_does_not_exist_is_none(text: str) -> None:
    assert parse_date(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2025-1-1",
        "20250101",
        "2025-W01-1",
        "2025-001",
        "2025/01/01",
        "25-01-01",
        "02025-01-01",
        "-025-01-01",
        "2025-01-01T00:00:00Z",
        "2025-01-01 ",
        " 2025-01-01",
        "2025-01-01\n",
        "../../etc",
        "２０２５-01-01",
        "٢٠٢٥-٠١-٠١",
    ],
)
def test_other_ways_to_write_a_date_are_none(text: str) -> None:
    # `date.fromisoformat` takes some of these; the API has one form.
    assert parse_date(text) is None


def test_a_day_folder_is_that_of_the_api_document() -> None:
    assert day_folder(1, date(2025, 12, 10)) == "storage/photo/1/2025/12/10/"


@given(st.integers(min_value=1, max_value=2**63 - 1), st.dates())
def test_a_day_folder_has_four_plain_parts_below_the_root(user_id: int, day: date) -> None:
    folder = day_folder(user_id, day)
    assert folder.endswith("/")
    parts = PurePosixPath(folder).parts
    assert parts[:2] == ("storage", "photo")
    assert [int(part) for part in parts[2:]] == [user_id, day.year, day.month, day.day]
    assert [len(part) for part in parts[3:]] == [4, 2, 2]


def test_two_users_or_two_days_never_share_a_folder() -> None:
    days = [date(2025, 1, 1) + timedelta(n) for n in range(400)]
    folders = {day_folder(user, day) for user in (1, 11, 12, 112) for day in days}
    assert len(folders) == 4 * 400


@pytest.mark.parametrize(
    ("number", "stem"),
    [
        (1, "IMG_0001"),
        (42, "IMG_0042"),
        (9999, "IMG_9999"),
        (10_000, "IMG_10000"),
        (123_456, "IMG_123456"),
    ],
)
def test_numbers_have_four_digits_or_as_many_as_they_need(number: int, stem: str) -> None:
    assert file_stem(number) == stem


@pytest.mark.parametrize(
    ("text", "extension"),
    [
        ("jpg", "jpg"),
        ("JPG", "jpg"),
        ("HeIc", "heic"),
        (".jpg", "jpg"),
        ("3gp", "3gp"),
        ("a", "a"),
        ("abcdefghij", "abcdefghij"),
    ],
)
def test_an_extension_is_lower_cased_and_loses_its_dot(text: str, extension: str) -> None:
    assert normal_extension(text) == extension


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "..",
        "..jpg",
        "j pg",
        "jpg ",
        "jpg\n",
        "jpg\0",
        "jp/g",
        "../jpg",
        "jp\\g",
        "jp-g",
        "jp.g",
        "tar.gz",
        "abcdefghijk",
        "jpé",
        "ｊｐｇ",
        "１",
        "🙂",
        "İ",  # lower() makes it two characters
    ],
)
def test_what_cannot_be_an_extension_is_none(text: str) -> None:
    assert normal_extension(text) is None


@given(st.text())
def test_an_extension_is_always_safe_in_a_path(text: str) -> None:
    extension = normal_extension(text)
    assert extension is None or SAFE_EXTENSION.fullmatch(extension)


@given(st.text(), st.text())
def test_an_uploaded_extension_is_always_safe_in_a_path(file_type: str, indexed_type: str) -> None:
    extension = uploaded_extension(file_type, indexed_type, "jpg")
    assert extension is None or SAFE_EXTENSION.fullmatch(extension)


@pytest.mark.parametrize(
    ("file_type", "extension"),
    [
        ("image/jpeg", "jpg"),
        ("IMAGE/JPEG", "jpg"),
        ("image/jpeg; charset=binary", "jpg"),
        (" image/jpeg ", "jpg"),
        ("image/jpg", "jpg"),
        ("image/heic", "heic"),
        ("image/x-adobe-dng", "dng"),
        ("video/quicktime", "mov"),
        ("video/mp4", "mp4"),
        ("heic", "heic"),
        ("HEIC", "heic"),
        (".mov", "mov"),
        ("xmp", "xmp"),
    ],
)
def test_a_type_is_a_mime_type_or_an_extension(file_type: str, extension: str) -> None:
    assert uploaded_extension(file_type, "image/jpeg", "jpg") == extension


@pytest.mark.parametrize(
    "file_type",
    ["", "image/unknown", "application/pdf", "text/html", "/", "../x", "jpg/../..", "a b", "a.b"],
)
def test_an_unknown_type_has_no_extension(file_type: str) -> None:
    assert uploaded_extension(file_type, "image/jpeg", "jpg") is None


@pytest.mark.parametrize("indexed", ["jpg", "jpeg", "jpe"])
@pytest.mark.parametrize("file_type", ["jpg", "jpeg", "JPE", "image/jpeg", "image/pjpeg"])
def test_the_indexed_extension_wins_among_equals(file_type: str, indexed: str) -> None:
    assert uploaded_extension(file_type, "image/jpeg", indexed) == indexed


@pytest.mark.parametrize("indexed", ["tif", "tiff"])
@pytest.mark.parametrize("file_type", ["tif", "tiff", "image/tiff"])
def test_tif_and_tiff_are_equals_too(file_type: str, indexed: str) -> None:
    assert uploaded_extension(file_type, "image/tiff", indexed) == indexed


def test_different_formats_keep_different_extensions() -> None:
    # HEIC and HEIF are different formats for Immich, as are JPEG and PNG.
    assert uploaded_extension("heif", "image/heic", "heic") == "heif"
    assert uploaded_extension("image/png", "image/jpeg", "jpg") == "png"


def test_two_unknown_extensions_are_no_equals() -> None:
    # Neither has a MIME type; that both lack one does not make them the same.
    assert uploaded_extension("xmp", "application/x", "aae") == "xmp"


def test_the_type_that_was_indexed_means_the_extension_that_was_indexed() -> None:
    # Whatever the client made up at indexing, it can say again at the upload.
    assert uploaded_extension("application/x-raw", "application/x-raw", "raw") == "raw"
    assert uploaded_extension(" Application/X-Raw", "application/x-raw ", "raw") == "raw"


@pytest.mark.parametrize("extension", sorted(MIME_TYPES))
def test_every_format_of_immichs_has_its_own_name(extension: str) -> None:
    assert uploaded_extension(extension, "image/bmp", "bmp") == extension
    by_type = uploaded_extension(MIME_TYPES[extension], "image/bmp", "bmp")
    assert by_type is not None
    assert MIME_TYPES[by_type] == MIME_TYPES[extension]


@pytest.mark.parametrize(
    ("file_type", "indexed", "uploaded", "extension"),
    [
        ("jpeg", "heic", ("jpg",), "jpg"),
        ("jpg", "heic", (), "jpg"),
        ("image/jpeg", "jpeg", (), "jpeg"),
        ("insp", "jpg", ("jpg",), "insp"),  # a panorama beside a photo, though both are JPEG
        ("insv", "mp4", (), "insv"),
        ("ts", "mts", (), "ts"),
        ("tiff", "tif", (), "tif"),
    ],
)
def test_only_two_names_of_one_format_are_the_same_file(
    file_type: str, indexed: str, uploaded: tuple[str, ...], extension: str
) -> None:
    assert uploaded_extension(file_type, "image/x", indexed, uploaded) == extension
