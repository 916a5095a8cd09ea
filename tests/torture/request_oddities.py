"""What can be wrong, odd or dangerous in a request, piece by piece."""

from typing import Final

CRLF: Final = b"\r\n"
SMUGGLED: Final = b"GET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n"
"""What an attacker would hide from us and have Immich see."""

ODD_BYTES: Final = (
    *(bytes([value]) for value in (0, 1, 8, 9, 10, 11, 12, 13, 27, 32, 127, 128, 133, 160, 255)),
    b"\r\n", b"\n\r", b"\r\r\n", b"\n\n", b"\r\n\r\n", b"\r\n ", b"\r\n\t", b"\n ", b"\r ",
    b"\xc0\x8d\xc0\x8a", b"\xc0\xae", b"\xe0\x80\x8a", b"\xed\xa0\x80", b"\xed\xb0\x80",
    b"\xef\xbb\xbf", b"\xe2\x80\xa8", b"\xc4\x8a", b"\xc4\x8d", b"\xf4\x90\x80\x80", b"%0d%0a",
    b":", b",", b";", b'"', b"\\", SMUGGLED, b"\r\n" + SMUGGLED,
)  # fmt: skip
"""Control bytes, line ends, and UTF-8 that is overlong, half a surrogate,
or folds to a line end."""

LENGTHS: Final = (
    b"Content-Length: +%d", b"Content-Length: -%d", b"Content-Length: 0x%x",
    b"Content-Length: %d,", b"Content-Length: %d, %d", b"Content-Length: %d,%d",
    b"Content-Length: 0, %d", b"Content-Length: %d\r\nContent-Length: %d",
    b"Content-Length: %d\r\nContent-Length: 0", b"Content-Length: 0\r\nContent-Length: %d",
    b"Content-Length: %d\r\ncontent-length: 1", b"Content-Length: 0%d",
    b"Content-Length: 000000000000000000000000000000%d", b"Content-Length: %d.0",
    b"Content-Length: %de0", b"Content-Length: %d;", b"Content-Length: %d a",
    b'Content-Length: "%d"', b"Content-Length: ", b"Content-Length:", b"Content-Length: \x00%d",
    b"Content-Length: 1%d", b"Content-Length: 99999999999999999999", b"Content-Length: 0",
    b"Content-Length: 18446744073709551616", b"Content-Length: 9223372036854775808",
    b"Content-Length: 1_0", b"Content-Length: \xd9\xa3", b"Content-Length: \xb2",
    b"Content-Length: NaN", b"Content-Length: \x0b%d", b"Content-Length: %d\x0c",
    b"Content-Length: %d\x00", b"Content-Length: %d\t ", b"Content-Length:%d",
    b"Content-Length:\t%d", b"CONTENT-length: %d", b"Content-Length : %d", b"Content-Length\t: %d",
    b"Content-Length\x00: %d", b"Content-Length\x0b: %d", b"\xef\xbb\xbfContent-Length: %d",
    b"Content_Length: %d", b"Content-Length:\r\n %d", b"Content-Length: %d\r\n 0",
    b"X: x\nContent-Length: %d", b"X: x\rContent-Length: %d", b"X: x\r\n\tContent-Length: %d",
    b"Content-Length: %d\nX: x",
)  # fmt: skip
"""Fields of their own, `%d` and `%x` being the length of the body."""

CODINGS: Final = (
    b"chunked", b"CHUNKED", b"chunKed", b" chunked", b"\tchunked\t", b"xchunked", b"chunkedx",
    b"chunked,", b",chunked", b"chunked, chunked", b"identity", b"identity, chunked", b"gzip",
    b"chunked, identity", b"gzip, chunked", b"chunked, gzip", b"chunked;q=1", b'"chunked"', b"",
    b"chunked\x00", b"\x0bchunked", b"chunked\x0c", b"ch\x00unked", b"chunk\xc3\xa9d",
    b"chunked a", b"\r\n chunked", b"chunked\r\n ", b"chunked\r\nTransfer-Encoding: chunked",
    b"\xa0chunked", b"chunked\r\nTransfer-Encoding: gzip", b"gzip\r\nTransfer-Encoding: chunked",
    b"\\chunked", b"identity\r\nTransfer-Encoding: chunked", b"\r\nTransfer-Encoding: chunked",
)  # fmt: skip
"""Values of `Transfer-Encoding`."""

CODING_NAMES: Final = (
    *[b"Transfer-Encoding: "] * 6, b"Transfer-Encoding:", b"transfer-encoding: ",
    b"TRANSFER-ENCODING: ", b"Transfer-Encoding : ", b"Transfer-Encoding\t: ",
    b"Transfer_Encoding: ", b" Transfer-Encoding: ", b"Transfer-Encoding\x00: ",
    b"X: x\nTransfer-Encoding: ", b"X: x\rTransfer-Encoding: ", b"Transfer\xadEncoding: ",
)  # fmt: skip

CHUNK_SIZES: Final = (
    b"%x", b"%X", b"0%x", b"00000000000000000000000000%x", b"+%x", b"-%x", b"0x%x", b"%x_", b"_%x",
    b" %x", b"\t%x", b"%x ", b"%x\t ", b"%xg", b"g%x", b"%x.0", b"%x,%x", b'"%x"', b"", b"\x00%x",
    b"%x\x00", b"%x\x0b", b"1%x", b"ffffffffffffffff", b"1000000000000000%x",
    b"10000000000000000%x", b"8000000000000000", b"7fffffffffffffff", b"fffffff%x", b"-1",
    b"\xd9\xa3", b"%x;", b"%x;;", b"%x;a", b"%x;a=b", b"%x ; a = b", b'%x;a="b;c"', b'%x;a="b\r\n',
    b'%x;a="\r\n0\r\n\r\n"', b"%x;a\nb", b"%x;a\rb", b"%x;\r", b"%x;\n", b"%x\n", b"%x\r",
    b"%x\r\r\n", b"%x\n\r", b"%x;a\x00", b"%x;\xff=\x80", b"%x a", b"%x a=b", b"%x;" + b"a" * 4000,
    b"%x;" + b"a" * 20_000,
)  # fmt: skip
"""Lines before a chunk, `%x` being its size."""

CHUNK_ENDS: Final = (
    b"", b"\n", b"\r", b"\n\r", b"\r\r\n", b"\r\n\r\n", b"X\r\n", b"XX", b" \r\n", b"\x00\r\n",
)  # fmt: skip
"""In place of the line end behind a chunk."""

LAST_CHUNKS: Final = (
    b"", b"0", b"0\r\n", b"0\r\n\r", b"0\n\n", b"0\r\n\n", b"0\n\r\n", b"0\r\n\r\r\n", b"\r\n",
    b"00\r\n\r\n", b"0000000000000000000000\r\n\r\n", b"+0\r\n\r\n", b"-0\r\n\r\n", b"0x0\r\n\r\n",
    b"0;a=b\r\n\r\n", b'0;a="\r\n\r\n"\r\n\r\n', b"0 \r\n\r\n", b"0\r\n \r\n\r\n",
    b"0\r\nX\r\n\r\n", b"0\r\nX: y\r\n\r\n", b"0\r\nX: y\r\n z\r\n\r\n",
    b"0\r\nX: y\nZ: z\r\n\r\n", b"0\r\nContent-Length: 40\r\n\r\n",
    b"0\r\nTransfer-Encoding: chunked\r\n\r\n", b"0\r\nHost: evil\r\n\r\n",
    b"0\r\nAuthorization: Bearer x\r\nX-Forwarded-For: 9.9.9.9\r\n\r\n", b"0\r\nX : y\r\n\r\n",
    b"0\r\n: y\r\n\r\n", b"0\r\nX: \x00\r\n\r\n", b"0\r\nX: a\rb\r\n\r\n", b"0\r\n" + SMUGGLED,
    b"0\r\n\r\n" + SMUGGLED, b"0\r\nX: " + b"y" * 40_000 + b"\r\n\r\n",
    b"0\r\n" + b"X: y\r\n" * 1500 + b"\r\n",
)  # fmt: skip
"""What ends a chunked body, or does not; with trailers."""

FIELDS: Final = (
    b" folded", b"\tfolded", b"X: a\r\n b", b"X: a\r\n\tContent-Length: 5", b"X: a\rb", b"X: a\nb",
    b"X: a\r", b"X: a\n", b"X: a\x00b", b"X: \x7f", b"X: \x01", b"X", b": a", b":", b"", b" : a",
    b"X : a", b"X\t: a", b"X\r: a", b"X\n: a", b"(X): a", b"X@: a", b'"X": a', b"X\xc3\xa9: a",
    b"X;: a", b"X\xa0: a", b"X: \xc3\xa9", b"X: \xff", b"X:\xa0a\xa0", b"X:", b"X: \t ", b"X::a",
    b"X: a: b", b"X: " + b"a" * 15_000, b"X: " + b"a" * 31_000, b"X: " + b"a" * 33_000,
    b"a" * 40_000 + b": a", CRLF.join([b"X: a"] * 100), CRLF.join([b"X: a"] * 1100),
    CRLF.join([b"X: " + b"a" * 900] * 40), b"Host: other", b"host: bridge", b"Host:",
    b"Host: a, b", b"Host : other", b"Host\x00: other", b"Connection: close, content-length",
    b"Connection: content-length, transfer-encoding, host", b"Connection: close",
    b"Connection: keep-alive", b"Connection: close, keep-alive",
    b"Connection: x-forwarded-for, x-api-key, cookie", b"Connection: upgrade", b"Connection: ,,,",
    b"Connection: connection", b"Connection: te\x00", b"Connection:\r\nConnection: close",
    b"Keep-Alive: timeout=5", b"Proxy-Connection: keep-alive", b"TE: trailers", b"Trailer: Host",
    b"Upgrade: websocket",
    b"Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AA",
    b"Upgrade: websocket\r\nConnection: Upgrade",
    b"Upgrade: websocket, h2c\r\nConnection: Upgrade", b"Upgrade: TLS/1.0\r\nConnection: Upgrade",
    b"Upgrade: \xff\r\nConnection: Upgrade", b"Upgrade: tcp\r\nConnection: Upgrade",
    b"Upgrade: WebSocket\r\nConnection: keep-alive, Upgrade", b"Expect: 100-continue",
    b"Expect: 100-Continue", b"Expect: 200-ok", b"Expect: ", b"Expect: 100-continue, 100-continue",
    b"Expect: 100-continue\r\nExpect: 100-continue", b"X-Forwarded-For: 9.9.9.9",
    b"x-forwarded-for : 9.9.9.9", b"X-Forwarded-Host: evil",
    b"X-Forwarded-For: 9.9.9.9\r\nX-Forwarded-For: 8.8.8.8", b"X_Forwarded_For: 9.9.9.9",
    b"Content-Encoding: gzip", b"Sec-WebSocket-Key1: 1", b"X-Request-Id: a\tb", b"Max-Forwards: 0",
    b"X-HTTP-Method-Override: DELETE", b"Cookie: a=b; ;;=\xff", b"Range: bytes=0-\xd9\xa3",
)  # fmt: skip
"""Lines of a head."""

HOSTS: Final = (
    b"Host: evil", b"Host: user@evil", b"Host: evil:99999", b"Host: a b", b"Host: [::1",
    b"Host: /", b"Host:", b"Host: bridge\r\nHost: evil", b"Host: \xc3\xa9", b"Host: evil\x00",
    b"host:bridge", b"X: x\nHost: bridge", b"Host: a\r\n b", b"Hos\x00t: a", b"X-Host: a",
    b"Host: http://evil/",
)  # fmt: skip

LINES: Final = (
    b"%b  %b %b", b"%b %b  %b", b"%b\t%b\t%b", b" %b %b %b", b"%b %b %b ", b"%b %b %b\t",
    b"%b%b %b", b"%b %b%b", b"\r\n%b %b %b", b"\r\n\r\n\r\n%b %b %b", b"\n%b %b %b", b"\r%b %b %b",
    b"\x00%b %b %b", b"%b %b %b\r", b"%b %b %b\x00", b"%b\x00 %b %b", b"%b %b a %b",
    b"%b %b\x0b%b", b"%b \r%b %b", b"%b %b\n%b", b"%b %b\r\n%b", b"%b: %b %b",
    b"%b %b %b\r\n folded",
)  # fmt: skip
"""Method, target and version put together."""

VERSIONS: Final = (
    b"HTTP/1.0", b"HTTP/1.0", b"HTTP/0.9", b"HTTP/1.2", b"HTTP/2.0", b"HTTP/2", b"HTTP/3", b"",
    b"HTTP/1", b"HTTP/1.1.1", b"HTTP/01.1", b"HTTP/1.10", b"HTTP/11.1", b"http/1.1", b"HTTP /1.1",
    b"HTTP/ 1.1", b"HTTP/1,1", b"HTTP/-1.1", b"HTTPS/1.1", b"RTSP/1.0", b"ICE/1.0", b"HTTP/1.\xb9",
    b"HTTP/1.1HTTP/1.1",
)  # fmt: skip

METHODS: Final = (
    b"get", b"GeT", b"FROB", b"G", b"GET\x00", b"", b"CONNECT", b"TRACE", b"PRI", b"DELETE",
    b"PATCH", b"PROPFIND", b"M-SEARCH", b"SOURCE", b"QUERY", b"G\xcb\x88T", b"GET,", b"(GET)",
    b"OPTIONS", b"HEAD", b"DESCRIBE", b"SETUP", b"HTTP/1.1", b"A" * 300,
)  # fmt: skip

TARGETS: Final = (
    b"*", b"/*", b"", b"?", b"a", b"../a", b"//evil/a", b"///", b"/a/../b", b"/a/./b",
    b"/%2e%2e/b", b"/a//b", b"http://evil/a", b"https://evil/a?b", b"HTTP://evil",
    b"http://evil?a", b"http://user:pw@evil/a", b"http://evil:99999/a", b"http://evil:0/a",
    b"http:///a", b"http:/a", b"http:a", b"ftp://evil/a", b"http://[::1]/a", b"http://[::1/a",
    b"http://a b/", b"http://evil\\@bridge/a", b"ws://evil/socket", b"evil:443", b"bridge:80",
    b"[::1]:443", b"/\x00", b"/\x01", b"/\x7f", b"/\xff", b"/\xc3\xa9", b"/\xc0\xae",
    b"/\xed\xa0\x80", b"/%", b"/%zz", b"/%00", b"/%0d%0aX: y", b"/%c0%ae%c0%ae/", b"/a#b", b"/#",
    b"/a?b#c", b"/a?b?c", b"/a;b", b"/a b", b"/a\tb", b'/"', b"/<>", b"/{}", b"/|", b"/^", b"/`",
    b"/\\", b"/[", b"/@evil", b"/" + b"a" * 8000, b"/?" + b"a" * 31_000, b"/" + b"a" * 33_000,
    b"/\xe2\x80\xae", b"/%u0041", b"/\r", b"/\n", b"/api/assets/%62ackground",
    b"/api//assets/background", b"/api/x/../assets/background", b"/%6Cogin",
)  # fmt: skip
