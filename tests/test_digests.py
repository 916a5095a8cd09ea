"""Checksums that clients promise: read in each of their spellings, compared to the byte."""

import base64
import hashlib
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from immich_bridge.digests import (
    ExpectedDigest,
    parse_digest_field,
    parse_digest_fields,
    parse_immich_checksum,
)
from immich_bridge.errors import BadRequest, ChecksumMismatch

PHOTO = b"the bytes of a photo"
SHA1 = hashlib.sha1(PHOTO, usedforsecurity=False)
SHA256 = hashlib.sha256(PHOTO)
SHA512 = hashlib.sha512(PHOTO)


def b64(digest: bytes) -> str:
    return base64.b64encode(digest).decode()


def member(name: str, digest: bytes) -> str:
    """One member of a digest field (RFC 9530 section 2)."""
    return f"{name}=:{b64(digest)}:"


RIGHT_256 = member("sha-256", SHA256.digest())
RIGHT_512 = member("sha-512", SHA512.digest())
WRONG_256 = member("sha-256", hashlib.sha256(b"another photo").digest())


def assert_accepts(digest: ExpectedDigest, *pieces: bytes) -> None:
    for piece in pieces:
        digest.update(piece)
    digest.check()


def assert_refuses(digest: ExpectedDigest, *pieces: bytes) -> None:
    for piece in pieces:
        digest.update(piece)
    with pytest.raises(ChecksumMismatch) as caught:
        digest.check()
    assert digest.header in caught.value.message


class TestImmichChecksum:
    @pytest.mark.parametrize(
        "value",
        [
            SHA1.hexdigest(),
            SHA1.hexdigest().upper(),
            b64(SHA1.digest()),
            f" {SHA1.hexdigest()}\t",
            f" {b64(SHA1.digest())} ",
        ],
    )
    def test_is_read_as_hex_and_as_base64(self, value: str) -> None:
        accepting, refusing = parse_immich_checksum(value), parse_immich_checksum(value)
        assert accepting is not None
        assert refusing is not None
        assert_accepts(accepting, PHOTO)
        assert_refuses(refusing, PHOTO[:-1])

    @pytest.mark.parametrize(
        "value",
        [
            "",
            "garbage",
            "z" * 40,  # as long as hex
            SHA1.hexdigest()[:-1],
            SHA1.hexdigest() + "00",
            SHA256.hexdigest(),
            b64(SHA256.digest()),
            b64(SHA1.digest()).rstrip("="),
            b64(SHA1.digest()[:-1]),
            "é" * 28,
            f'"{b64(SHA1.digest())}"',
        ],
    )
    def test_is_no_checksum_when_it_cannot_be_read(self, value: str) -> None:
        assert parse_immich_checksum(value) is None

    @given(st.text(max_size=60))
    def test_never_raises(self, value: str) -> None:
        parse_immich_checksum(value)


class TestDigestFields:
    @pytest.mark.parametrize("right", [RIGHT_256, RIGHT_512])
    @pytest.mark.parametrize(
        "field",
        [
            "{}",
            "  {}  ",
            "{};a=1",
            "{} ; a=1;b",
            "unixsum=:AAAA:, {}",
            "{}, md5=:rL0Y20zC+Fzt72VPzMSk2A==:",
            "id-sha-256=:AAAA:,{}",
            "future=(1 2 3), {}",
            'x="a, sha-256=:zz:, sha-512", {}',
            'x="\\"a ;b", {}',
            'future=("a, b" c;d=1);e=?0, t=a/b:c;f=1.5, flag, {}, -',
            "{},",
            ", {}",
            "MD5=:rL0Y20zC+Fzt72VPzMSk2A==:, {}",
        ],
    )
    def test_hold_a_digest(self, field: str, right: str) -> None:
        value = field.format(right)
        (digest,) = parse_digest_field("Repr-Digest", value)
        assert_accepts(digest, PHOTO)
        (digest,) = parse_digest_field("Repr-Digest", value)
        assert_refuses(digest, PHOTO + b"!")

    @pytest.mark.parametrize("name", ["sha-256", "sha-512"])
    def test_need_no_padding(self, name: str) -> None:
        digest_of = hashlib.new(name.replace("-", ""), PHOTO).digest()
        value = f"{name}=:{b64(digest_of).rstrip('=')}:"
        (digest,) = parse_digest_field("Repr-Digest", value)
        assert_accepts(digest, PHOTO)

    @pytest.mark.parametrize(
        "first", [WRONG_256, "sha-256", "sha-256=1", 'sha-256="a"', "sha-256=:AA:;a"]
    )
    def test_of_equal_keys_the_last_one_counts(self, first: str) -> None:
        (digest,) = parse_digest_field("Repr-Digest", f"{first}, {RIGHT_256}")
        assert_accepts(digest, PHOTO)
        (digest,) = parse_digest_field("Repr-Digest", f"{RIGHT_256}, {WRONG_256}")
        assert_refuses(digest, PHOTO)
        with pytest.raises(BadRequest):
            parse_digest_field("Repr-Digest", f"{RIGHT_256}, sha-256")

    def test_hold_several_digests(self) -> None:
        value = f"{RIGHT_512}, {WRONG_256}"
        sha512, sha256 = parse_digest_field("Content-Digest", value)
        assert_accepts(sha512, PHOTO)
        assert_refuses(sha256, PHOTO)

    @pytest.mark.parametrize(
        "value",
        [
            "",
            "md5=:rL0Y20zC+Fzt72VPzMSk2A==:",
            "sha=:AAAA:",
            "garbage",
            "sha-999=what",
            "=:AA:",
            'x="sha-256=:AA:"',
            "x;sha-256=:AA:",
        ],
    )
    def test_of_unknown_algorithms_are_ignored(self, value: str) -> None:
        assert parse_digest_field("Repr-Digest", value) == []

    @pytest.mark.parametrize(
        "value",
        [
            "sha-256",
            "sha-256=",
            f"sha-256={b64(SHA256.digest())}",
            f'sha-256="{b64(SHA256.digest())}"',
            f"sha-256=:{b64(SHA256.digest())}",
            f"sha-256=:{SHA256.hexdigest()}:",  # valid base64, of another length
            f"sha-256=:{b64(SHA256.digest())[:-2]}:",
            f"sha-256=:{b64(SHA256.digest())}==:",
            f"sha-256=(:{b64(SHA256.digest())}:)",
            f"SHA-256=:{b64(SHA256.digest())}:",
            f"sha-256=:{b64(SHA512.digest())}:",
            f"sha-512=:{b64(SHA256.digest())}:",
            "sha-256=:=AAA:",
            "sha-256=::",
            f"{RIGHT_512}, sha-256=:?:",
            f"???, {RIGHT_512}, sha-256=:?:",
        ],
    )
    def test_that_cannot_be_read_are_refused(self, value: str) -> None:
        with pytest.raises(BadRequest) as caught:
            parse_digest_field("Repr-Digest", value)
        assert "Repr-Digest" in caught.value.message

    @given(st.text(max_size=80) | st.text('sha-256=:;,AB/+ @%"(?.\\', max_size=80))
    def test_are_read_or_refused(self, value: str) -> None:
        with suppress(BadRequest):
            parse_digest_field("Repr-Digest", value)


class TestOfARequest:
    def test_are_collected_whatever_the_case_of_their_names(self) -> None:
        digests = parse_digest_fields(
            [
                ("Host", RIGHT_256),
                ("X-IMMICH-Checksum", SHA1.hexdigest()),
                ("repr-digest", RIGHT_256),
                ("Content-Digest", RIGHT_512),
                ("CONTENT-DIGEST", RIGHT_256),
                ("Digest", WRONG_256),
            ]
        )
        assert [digest.header for digest in digests] == [
            "x-immich-checksum",
            "Repr-Digest",
            "Content-Digest",
            "Content-Digest",
        ]
        for digest in digests:
            assert_accepts(digest, PHOTO)

    def test_lines_of_one_name_are_one_dictionary(self) -> None:
        digests = parse_digest_fields(
            [
                ("Repr-Digest", WRONG_256),
                ("Content-Digest", WRONG_256),
                ("repr-digest", ""),
                ("repr-digest", f"{RIGHT_512}, {RIGHT_256}"),
            ]
        )
        of_repr, of_content = digests[:2], digests[2:]
        assert [digest.header for digest in of_repr] == ["Repr-Digest"] * 2
        for digest in of_repr:
            assert_accepts(digest, PHOTO)
        (digest,) = of_content
        assert digest.header == "Content-Digest"
        assert_refuses(digest, PHOTO)

    def test_are_none_when_nothing_is_promised(self) -> None:
        assert parse_digest_fields([("x-immich-checksum", "unreadable"), ("Accept", "*/*")]) == []

    @given(st.lists(st.binary(max_size=50), max_size=8))
    def test_do_not_depend_on_how_the_bytes_are_cut(self, pieces: list[bytes]) -> None:
        whole = b"".join(pieces)
        (digest,) = parse_digest_field(
            "Repr-Digest", member("sha-256", hashlib.sha256(whole).digest())
        )
        assert_accepts(digest, *pieces)
