"""Tokens that must not be taken: what can be made of a genuine one, and without one."""

import base64
import hashlib
import hmac
import json
import random
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final


def _each(name: str, *values: Any) -> list[dict[str, Any]]:
    return [{name: value} for value in values]


_FAR: Final = 4_000_000_000
_INFINITE: Final = float("inf")
_UNSIGNED: Final = ("none", "None", "NONE", "nOnE", "none ", " none", "non\u0435", "", None)
_OTHER_ALGORITHMS: Final[tuple[Any, ...]] = (
    *("HS384", "HS512", "hs256", "Hs256", "HS-256", "HS256 ", "HS1", "HS224", "HMAC", "SHA256"),
    *("RS256", "RS384", "RS512", "PS256", "ES256", "ES256K", "ES512", "EdDSA", "Ed25519"),
    *("A256KW", "dir", "A256GCM", "PBES2-HS256+A128KW", ["HS256"], {"HS256": 1}, 0, 256, True, []),
)
_KEYS: Final = (
    *(b"", b"\0", b"secret", b"password", b"changeme", b"your-256-bit-secret", b"key", b"jwt"),
    *(b"jwt_secret", b"jwt_secret.key", b"immich", b"immich-bridge", b"admin", b"0" * 32),
    *(b"\0" * 32, b"\xff" * 32, b"your-secret-key", b"supersecret", b"qwerty", b"undefined"),
)
_HEADERS: Final = (
    *_each("kid", "", "../../dev/null", "/dev/null", "0", "' UNION SELECT 'x", "|id", None, 0, []),
    *_each("kid", {"k": "x"}, "data/jwt_secret.key", "x" * 1000),
    *({name: "http://127.0.0.1:1/keys"} for name in ("jku", "x5u", "url", "iss")),
    {"jwk": {"kty": "oct", "k": base64.urlsafe_b64encode(b"x" * 32).decode().rstrip("=")}},
    *_each("x5c", [], ["MIIB"], "MIIB"),
    *_each("typ", "JWE", "at+jwt", "", None, 1),
    *({"cty": "JWT"}, {"enc": "A256GCM"}, {"zip": "DEF"}, {"x5t": "AAAA"}, {"nonce": "x"}),
)
_CRITICAL: Final[tuple[dict[str, Any], ...]] = (
    *(
        {"x": 1, **crit}
        for crit in _each("crit", ["x"], ["exp", "x"], "x", [], None, [1], {"x": 1})
    ),
    {"crit": ["b64"], "b64": False},
)
_CLAIMS: Final = (
    *_each("exp", 0, 1, -1, -_FAR, "tomorrow", [_FAR], {}, _INFINITE, float("nan"), None),
    *_each("iat", _FAR, "yesterday", [], {}, _INFINITE, -_INFINITE, None),
    *_each("nbf", _FAR, "tomorrow", [], {}, _INFINITE),
    *_each("user_id", 0, -1, "1", 1.0, True, [1], {}, 2**63, 10**400, None),
    *_each("username", 1, None, ["admin"], {}, True),
    *_each("jti", 1, None, [], {}),
)
_PAYLOADS: Final = (
    *(b"", b"null", b"[]", b'"x"', b"1", b"{", b"{}", b"{}{}", b"\xff\xfe", b"\0", b"true", b"NaN"),
    *(b"[" * 3000, b'{"a":' * 600 + b"1" + b"}" * 600, b'{"exp":1' + b"0" * 500 + b"}"),
)
_SPACES: Final = "\u00a0\u0085\u2028\u2029\u3000\u1680\u2003\ufeff"
_ALPHABET: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


@dataclass(frozen=True)
class Forgery:
    """A token, and whether it is to be put into the server's list of those that count.

    Nobody from outside gets a token into that list. Where one is there, nothing but the look
    at the token itself can refuse it; variants of a genuine one must stay as unlisted as they are.
    """

    what: str
    text: str
    listed: bool = True


class Forger:
    """Makes forgeries from a genuine token and, for the worst of them, the key itself."""

    def __init__(self, genuine: str, key: bytes, chance: random.Random) -> None:
        self._genuine = genuine
        self._key = key
        self._chance = chance
        self._head, self._claims, self._signature = genuine.split(".")
        self._values: dict[str, Any] = json.loads(_decoded(self._claims))

    def all(self) -> list[Forgery]:
        """Every forgery but the flipped bits."""
        return [
            *self._unsigned(),
            *self._of_other_algorithms(),
            *self._of_other_keys(),
            *self._with_headers(),
            *self._with_claims(),
            *self._with_payloads(),
            *self._with_other_signatures(),
            *self._variants(),
            *self._other_forms(),
        ]

    def flipped(self, bits: int) -> Iterator[Forgery]:
        """The genuine token with one bit of one byte turned, `bits` times for each byte."""
        for at, byte in enumerate(self._genuine.encode()):
            for bit in self._chance.sample(range(8), bits):
                turned = byte ^ 1 << bit
                if turned <= 0x20 or turned == 0x7F:
                    continue  # no header can hold it
                text = bytearray(self._genuine.encode())
                text[at] = turned
                what = f"bit {bit} of byte {at}"
                yield Forgery(what, text.decode(errors="surrogateescape"), listed=False)

    def _signed(
        self, head: Mapping[str, Any], claims: object, key: bytes, hashed: str = "sha256"
    ) -> str:
        payload = claims if isinstance(claims, bytes) else json.dumps(claims).encode()
        text = f"{_encoded(json.dumps(head).encode())}.{_encoded(payload)}"
        return f"{text}.{_encoded(hmac.digest(key, text.encode(), hashed))}"

    def _head_with(self, **more: Any) -> dict[str, Any]:
        return {"alg": "HS256", "typ": "JWT", **more}

    def _claims_with(self, **more: Any) -> dict[str, Any]:
        claims = {**self._values, "exp": _FAR, **more}
        return {name: value for name, value in claims.items() if value is not None}

    def _unsigned(self) -> Iterator[Forgery]:
        for algorithm in _UNSIGNED:
            head = {"alg": algorithm, "typ": "JWT"}
            signed = self._signed(head, self._claims_with(), self._key)
            text = signed.rpartition(".")[0]
            for signature in ("", "AA", self._signature, signed.rpartition(".")[2]):
                yield Forgery(f"alg {algorithm!r}", f"{text}.{signature}")
        yield Forgery("no alg", self._signed({"typ": "JWT"}, self._claims_with(), self._key))

    def _of_other_algorithms(self) -> Iterator[Forgery]:
        for algorithm in _OTHER_ALGORITHMS:
            head = {"alg": algorithm, "typ": "JWT"}
            hashed = {"HS384": "sha384", "HS512": "sha512"}.get(str(algorithm), "sha256")
            # As if the key were a public one, which everybody may know.
            text = self._signed(head, self._claims_with(), self._key, hashed)
            yield Forgery(f"alg {algorithm!r}", text)

    def _of_other_keys(self) -> Iterator[Forgery]:
        near = (
            *(self._key[::-1], self._key[:-1], self._key + b"x", self._key.hex().encode()),
            *(hashlib.sha256(self._key).digest(), base64.b64encode(self._key), self._key[:16]),
            *(self._chance.randbytes(32) for _ in range(10)),
        )
        for key in (*_KEYS, *near):
            text = self._signed(self._head_with(), self._claims_with(), key)
            yield Forgery("another key", text)

    def _with_headers(self) -> Iterator[Forgery]:
        for more in _HEADERS:
            for key in (b"x" * 32, b""):
                text = self._signed(self._head_with(**more), self._claims_with(), key)
                yield Forgery(f"header {more}"[:60], text)
        for more in _CRITICAL:  # RFC 7515 4.1.11: refused whoever has signed it
            text = self._signed(self._head_with(**more), self._claims_with(), self._key)
            yield Forgery(f"critical {more}", text)

    def _with_claims(self) -> Iterator[Forgery]:
        now = int(time.time())
        for claims in (*_CLAIMS, {"exp": now}, {"exp": now - 1}, {"iat": now + 600}):
            text = self._signed(self._head_with(), self._claims_with(**claims), self._key)
            yield Forgery(f"claims {claims}"[:60], text)
        for claims in (
            {},
            {"user_id": 2},
            {"exp": str(_FAR)},
            {"exp": 4e9},
            {"jti": "x"},
            {"x": 1},
        ):
            text = self._signed(self._head_with(), self._claims_with(**claims), self._key)
            yield Forgery(f"not listed {claims}", text, listed=False)

    def _with_payloads(self) -> Iterator[Forgery]:
        text = json.dumps(self._claims_with())
        twice = f'{text[:-1]}, "exp": 1}}'.encode()
        for payload in (*_PAYLOADS, twice):
            forged = self._signed(self._head_with(), payload, self._key)
            yield Forgery(f"payload {payload[:20]!r}", forged[:3500])
        # Python reads them as JSON, and so only the list can tell that they are not from us.
        for payload in (text.encode("utf-16"), b"\xef\xbb\xbf" + text.encode()):
            forged = self._signed(self._head_with(), payload, self._key)
            yield Forgery(f"payload {payload[:20]!r}", forged, listed=False)

    def _with_other_signatures(self) -> Iterator[Forgery]:
        text = f"{self._head}.{self._claims}"
        for length in range(len(self._signature)):
            yield Forgery(f"{length} of the signature", f"{text}.{self._signature[:length]}")
        for more in ("A", "AA", "AAAA", self._signature):
            yield Forgery("a longer signature", f"{text}.{self._signature}{more}", listed=False)
        raised = _encoded(json.dumps(self._claims_with(user_id=2)).encode())
        yield Forgery("other claims", f"{self._head}.{raised}.{self._signature}")

    def _variants(self) -> Iterator[Forgery]:
        """Texts that a lenient reader would decode to the very same token."""
        genuine = self._genuine
        last = _ALPHABET.index(genuine[-1])
        for unused in (1, 2, 3):  # 43 digits hold two bits more than 32 bytes need
            other = _ALPHABET[last ^ unused]
            yield Forgery("unused bits", genuine[:-1] + other, listed=False)
        for more in ("=", "==", "%3D", "!", "*", ".", "..", ",", ";", '"', "\\", "\u00e9"):
            yield Forgery("something behind", genuine + more, listed=False)
            yield Forgery("something in front", more + genuine, listed=False)
            at = self._chance.randrange(1, len(genuine))
            yield Forgery("something within", genuine[:at] + more + genuine[at:], listed=False)
        for space in _SPACES:
            yield Forgery("a space behind", genuine + space, listed=False)
            yield Forgery("a space in front", space + genuine, listed=False)
        padded = ".".join(part + "=" * (-len(part) % 4) for part in genuine.split("."))
        changed = (
            *(padded, genuine.upper(), genuine.lower(), genuine.swapcase(), genuine[::-1]),
            *(
                genuine.replace(".", "%2E"),
                genuine.replace(".", "\uff0e"),
                genuine.replace(".", ""),
            ),
            *(f"{genuine},{genuine}", f'"{genuine}"', f"'{genuine}'", f"<{genuine}>", genuine[1:]),
            *(genuine.replace("-", "+").replace("_", "/") + "=", f"Bearer:{genuine}"),
        )
        for text in changed:
            yield Forgery("written otherwise", text, listed=False)

    def _other_forms(self) -> Iterator[Forgery]:
        parts = {"payload": self._claims, "protected": self._head, "signature": self._signature}
        compact = json.dumps(parts, separators=(",", ":"))
        jwe = ".".join(
            _encoded(part) for part in (b'{"alg":"dir","enc":"A256GCM"}', b"", b"iv", b"x", b"t")
        )
        digest = hashlib.sha256(self._genuine.encode())
        for text in (
            *(compact, _encoded(compact.encode()), jwe, f"{self._genuine}.AAAA.AAAA"),
            *(
                ".",
                "..",
                "...",
                "a.b.c",
                "null",
                "true",
                "0",
                "[object",
                "undefined",
                "{}",
                "*",
                "%",
            ),
            *(self._head, self._claims, self._signature, f"{self._head}.{self._claims}"),
            # What is stored in a token's place.
            *(digest.hexdigest(), base64.b64encode(digest.digest()).decode(), self._values["jti"]),
            *(
                "x" * 4096,
                "x" * 4097,
                "x" * 20_000,
                f"{self._head}.{'A' * 15_000}.{self._signature}",
            ),
        ):
            yield Forgery("no such form", text, listed=False)


def _encoded(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def _decoded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
