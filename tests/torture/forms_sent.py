"""Forms as clients send them, well and badly: hypothesis puts them together and damages them."""

import re
from dataclasses import dataclass
from typing import Final

from hypothesis import strategies as st

_BOUNDARIES: Final = ("----brX7f3", "b", "=_a'()+_,-./:=?z", "-", "----", "x" * 70)
_NAMES: Final = (
    *(b'"local_id"', b'"file_type"', b'"file"', b'"chunk_data"', b'"upload_id"', b"file", b'"x y"'),
    *(b'"\xc3\xa9"', b'"a\\"b"', b'"a;b"', b'"/file"', b'"%66ile"', b'"file%22"', b'" file"'),
)
_MORE_PARAMETERS: Final = (
    *(b'; filename="a.jpg"', b'; filename="\xc3\xa9 \xe7\x85\xa7.jpg"', b"; filename=a.jpg"),
    *(b'; filename=""', b'; filename="a;b=c.jpg"', b'; filename="a\\"; name=\\"file.jpg"'),
    *(b"; filename*=UTF-8''%zz.jpg", b"; filename*=x", b"; filename*=x''y", b"; x*=UTF-8''a"),
    *(b"; filename*=UTF-8''%e2%82%ac.jpg", b'; filename="C:\\dir\\a.jpg"', b'; FileName="a.jpg"'),
    *(b'; name="file"', b"; name*=UTF-8''file", b'; filename="a\\"; name=file; x="', b";", b" "),
    *(b'; x="; name=file"', b"; name*0=fi; name*1=le", b'; filename="\\', b"; =x", b";;"),
)
_HEADERS: Final = (
    *(b"Content-Type: image/jpeg", b"Content-Type: application/octet-stream", b"Content-Length: 3"),
    *(b"content-transfer-encoding: base64", b"Content-Encoding: gzip", b"X-Any: at all", b"X:y"),
    *(b"Content-Disposition: attachment", b'Content-Disposition: form-data; name="file"'),
    *(b"Content-Type: multipart/mixed; boundary=b", b" folded: x", b"X : y", b"no colon", b"X: \0"),
)
_CONTENTS: Final = (
    *(b"", b"IMG_1234", b"image/jpeg", b"\r\n", b"\r", b"\n", b"--", b"\r\n--", b"\r\n\r\n", b"-"),
    *(b"\xc3\xa9", b"\r\r\n", b"\r\n-", bytes(range(128)), b"\xff\xfe\0", b"x" * 5000, b"\r" * 300),
)
_FRAGMENTS: Final = (
    *(b"\r\n", b"\r", b"\n", b"--", b"-", b" ", b"\t", b"\0", b'"', b"\\", b";", b":", b"\xff"),
    *(b"%b", b"%b--", b"\r\n%b", b"\r\n%b\r\n", b"\r\n%b--\r\n"),
)
"""What damage puts into a form, `%b` for the delimiter."""

_GOOD_HEADERS: Final = 7

Part = bytes
"""A part with the delimiter in front and the line end behind it, that of the next delimiter."""


@dataclass(frozen=True)
class SentForm:
    """A form and the size of the pieces in which it comes."""

    boundary: str
    body: bytes
    piece_size: int

    @property
    def has_preamble(self) -> bool:
        """Whether something stands before the first delimiter (RFC 2046 5.1.1)."""
        return not self.body.startswith(self._delimiter.removeprefix(b"\r\n"))

    @property
    def has_epilogue(self) -> bool:
        """Whether something stands behind the first closing delimiter."""
        closing = self._delimiter + b"--"
        behind = (b"\r\n" + self.body).partition(closing)[2]
        return behind not in (b"", b"\r\n")

    @property
    def has_padding(self) -> bool:
        """Whether a line that is a delimiter ends in blanks."""
        line = re.escape(self._delimiter) + rb"(?:--)?[ \t]"
        return re.search(line, b"\r\n" + self.body) is not None

    @property
    def _delimiter(self) -> bytes:
        return f"\r\n--{self.boundary}".encode()

    @property
    def content_type(self) -> str:
        """The header, with the boundary quoted as RFC 2045 5.1 asks."""
        return f'multipart/form-data; boundary="{self.boundary}"'


@dataclass(frozen=True)
class _Damage:
    """Something put in, taken out, doubled or changed somewhere."""

    kind: str
    place: int
    size: int
    fragment: bytes
    """What is put in, `%b` for the delimiter."""

    def done_to(self, body: bytes, delimiter: bytes) -> bytes:
        """The body, damaged."""
        at = self.place % (len(body) + 1)
        to = min(len(body), at + self.size)
        fragment = self.fragment.replace(b"%b", delimiter)
        match self.kind:
            case "insert":
                return body[:at] + fragment + body[at:]
            case "remove":
                return body[:at] + body[to:]
            case "double":
                return body[:to] + body[at:to] + body[to:]
            case "replace":
                return body[:at] + fragment + body[to:]
            case "unix":
                return body[:at] + body[at:].replace(b"\r\n", b"\n", 1)
            case _:
                return body.replace(delimiter, delimiter + b" \t", 1)


def _parts(delimiter: bytes, *, careful: bool) -> st.SearchStrategy[list[Part]]:
    near = (b"\r\n" + delimiter[:-1], delimiter[:-1], b"\n" + delimiter, b"\r" + delimiter)
    parameters = _MORE_PARAMETERS[:3] if careful else _MORE_PARAMETERS
    headers = st.lists(
        st.sampled_from(_HEADERS[:_GOOD_HEADERS] if careful else _HEADERS),
        max_size=2,
        # One that is there twice is soon refused by all.
        unique_by=lambda line: line.lower().partition(b":")[0],
    )

    def part(name: bytes, parameter: bytes, headers: list[bytes], content: bytes) -> Part:
        disposition = b"Content-Disposition: form-data; name=" + name + parameter
        head = b"\r\n".join([delimiter, disposition, *headers])
        return head + b"\r\n\r\n" + content + b"\r\n"

    one = st.builds(
        part,
        st.sampled_from(_NAMES[:5] if careful else _NAMES),
        st.sampled_from((*parameters, *[b""] * len(parameters))),
        headers,
        st.one_of(st.sampled_from(_CONTENTS), st.sampled_from(near), st.binary(max_size=120)),
    )
    return st.lists(one, min_size=1, max_size=6)


# All strategies are made once: hypothesis takes longer to make one than to draw from it.
_SOME_BOUNDARY: Final = st.sampled_from(_BOUNDARIES)
_CAREFUL: Final = st.booleans()
_PARTS: Final = {
    (boundary, careful): _parts(f"--{boundary}".encode(), careful=careful)
    for boundary in _BOUNDARIES
    for careful in (True, False)
}
_DAMAGES: Final = st.lists(
    st.builds(
        _Damage,
        kind=st.sampled_from(["insert", "remove", "double", "replace", "unix", "padding"]),
        place=st.integers(0, 2**16),
        size=st.integers(1, 40),
        fragment=st.sampled_from(_FRAGMENTS),
    ),
    min_size=1,
    max_size=3,
)
_PIECE_SIZES: Final = st.one_of(st.integers(1, 80), st.sampled_from([1009, 16 * 1024, 64 * 1024]))


@st.composite
def sent_forms(draw: st.DrawFn) -> SentForm:
    """Forms of up to six parts; about half of them as they should be, the rest damaged."""
    boundary, careful = draw(_SOME_BOUNDARY), draw(_CAREFUL)
    delimiter = f"--{boundary}".encode()
    body = b"".join(draw(_PARTS[boundary, careful])) + delimiter + b"--\r\n"
    for damage in [] if careful else draw(_DAMAGES):
        body = damage.done_to(body, delimiter)
    return SentForm(boundary, body, draw(_PIECE_SIZES))
