"""What heads mean in each iteration of the draft, and how ours are written."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from immich_bridge.errors import BadRequest, BridgeError, UnsupportedMediaType
from immich_bridge.resumable.problems import InconsistentLength
from immich_bridge.resumable.protocol import (
    MAX_INTEGER,
    Append,
    Creation,
    Dialect,
    Headers,
    Limits,
    dialect_of,
    interim_answer,
    is_partial,
    parse_append,
    parse_creation,
    state_headers,
)
from resumable.urlsession import completeness

KNOWN = (3, 4, 5, 6, 7, 8)
WITH_INCOMPLETE = (3,)
WITH_TYPE = (6, 7, 8)


def head(*fields: tuple[str, str]) -> Headers:
    return [(name.encode(), value.encode("latin-1")) for name, value in fields]


def version(number: object) -> tuple[str, str]:
    return "Upload-Draft-Interop-Version", str(number)


def dialect(number: int) -> Dialect:
    found = dialect_of(head(version(number)))
    assert found is not None
    return found


class TestVersions:
    @pytest.mark.parametrize("number", KNOWN)
    def test_that_are_known(self, number: int) -> None:
        assert dialect(number).version == number

    @pytest.mark.parametrize(
        "value", ["", "0", "1", "2", "9", "66", "-6", "6.0", '"6"', "?1", "six", "6, 6", "6 6", "٦"]
    )
    def test_that_are_not(self, value: str) -> None:
        assert dialect_of([(b"Upload-Draft-Interop-Version", value.encode())]) is None

    @pytest.mark.parametrize("value", ["6", " 6 ", "6;a=1", "6 ;a", "06"])
    def test_are_items_of_structured_fields(self, value: str) -> None:
        assert dialect_of(head(version(value))) == dialect(6)

    def test_in_any_case_of_the_name(self) -> None:
        assert dialect_of(head(("upload-DRAFT-interop-version", "3"))) == dialect(3)

    def test_twice_are_none(self) -> None:
        assert dialect_of(head(version(6), version(6))) is None

    @pytest.mark.parametrize("number", KNOWN)
    def test_have_their_own_words(self, number: int) -> None:
        spoken = dialect(number)
        assert spoken.says_incomplete == (number in WITH_INCOMPLETE)
        assert spoken.types_appends == spoken.knows_limits == (number in WITH_TYPE)
        for complete in (True, False):
            assert spoken.completeness(complete) == completeness(number, complete)
            assert spoken.is_complete(head(completeness(number, complete))) is complete


class TestCreations:
    @pytest.mark.parametrize("number", KNOWN)
    @pytest.mark.parametrize("complete", [True, False])
    def test_are_known(self, number: int, complete: bool) -> None:
        fields = head(version(number), completeness(number, complete))
        length = 5 if complete else None
        assert parse_creation(fields, 5) == Creation(dialect(number), complete, length)

    @pytest.mark.parametrize(
        "fields",
        [
            [],
            [version(6)],
            [version(6), ("Upload-Incomplete", "?0")],
            [version(3), ("Upload-Complete", "?1")],
            [version(9), ("Upload-Complete", "?1")],
            [("Upload-Complete", "?1")],
            [version(6), ("Upload-Complete", "1")],
            [version(6), ("Upload-Complete", "?2")],
            [version(6), ("Upload-Complete", "?1"), ("Upload-Complete", "?1")],
        ],
    )
    def test_are_none_without_the_words_of_one_version(self, fields: list[tuple[str, str]]) -> None:
        assert parse_creation(head(*fields), 5) is None

    @pytest.mark.parametrize(
        ("complete", "said", "content_length", "expected"),
        [
            (True, None, 5, 5),
            (True, "5", 5, 5),
            (True, "5", None, 5),
            (True, None, None, None),
            (False, "9", 5, 9),
            (False, None, 5, None),
            (False, "0", None, 0),
        ],
    )
    def test_tell_the_length_in_two_ways(
        self, complete: bool, said: str | None, content_length: int | None, expected: int | None
    ) -> None:
        fields = [version(6), completeness(6, complete)]
        fields += [("Upload-Length", said)] if said is not None else []
        found = parse_creation(head(*fields), content_length)
        assert found is not None
        assert found.length == expected

    @pytest.mark.parametrize("said", ["4", "6", "0", str(MAX_INTEGER)])
    def test_that_contradict_themselves_are_refused(self, said: str) -> None:
        fields = head(version(6), completeness(6, True), ("Upload-Length", said))
        with pytest.raises(InconsistentLength):
            parse_creation(fields, 5)


class TestParts:
    """What says that it is a part is never taken for the whole, however oddly it says so."""

    @pytest.mark.parametrize(
        "fields",
        [
            [("Upload-Complete", "?0")],
            [("Upload-Incomplete", "?1")],
            [("upload-complete", "?0;x=1")],
            [version(9), ("Upload-Complete", "?0")],
            [version(3), ("Upload-Complete", "?0")],
            [version(6), ("Upload-Incomplete", "?1")],
            [("Upload-Complete", "?0"), ("Upload-Complete", "?0")],
            [("Upload-Complete", "?1"), ("Upload-Complete", "?0")],
            [("Upload-Complete", "?0, ?0")],
            [("Upload-Incomplete", "?1,?1")],
        ],
    )
    def test_are_seen(self, fields: list[tuple[str, str]]) -> None:
        assert is_partial(head(*fields))

    @pytest.mark.parametrize(
        "fields",
        [[], [("Upload-Complete", "?1")], [("Upload-Incomplete", "?0")], [("X-Upload", "?0")]],
    )
    def test_are_not_seen_where_there_are_none(self, fields: list[tuple[str, str]]) -> None:
        assert not is_partial(head(*fields))


class TestAppends:
    TYPE = ("Content-Type", "application/partial-upload")
    OFFSET = ("Upload-Offset", "7")

    @pytest.mark.parametrize("number", KNOWN)
    @pytest.mark.parametrize("complete", [True, False])
    def test_are_known(self, number: int, complete: bool) -> None:
        fields = [self.OFFSET, completeness(number, complete)]
        fields += [self.TYPE] if number in WITH_TYPE else []
        length = 12 if complete else None
        found = parse_append(dialect(number), head(*fields), 5)
        assert found == Append(7, complete, length)

    @pytest.mark.parametrize("number", WITH_TYPE)
    @pytest.mark.parametrize("kind", [None, "image/jpeg", "application/partial-uploads", ""])
    def test_of_another_type_are_refused(self, number: int, kind: str | None) -> None:
        fields = [self.OFFSET, completeness(number, True)]
        fields += [("Content-Type", kind)] if kind is not None else []
        with pytest.raises(UnsupportedMediaType):
            parse_append(dialect(number), head(*fields), 5)

    @pytest.mark.parametrize("kind", ["Application/Partial-Upload", "application/partial-upload;a"])
    def test_have_a_type_in_any_writing(self, kind: str) -> None:
        fields = head(self.OFFSET, completeness(6, True), ("Content-Type", kind))
        assert parse_append(dialect(6), fields, 0).offset == 7

    @pytest.mark.parametrize(
        "missing", [[OFFSET], [completeness(6, True)], [], [("Upload-Offset", "-1")]]
    )
    def test_without_offset_or_completeness_are_refused(
        self, missing: list[tuple[str, str]]
    ) -> None:
        with pytest.raises(BadRequest, match="Upload-Offset"):
            parse_append(dialect(6), head(self.TYPE, *missing), 5)

    def test_that_contradict_themselves_are_refused(self) -> None:
        fields = [self.TYPE, self.OFFSET, completeness(6, True), ("Upload-Length", "11")]
        with pytest.raises(InconsistentLength):
            parse_append(dialect(6), head(*fields), 5)


class TestAnswers:
    @pytest.mark.parametrize("number", KNOWN)
    def test_in_the_interim(self, number: int) -> None:
        text = interim_answer(dialect(number), "/uploads/x", Limits(100, 60)).decode()
        assert text.endswith("\r\n\r\n")
        first, *lines = text[:-4].split("\r\n")
        assert first == "HTTP/1.1 104 Upload Resumption Supported"
        expected = [f"Upload-Draft-Interop-Version: {number}", "Location: /uploads/x"]
        if number in WITH_TYPE:
            expected.append("Upload-Limit: max-size=100, min-size=0, max-age=60")
        assert lines == expected

    def test_without_a_limit_name_the_largest_number(self) -> None:
        assert Limits(0).header() == "max-size=999999999999999, min-size=0"

    @pytest.mark.parametrize("number", KNOWN)
    @pytest.mark.parametrize("complete", [True, False])
    @pytest.mark.parametrize("length", [None, 9])
    def test_of_the_state(self, number: int, complete: bool, length: int | None) -> None:
        told = state_headers(
            dialect(number), offset=4, complete=complete, length=length, limits=Limits(0)
        )
        name, value = completeness(number, complete)
        expected = {
            "Upload-Draft-Interop-Version": str(number),
            "Upload-Offset": "4",
            "Cache-Control": "no-store",
            name: value,
        }
        if number in WITH_TYPE:
            expected["Upload-Limit"] = Limits(0).header()
            expected |= {} if length is None else {"Upload-Length": "9"}
        assert told == expected


names = st.sampled_from(
    [
        b"Upload-Draft-Interop-Version",
        b"Upload-Complete",
        b"Upload-Incomplete",
        b"Upload-Offset",
        b"Upload-Length",
        b"Content-Type",
        b"upload-complete",
        b"X",
    ]
)
plausible = st.sampled_from(
    [b"?0", b"?1", b"3", b"6", b"8", b"0", b"999999999999999", b"1000000000000000", b"?1;a=b"]
)
values = plausible | st.just(b"application/partial-upload") | st.binary(max_size=20)
heads = st.lists(st.tuples(names, values), max_size=8)
lengths = st.none() | st.integers(0, MAX_INTEGER)


class TestAnything:
    @given(heads, lengths)
    @example([(b"Upload-Offset", b"\xff" * 20)], 0)
    def test_makes_sense_or_an_error_of_ours(
        self, fields: Headers, content_length: int | None
    ) -> None:
        try:
            found = parse_creation(fields, content_length)
        except BridgeError:
            pass
        else:
            assert found == parse_creation(list(fields), content_length)
            # Who says that it is a part is not taken for an upload like any other.
            assert found is None or found.complete or is_partial(fields)
        for number in KNOWN:
            try:
                appended = parse_append(dialect(number), fields, content_length)
            except BridgeError:
                continue
            assert 0 <= appended.offset <= MAX_INTEGER
            assert appended == parse_append(dialect(number), list(fields), content_length)

    @given(st.sampled_from(KNOWN), st.booleans(), st.integers(0, MAX_INTEGER), st.none() | lengths)
    def test_that_we_write_is_understood_by_us(
        self, number: int, complete: bool, offset: int, length: int | None
    ) -> None:
        spoken = dialect(number)
        told = state_headers(
            spoken, offset=offset, complete=complete, length=length, limits=Limits(0)
        )
        fields = head(*told.items(), ("Content-Type", "application/partial-upload"))
        assert dialect_of(fields) == spoken
        known_length = length if spoken.knows_limits else None
        assert parse_append(spoken, fields, None) == Append(offset, complete, known_length)
