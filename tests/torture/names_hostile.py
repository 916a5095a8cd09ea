"""Names such as an attacker chooses: listed by hand, and varied by hypothesis."""

from typing import Final
from urllib.parse import quote

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

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


def _varied(absolute: tuple[str, ...]) -> st.SearchStrategy[str]:
    listed = st.sampled_from((*_HAND_LISTED, *absolute))
    short = st.sampled_from([name for name in (*_HAND_LISTED, *absolute) if len(name) < 80])
    any_character = st.characters(exclude_categories=[])
    joined = st.lists(st.one_of(short, st.text(any_character, max_size=4)), min_size=2, max_size=6)
    return st.one_of(
        st.builds(lambda name, ending: name + ending, listed, st.sampled_from(_ENDINGS)),
        joined.map("".join),
        st.text(any_character, min_size=1, max_size=60),
        st.builds(lambda name, times: (name * times)[:600], short, st.integers(2, 200)),
        short.map(lambda name: quote(name, safe="", errors="surrogatepass")),
        short.map(lambda name: quote(quote(name, safe="", errors="surrogatepass"), safe="")),
    )


def hostile_names(effort: Effort, count: int, absolute: tuple[str, ...]) -> list[str]:
    """`count` different names: those of the list, shuffled, then what hypothesis makes of them.

    `absolute` are paths that nothing may touch; lone surrogates are among the characters.
    """
    names = [*_HAND_LISTED, *absolute]
    effort.chance("names").shuffle(names)
    known = dict.fromkeys(names[:count])

    @seed(effort.seed)
    @settings(
        max_examples=2 * count,  # it may say the same twice
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(_varied(absolute))
    def collect(name: str) -> None:
        if name and len(known) < count:
            known[name] = None

    collect()
    assert len(known) == count, f"only {len(known)} different names"
    return list(known)
