"""What a sender says of its photo: read strictly, written as both releases of Immich take it."""

import json
import re
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from immich_bridge.bridge.asset import MAX_FILENAME_BYTES, PARAMETERS, Asset
from immich_bridge.errors import BadRequest, UnsupportedMediaType
from immich_standin.release import RELEASES
from immich_standin.validation import validate

JPEG = b"\xff\xd8\xff\xe1\x2f\xfeExif"
MOV = b"\x00\x00\x00\x14ftypqt  \x00\x00\x00\x00qt  "
TEXT = b"Dear diary"
CREATED = "2026-11-21T03:00:00.123Z"
MODIFIED = "2026-11-22T04:05:06.700Z"
VIDEO_ID = "3f0c4f6e-8d5b-4a0e-9b1a-0c7d1e2f3a4b"
ICLOUD_ID = "3F2A8C1E-5B7D-4E90-A1C6-9D8E7F605142:001:AfJk2mQx7bTzR1vLw0yHc9sNdE4g"
GIVEN = {"X-File-Created-At": CREATED, "X-File-Modified-At": MODIFIED, "X-Filename": "IMG.HEIC"}
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20) | st.text(
    st.characters(exclude_categories=["Cc", "Cs"]), max_size=300
)


def date_pattern() -> re.Pattern[str]:
    """The pattern that Immich v3 told, in JavaScript, when it refused a date."""
    path = Path(__file__).parents[1] / "standin" / "recordings-v3.json"
    patterns = {
        error["pattern"]
        for recording in json.loads(path.read_bytes())
        if recording["name"].startswith("o.") and recording["response"]["status"] == 400
        for error in recording["response"]["body"]["errors"]
    }
    (pattern,) = patterns
    assert pattern[:2] == "/^"
    assert pattern[-2:] == "$/"
    return re.compile(pattern[2:-2], re.ASCII)


DATE_PATTERN = date_pattern()


def parse(values: dict[str, str] | None = None, **more: str) -> Asset:
    """An asset from headers; keywords are headers with `_` for `-`."""
    given = {**(values or {}), **{name.replace("_", "-"): value for name, value in more.items()}}
    assert given.keys() <= PARAMETERS.keys()
    return Asset.parse(given.get)


def fields_of(asset: Asset, first: bytes = JPEG) -> dict[str, str]:
    filename, _ = asset.file(first)
    fields = asset.form_fields(filename)
    assert len(dict(fields)) == len(fields), "a repeated field is a list to Immich"
    return dict(fields)


def assert_refused(header: str, value: str) -> None:
    """A value that makes no sense is refused, and the refusal says whose it is."""
    with pytest.raises(BadRequest) as caught:
        parse({**GIVEN, header: value})
    assert caught.value.message.startswith(f"{header} ")


class TestForm:
    def test_of_a_photo_of_which_everything_is_known(self) -> None:
        asset = parse(
            GIVEN
            | {
                "X-Device-Asset-Id": "A1/L0/001",
                "X-Device-Id": "iPhone von Jörg",
                "X-Is-Favorite": "true",
                "X-iCloud-Id": ICLOUD_ID,
                "X-Latitude": "48.1371079",
                "X-Longitude": "-11.5753822",
                "X-Live-Photo-Video-Id": VIDEO_ID,
                "X-Visibility": "archive",
                "X-Duration": "10000",
                "X-Content-Type": "image/heic",
            }
        )
        assert asset.form_fields("IMG.HEIC") == [
            ("deviceAssetId", "A1/L0/001"),
            ("deviceId", "iPhone von Jörg"),
            ("fileCreatedAt", CREATED),
            ("fileModifiedAt", MODIFIED),
            ("isFavorite", "true"),
            ("visibility", "archive"),
            ("duration", "10000"),
            ("livePhotoVideoId", VIDEO_ID),
            (
                "metadata",
                f'[{{"key": "mobile-app", "value": {{"iCloudId": "{ICLOUD_ID}", "createdAt": '
                f'"{CREATED}", "latitude": "48.1371079", "longitude": "-11.5753822"}}}}]',
            ),
        ]

    def test_of_a_photo_of_which_nothing_is_known(self) -> None:
        before = datetime.now(UTC) - timedelta(milliseconds=1)
        asset = parse()
        filename, content_type = asset.file(JPEG)
        fields = dict(asset.form_fields(filename))
        now = fields["fileCreatedAt"]
        assert before <= datetime.fromisoformat(now) <= datetime.now(UTC)
        assert DATE_PATTERN.fullmatch(now)
        assert fields == {
            "deviceAssetId": f"{filename}-{now}",
            "deviceId": "ios-immich-uploader",
            "fileCreatedAt": now,
            "fileModifiedAt": now,
            "isFavorite": "false",
        }
        assert filename == f"IMG_{now[:10].replace('-', '')}_{now[11:19].replace(':', '')}.jpg"
        assert content_type == "image/jpeg"

    @pytest.mark.parametrize("header", PARAMETERS)
    def test_an_empty_value_counts_as_missing(self, header: str) -> None:
        without = {name: value for name, value in GIVEN.items() if name != header}
        given, left_out = parse({**without, header: ""}), parse(without)
        assert fields_of(given).keys() == fields_of(left_out).keys()
        if header not in GIVEN:
            assert given == left_out

    def test_the_device_asset_id_is_the_icloud_id_if_need_be(self) -> None:
        assert fields_of(parse(X_iCloud_Id="c1"))["deviceAssetId"] == "c1"
        own = parse(X_iCloud_Id="c1", X_Device_Asset_Id="d1")
        assert fields_of(own)["deviceAssetId"] == "d1"

    @pytest.mark.parametrize("version", [2, 3])
    @given(
        values=st.fixed_dictionaries(
            {},
            optional={
                "X-Device-Asset-Id": TEXTS,
                "X-Device-Id": TEXTS,
                "X-iCloud-Id": TEXTS,
                "X-Filename": TEXTS,
                "X-Is-Favorite": st.sampled_from(["true", "FALSE", "1", "no", "Yes", "maybe"]),
                "X-Visibility": st.sampled_from(["timeline", "Locked", "hidden", "public"]),
                "X-Duration": st.integers(-1, 2**53).map(str),
                "X-Latitude": st.floats(-91, 91).map(str),
                "X-Live-Photo-Video-Id": st.uuids(version=4).map(str),
                "X-File-Created-At": st.datetimes().map(datetime.isoformat),
                "X-File-Modified-At": st.from_regex(DATE_PATTERN, fullmatch=True),
            },
        )
    )
    def test_what_is_not_refused_here_is_not_refused_by_immich(
        self, version: int, values: dict[str, str]
    ) -> None:
        try:
            asset = parse(values)
        except BadRequest:
            return
        fields = fields_of(asset)
        parsed = validate(fields, RELEASES[version])
        assert not re.search("[\0\ud800-\udfff]", "".join(fields.values()))
        assert parsed.live_photo_video_id == asset.live_photo_video_id
        assert parsed.is_favorite == asset.is_favorite
        for item in parsed.metadata:
            assert item["key"] == "mobile-app"
            assert item["value"]["iCloudId"] == values["X-iCloud-Id"]


class TestDates:
    @pytest.mark.parametrize(
        ("sent", "written"),
        [
            ("2026-11-21T03:00:00.123Z", "2026-11-21T03:00:00.123Z"),
            ("2026-11-21T03:00:00Z", "2026-11-21T03:00:00Z"),
            ("2026-11-21T03:00:00.123456+08:00", "2026-11-21T03:00:00.123456+08:00"),
            ("2026-11-21T03:00:00-09:30", "2026-11-21T03:00:00-09:30"),
            ("2026-11-21T03:00:00+23:59", "2026-11-21T03:00:00+23:59"),
            ("2026-11-21T03:00:00", "2026-11-21T03:00:00Z"),
            ("2026-11-21T03:00:00.000", "2026-11-21T03:00:00.000Z"),
            ("2026-11-21 03:00:00", "2026-11-21T03:00:00Z"),
            ("2026-11-21t03:00:00z", "2026-11-21T03:00:00Z"),
            ("2026-11-21T03:00", "2026-11-21T03:00:00Z"),
            ("2026-11-21T03:00+01:00", "2026-11-21T03:00:00+01:00"),
            ("2026-11-21T03:00:00,5Z", "2026-11-21T03:00:00.5Z"),
            ("2026-11-21T03:00:00+0800", "2026-11-21T03:00:00+08:00"),
            ("2026-11-21T03:00:00-0130", "2026-11-21T03:00:00-01:30"),
            ("2026-11-21T03:00:00+00:00", "2026-11-21T03:00:00Z"),
            ("2026-11-21T03:00:00-00:00", "2026-11-21T03:00:00Z"),
            # A "+" in a query string is a space when it arrives.
            ("2026-11-21T03:00:00.123 08:00", "2026-11-21T03:00:00.123+08:00"),
            ("2024-02-29T23:59:59Z", "2024-02-29T23:59:59Z"),
            ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00Z"),
            ("1969-12-31T00:00:00.000Z", "1969-12-31T00:00:00.000Z"),
            ("9999-12-31T23:59:59.999999999Z", "9999-12-31T23:59:59.999999999Z"),
        ],
    )
    @pytest.mark.parametrize("header", ["X-File-Created-At", "X-File-Modified-At"])
    def test_are_written_in_the_strict_form(self, header: str, sent: str, written: str) -> None:
        assert DATE_PATTERN.fullmatch(written)
        name = PARAMETERS[header]
        assert fields_of(parse({**GIVEN, header: sent}))[name] == written

    @pytest.mark.parametrize(
        "sent",
        [
            "not-a-date",
            "2026-11-21",
            "1700000000000",
            "1700000000",
            "Sat, 21 Nov 2026 03:00:00 GMT",
            "20261121T030000Z",
            "2026-13-21T03:00:00Z",
            "2026-13-45T00:00:00Z",
            "2026-11-31T03:00:00Z",
            "2023-02-29T03:00:00Z",
            "2026-00-10T03:00:00Z",
            "2026-11-21T24:00:00Z",
            "2026-11-21T03:60:00Z",
            "2026-11-21T03:00:60Z",
            "2026-11-21T03Z",
            "2026-11-21T03:00:00.Z",
            "2026-11-21T03:00:00+24:00",
            "2026-11-21T03:00:00+08:60",
            "2026-11-21T03:00:00+08",
            "2026-11-21T03:00:00ZZ",
            "2026-11-21T03:00:00Z+08:00",
            " 2026-11-21T03:00:00Z",
            "2026-11-21T03:00:00Z ",
            "+002026-11-21T03:00:00Z",
            "-2026-11-21T03:00:00Z",
            "2026:11:21 03:00:00",
            "٢٠٢٦-11-21T03:00:00Z",
            "2026-11-21T03:00:00.١٢٣Z",
            "2026-11-21T03:00:00+０８:00",
        ],
    )
    @pytest.mark.parametrize("header", ["X-File-Created-At", "X-File-Modified-At"])
    def test_that_cannot_be_understood_are_refused(self, header: str, sent: str) -> None:
        assert_refused(header, sent)

    @given(
        moment=st.datetimes(
            timezones=st.none()
            | st.integers(-1439, 1439).map(lambda m: timezone(timedelta(minutes=m)))
        ),
        separator=st.sampled_from("Tt "),
        timespec=st.sampled_from(["minutes", "seconds", "milliseconds", "microseconds"]),
    )
    def test_keep_their_instant(self, moment: datetime, separator: str, timespec: str) -> None:
        sent = moment.isoformat(separator, timespec)
        written = parse({"X-File-Created-At": sent}).created_at
        assert DATE_PATTERN.fullmatch(written)
        meant = datetime.fromisoformat(sent)
        assert datetime.fromisoformat(written) == (
            meant if meant.tzinfo else meant.replace(tzinfo=UTC)
        )

    @given(
        st.from_regex(
            r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d(:\d\d([.,]\d{1,4})?)?([Zz]|[+ -]\d\d:?\d\d)?",
            fullmatch=True,
        )
        | st.text("0123456789-:.,TtZz+ ", max_size=30)
    )
    def test_are_strict_or_refused(self, sent: str) -> None:
        try:
            written = parse({"X-File-Created-At": sent}).created_at
        except BadRequest:
            return
        assert DATE_PATTERN.fullmatch(written)


class TestBooleans:
    @pytest.mark.parametrize("sent", ["true", "True", "TRUE", "1", "yes", "Yes"])
    def test_true(self, sent: str) -> None:
        assert fields_of(parse(X_Is_Favorite=sent))["isFavorite"] == "true"

    @pytest.mark.parametrize("sent", ["false", "False", "FALSE", "0", "no", "No"])
    def test_false(self, sent: str) -> None:
        assert fields_of(parse(X_Is_Favorite=sent))["isFavorite"] == "false"

    @pytest.mark.parametrize("sent", ["2", "on", "maybe", "t", "true ", "nil", "-1"])
    def test_neither(self, sent: str) -> None:
        assert_refused("X-Is-Favorite", sent)


class TestLivePhotoVideos:
    @pytest.mark.parametrize("sent", [VIDEO_ID, VIDEO_ID.upper()])
    def test_are_named_by_uuid(self, sent: str) -> None:
        assert fields_of(parse(X_Live_Photo_Video_Id=sent))["livePhotoVideoId"] == VIDEO_ID

    @pytest.mark.parametrize(
        "sent",
        [
            "abc",
            "3f0c4f6e-8d5b-1a0e-9b1a-0c7d1e2f3a4b",  # version 1
            "3f0c4f6e-8d5b-4a0e-cb1a-0c7d1e2f3a4b",  # another variant
            VIDEO_ID.replace("-", ""),
            f"{{{VIDEO_ID}}}",
            f"urn:uuid:{VIDEO_ID}",
            VIDEO_ID[:-1],
            VIDEO_ID + "0",
            VIDEO_ID[:-1] + "g",
            VIDEO_ID[:-1] + "４",
            "00000000-0000-0000-0000-000000000000",
        ],
    )
    def test_are_named_by_nothing_else(self, sent: str) -> None:
        assert_refused("X-Live-Photo-Video-Id", sent)


class TestCoordinates:
    @pytest.mark.parametrize(
        ("header", "name", "limit"),
        [("X-Latitude", "latitude", 90), ("X-Longitude", "longitude", 180)],
    )
    def test_are_kept_as_text_within_their_range(self, header: str, name: str, limit: int) -> None:
        for text in ("0", "-0.0", "48.13710790", "+1.5", ".5", "5.", f"{limit}", f"-{limit}.000"):
            asset = parse({"X-iCloud-Id": "c1", header: text})
            (item,) = json.loads(fields_of(asset)["metadata"])
            assert item["value"] == {"iCloudId": "c1", name: text}
        for text in (f"{limit}.0001", f"-{limit + 1}", "9" * 400, "1e3", "1e-100"):
            assert_refused(header, text)

    def test_are_written_without_an_exponent(self) -> None:
        for sent, written in (
            *(("5e-05", "0.00005"), ("-1E-7", "-0.0000001")),
            *(("1e1", "10"), ("+1.25e+1", "12.5"), ("0e0", "0")),
        ):
            asset = parse({"X-iCloud-Id": "c1", "X-Latitude": sent})
            (item,) = json.loads(fields_of(asset)["metadata"])
            assert item["value"]["latitude"] == written

    @pytest.mark.parametrize(
        "sent",
        ["north", "nan", "inf", "-Infinity", "1e", "e1", "0x10", "1_0", "1,5", "٤٥", ".", "-"],
    )
    def test_are_decimal_numbers(self, sent: str) -> None:
        assert_refused("X-Latitude", sent)
        assert_refused("X-Longitude", sent)


class TestDurations:
    @pytest.mark.parametrize(
        ("sent", "written"),
        [("0", "0"), ("10000", "10000"), ("007", "7"), ("9007199254740991", "9007199254740991")],
    )
    def test_are_whole_milliseconds(self, sent: str, written: str) -> None:
        assert fields_of(parse(X_Duration=sent))["duration"] == written

    @pytest.mark.parametrize(
        "sent",
        ["-1", "10.5", "1e3", "0:00:10.000", "abc", "+1", "１", "9007199254740992", "9" * 30],
    )
    def test_are_nothing_else(self, sent: str) -> None:
        assert_refused("X-Duration", sent)


class TestVisibility:
    @pytest.mark.parametrize("sent", ["timeline", "archive", "hidden", "locked", "Hidden"])
    def test_is_one_of_four(self, sent: str) -> None:
        assert fields_of(parse(X_Visibility=sent))["visibility"] == sent.lower()

    @pytest.mark.parametrize("sent", ["public", "time line", "0", "hidden,locked"])
    def test_is_nothing_else(self, sent: str) -> None:
        assert_refused("X-Visibility", sent)

    def test_is_left_to_immich_by_default(self) -> None:
        assert "visibility" not in fields_of(parse())


class TestCharacters:
    @pytest.mark.parametrize(
        "bad", ["\0", "\n", "\r", "\r\nX-Evil: 1", "\x1f", "\x7f", "\ud83d", chr(0xDCFF)]
    )
    @pytest.mark.parametrize("header", PARAMETERS)
    def test_that_no_metadata_may_hold_are_refused(self, header: str, bad: str) -> None:
        assert_refused(header, f"a{bad}b")

    @pytest.mark.parametrize("good", ["照片 é.HEIC", "\N{CAMERA}\ufe0f", "ﷺ\u202e", "\"'%;&=`"])
    def test_of_every_script_are_kept(self, good: str) -> None:
        asset = parse(X_Device_Asset_Id=good, X_Device_Id=good, X_iCloud_Id=good, X_Filename=good)
        fields = fields_of(asset)
        assert (fields["deviceAssetId"], fields["deviceId"]) == (good, good)
        assert json.loads(fields["metadata"])[0]["value"] == {"iCloudId": good}
        assert asset.filename == good


class TestMetadata:
    def test_is_what_the_mobile_app_stores(self) -> None:
        asset = parse(
            X_iCloud_Id='a"\\b',
            X_File_Created_At="2026-11-21 03:00:00+0800",
            X_Latitude="48.10",
            X_Longitude="11",
        )
        assert json.loads(fields_of(asset)["metadata"]) == [
            {
                "key": "mobile-app",
                "value": {
                    "iCloudId": 'a"\\b',
                    "createdAt": "2026-11-21T03:00:00+08:00",
                    "latitude": "48.10",
                    "longitude": "11",
                },
            }
        ]

    def test_leaves_out_what_was_not_sent(self) -> None:
        (item,) = json.loads(fields_of(parse(X_iCloud_Id="c1"))["metadata"])
        assert item == {"key": "mobile-app", "value": {"iCloudId": "c1"}}

    def test_is_left_out_without_an_icloud_id(self) -> None:
        assert "metadata" not in fields_of(parse(GIVEN, X_Latitude="1", X_Longitude="2"))


class TestFile:
    @pytest.mark.parametrize(
        ("name", "content_type", "first", "file"),
        [
            ("IMG.HEIC", None, TEXT, ("IMG.HEIC", "image/heic")),
            ("IMG.HEIC", "image/x-ours", TEXT, ("IMG.HEIC", "image/x-ours")),
            ("照片 é.mov", None, JPEG, ("照片 é.mov", "video/quicktime")),
            ("IMG", "image/jpeg", TEXT, ("IMG.jpg", "image/jpeg")),
            ("IMG", "IMAGE/JPEG; q=1", TEXT, ("IMG.jpg", "image/jpeg")),
            ("note.txt", "image/png", TEXT, ("note.txt.png", "image/png")),
            ("IMG", None, JPEG, ("IMG.jpg", "image/jpeg")),
            ("clip", None, MOV, ("clip.mov", "video/quicktime")),
            ("clip", "application/octet-stream", MOV, ("clip.mov", "application/octet-stream")),
            ("3D.mpo", None, JPEG, ("3D.mpo.jpg", "image/jpeg")),  # v2 takes no .mpo
            (".jpg", None, JPEG, (".jpg.jpg", "image/jpeg")),  # v2 sees no extension
            ("..", None, JPEG, ("...jpg", "image/jpeg")),
            ("dir/sub/IMG.jpg", None, TEXT, ("IMG.jpg", "image/jpeg")),
            ("../../IMG.jpg", None, TEXT, ("IMG.jpg", "image/jpeg")),
            ("C:\\dir\\IMG.jpg", None, TEXT, ("IMG.jpg", "image/jpeg")),
            (None, "video/quicktime", TEXT, ("VID_20261121_030000.mov", "video/quicktime")),
            (None, "image/heic", MOV, ("IMG_20261121_030000.heic", "image/heic")),
            (None, None, MOV, ("VID_20261121_030000.mov", "video/quicktime")),
            (None, "text/plain", JPEG, ("IMG_20261121_030000.jpg", "text/plain")),
            ("dir/", None, JPEG, ("IMG_20261121_030000.jpg", "image/jpeg")),
            ("  ", None, JPEG, ("IMG_20261121_030000.jpg", "image/jpeg")),
        ],
    )
    def test_name_and_type(
        self, name: str | None, content_type: str | None, first: bytes, file: tuple[str, str]
    ) -> None:
        values = {
            "X-File-Created-At": CREATED,
            "X-Filename": name or "",
            "X-Content-Type": content_type or "",
        }
        assert parse(values).file(first) == file

    @pytest.mark.parametrize("name", ["", "note.txt", ".jpg", "jpg", "IMG.", "dir.jpg/note"])
    @pytest.mark.parametrize("content_type", ["", "application/octet-stream", "text/plain"])
    def test_of_an_unknown_kind_is_refused(self, name: str, content_type: str) -> None:
        asset = parse(X_Filename=name, X_Content_Type=content_type)
        assert asset.needs_sniffing
        with pytest.raises(UnsupportedMediaType):
            asset.file(TEXT)

    def test_is_not_looked_into_when_its_kind_was_told(self) -> None:
        assert not parse(X_Filename="a.mov").needs_sniffing
        assert not parse(X_Content_Type="video/mp4").needs_sniffing
        assert not parse(X_Filename="a", X_Content_Type="video/mp4").needs_sniffing

    def test_name_has_a_longest_length(self) -> None:
        longest = "é" * (MAX_FILENAME_BYTES // 2 - 2) + ".jpg"
        assert parse(X_Filename=longest).file(TEXT)[0] == longest
        assert_refused("X-Filename", "é" + longest)

    @pytest.mark.parametrize(
        "content_type",
        ["image", "image/", "/jpeg", "image/je pg", "image//jpeg", "imáge/jpeg", ";"],
    )
    def test_type_that_is_none_is_refused(self, content_type: str) -> None:
        assert_refused("X-Content-Type", content_type)
