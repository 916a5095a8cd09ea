"""Names such as an attacker chooses: listed by hand, and varied at random."""

from collections.abc import Callable, Sequence
from random import Random
from typing import Final
from urllib.parse import quote

from torture.effort import Effort

_TRAVERSALS: Final = (
    *(".", "..", "...", "/", "\\", "//", "./", "../", "..\\", "/..", "~", "~root/.ssh/x"),
    *("../" * depth + "canary.txt" for depth in range(1, 13)),
    *("..\\" * depth + "canary.txt" for depth in (1, 4, 8)),
    *("....//....//canary.txt", "..;/canary.txt", ".//..//..//canary.txt", "a/../../canary.txt"),
    *("/etc/passwd", "/proc/self/environ", "/dev/null", "file:///etc/passwd", "//host/share/x"),
    *("%2e%2e%2fcanary.txt", "%2E%2E/canary.txt", "..%2fcanary.txt", "..%5ccanary.txt"),
    *("%252e%252e%252fcanary.txt", "%c0%ae%c0%ae%c0%afcanary.txt", "%e0%80%ae/", "%uff0e%uff0e/"),
    *("..%00/canary.txt", "canary.txt%00.jpg", "%", "%%", "%zz", "%0d%0aX-Evil: 1"),
    *("\uff0e\uff0e\uff0fcanary.txt", "\u2024\u2024/canary.txt", "..\u2215canary.txt", "..\u2044x"),
    *("escape/taken.txt", "../escape/taken.txt", "photo/escape/taken.jpg", "IMG_0001.jpg/x"),
)
_WINDOWS: Final = (
    *("C:\\Windows\\win.ini", "C:canary.txt", "\\\\host\\share\\x", "\\\\?\\C:\\x", "\\\\.\\COM1"),
    *("CON", "con.jpg", "NUL", "nul.txt", "AUX", "PRN.jpg", "COM1", "LPT9.heic", "CLOCK$"),
    *(
        "x.jpg::$DATA",
        "x.jpg:hidden",
        ":$I30:$INDEX_ALLOCATION",
        "x.jpg.",
        "x.jpg ",
        "x.jpg. .",
        " ",
    ),
    *('a<b>c:d"e|f?g*h', "desktop.ini", "x.lnk", "PROGRA~1"),
)
_CONTROLS: Final = (
    *("\0", "x\0.jpg", "\0/etc/passwd", "x\r\nX-Evil: 1", "x\n", "x\r", "\x1b[2J", "\x07", "\x7f"),
    *("\x85", "\x9b31m", "\t", "x\ty", "\v\f", "\x1c\x1d\x1e\x1f"),
    *("\u202egpj.exe", "\u2066x\u2069", "\u200b", "\u200d", "\ufeff", "\u2028", "\u2029", "\u00ad"),
)
_SCRIPTS: Final = (
    *("é.jpg", "e\u0301.jpg", "\u212b", "\u00c5", "A\u030a", "ﬁ.jpg", "ß", "ẞ", "İ", "ı", "K", "ſ"),
    *(
        "照片.HEIC",
        "фото",
        "صورة.jpg",
        "👩‍👧.jpg",
        "🏳️‍🌈",
        "\U0010ffff",
        "\ufffe",
        "\ufffd",
        "\ufffd\ufffd",
    ),
    *("Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A̴̵̜̰͔ͫ͗͢", "\ud800", "\udfffx", "x\udc80.jpg"),
)
_COMMANDS: Final = (
    *(
        "'; DROP TABLE users; --",
        "x' OR '1'='1",
        '") OR 1=1 --',
        "photos_user_2",
        "users",
        "%",
        "_",
    ),
    *("1; DELETE FROM tokens", "x'||(SELECT password_hash FROM users)||'", "\\'; --", "[tokens]"),
    *("$(touch taken)", "`touch taken`", "| touch taken", "; touch taken", "&& touch taken", "-rf"),
    *("--help", "${HOME}", "$HOME/x", "*", "?", "{a,b}", "<taken", ">taken", "!!", "#x", "x&y=z"),
    *("%s%s%s%n", "%x" * 20, "{0.__class__}", "{}", "{{7*7}}", "${jndi:ldap://x}", "<script>x"),
    *('x"; filename="y.exe', 'x"\r\n\r\nevil', "x; name=assetData", "x'; filename*=utf-8''y"),
    *("--", "--\r\n", "\r\n--x--\r\n", 'name="file"', "null", "None", "true", "0", "-1", "1e999"),
    *(".upload-0.part", ".chunks", ".chunks/1/0-x", "x.done", "IMG_0001.jpg", "IMG_99999.jpg"),
    *("storage/photo/2/x", "photo", "jwt_secret.key", "app.db", "app.db-wal", "../data/app.db"),
)
_LONG: Final = (
    "a" * 255,
    "a" * 256,
    "a" * 512,
    "a" * 513,
    "é" * 512,
    "照" * 600,
    "../" * 200,
    "." * 400,
)
_HAND_LISTED: Final = (*_TRAVERSALS, *_WINDOWS, *_CONTROLS, *_SCRIPTS, *_COMMANDS, *_LONG)

_ENDINGS: Final = (
    "",
    ".jpg",
    ".HEIC",
    ".jpg.exe",
    ".",
    " ",
    "/",
    "\0.jpg",
    ":x",
    "%00.jpg",
    ".мov",
)


_ALPHABETS: Final = (
    *(range(0x20, 0x7F), range(0x20, 0x7F), range(0xA0, 0x250), range(0x400, 0xD800)),
    *(range(0x100), range(0x110000)),
)
"""Each as often. The last two have controls, the last one lone surrogates: most that has these is
refused, and only what is taken can do harm."""
_SHORT: Final = 80
_LONGEST: Final = 600
"""Characters."""


def _any_text(chance: Random, most: int) -> str:
    alphabets = chance.choices(_ALPHABETS, k=2)
    size = chance.randint(1, most)
    return "".join(chr(chance.choice(chance.choice(alphabets))) for _ in range(size))


def _quoted(name: str) -> str:
    return quote(name, safe="", errors="surrogatepass")


def _variations(absolute: Sequence[str]) -> Sequence[Callable[[Random], str]]:
    """What makes another name of those that are listed."""
    listed = (*_HAND_LISTED, *absolute)
    # Chance is to draw the same whatever folder the test is in: those count as short.
    short = (*(name for name in _HAND_LISTED if len(name) < _SHORT), *absolute)

    def joined(chance: Random) -> str:
        return "".join(
            chance.choice(short) if chance.random() < 0.5 else _any_text(chance, 4)
            for _ in range(chance.randint(2, 6))
        )

    return (
        lambda chance: chance.choice(listed) + chance.choice(_ENDINGS),
        joined,
        lambda chance: _any_text(chance, 60),
        lambda chance: (chance.choice(short) * chance.randint(2, 200))[:_LONGEST],
        lambda chance: _quoted(chance.choice(short)),
        lambda chance: _quoted(_quoted(chance.choice(short))),
    )


def hostile_names(effort: Effort, count: int, absolute: tuple[str, ...]) -> list[str]:
    """`count` different names: those of the list, shuffled, then what chance makes of them.

    `absolute` are paths that nothing may touch; lone surrogates are among the characters.
    """
    chance = effort.chance("names")
    names = [*_HAND_LISTED, *absolute]
    chance.shuffle(names)
    known = dict.fromkeys(names[:count])
    variations = _variations(absolute)
    while len(known) < count:
        known[chance.choice(variations)(chance)] = None
    return list(known)
