"""The bridge connects to its Immich and to nobody else, whatever a client or Immich itself says.

A trap listens beside Immich, and strace sees each connection that the process asks for, and each
file that a look-up of a name would open.
"""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import pytest

from backup_wing import settings_in
from debian_tools import INSTALL_SECONDS
from node_tools import missing_reason
from raw_upload import KEY, NAME, ROUTE, jpeg
from torture.effort import Effort
from torture.node_upstream import NodeUpstream
from torture.request_corpus import TO_IMMICH, conversation
from torture.request_runner import BridgeProcess, Runner, StartProcess
from tracing import traced
from wire import Message, Peer, ScriptedUpstream, answer, connect, recording_upstream, request

pytestmark = pytest.mark.timeout(INSTALL_SECONDS + 60)

_PROMISE: Final = "5 outbound"
_ADDRESS: Final = re.compile(
    r"(?:connect|sendto|sendmsg)\(.*?sa_family=(AF_\w+)"
    r"(?:, sin_port=htons\((\d+)\), sin_addr=inet_addr\(\"([\d.]+)\"\))?"
)
_OPENED: Final = re.compile(r'openat\([^"]*"([^"]+)"')
_LOOKED_INTO: Final = re.compile(r"netrc|hosts|resolv|nsswitch|gai\.conf")
"""Files with credentials for servers, and those that a name is looked up in."""

_REDIRECTS: Final = (301, 302, 303, 307, 308)
_PROXY_VARIABLES: Final = (
    *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "WS_PROXY"),
    *("http_proxy", "https_proxy", "all_proxy", "ws_proxy"),
)


async def _hang_up(_: Peer) -> None:
    """What a trap does with whoever falls into it."""


@pytest.fixture
async def trap() -> AsyncIterator[ScriptedUpstream]:
    """A server to which nobody may connect."""
    async with ScriptedUpstream(_hang_up) as trap:
        yield trap
        assert trap.connections == 0


class _Watched:
    """A bridge under strace."""

    def __init__(self, bridge: BridgeProcess, trace: Path, immich: str) -> None:
        self.bridge = bridge
        self._trace = trace
        parts = urlsplit(immich)
        self._immich = ("AF_INET", str(parts.port), parts.hostname)

    def connections_to_immich(self) -> int:
        """How many there were. Fails if there was one to anybody else, or a file looked into."""
        trace = self._trace.read_text()
        addresses = [found.groups() for found in _ADDRESS.finditer(trace)]
        assert {*addresses} == {self._immich}
        opened = [path for path in _OPENED.findall(trace) if _LOOKED_INTO.search(path)]
        assert opened == []
        return len(addresses)


@asynccontextmanager
async def _watched(
    start_process: StartProcess, immich: str, trap: ScriptedUpstream, folder: Path
) -> AsyncIterator[_Watched]:
    """A bridge before `immich`, in an environment that would have it go through the trap."""
    netrc = folder / ".netrc"
    netrc.write_text("machine 127.0.0.1 login user password trapped\n")
    netrc.chmod(0o600)
    environment = dict.fromkeys(_PROXY_VARIABLES, trap.url)
    environment |= {"NO_PROXY": "", "no_proxy": "", "HOME": str(folder), "NETRC": str(netrc)}
    settings = settings_in(folder) | environment | {"IMMICH_SERVER_URL": immich}
    bridge = await start_process(**settings)
    trace = folder / "trace"
    calls = "trace=connect,sendto,sendmsg,openat"
    watched = _Watched(bridge, trace, immich)
    async with traced(bridge.process.pid, trace, "-e", calls, "-s", "256"):
        yield watched


def _requests(trap: str) -> list[bytes]:
    """Requests that name the trap in every way there is."""
    elsewhere = urlsplit(trap).netloc
    targets = [
        f"{trap}/a",
        f"{trap}",
        f"http://user:password@{elsewhere}/a",
        f"https://{elsewhere}/a?b=c",
        f"ws://{elsewhere}/api/socket.io/?transport=websocket",
        "http://elsewhere.example/a",
        "http://[::1]/a",
        f"//{elsewhere}/a",
        f"/{trap}/a",
        f"/a?url={trap}",
        f"/@{elsewhere}/a",
    ]
    hosts = [elsewhere, f"user@{elsewhere}", "elsewhere.example", "elsewhere.example:443", "[::1]"]
    fields = [
        ("X-Forwarded-Host", elsewhere),
        ("X-Forwarded-Server", elsewhere),
        ("X-Forwarded-Proto", "https"),
        ("Forwarded", f"for=1.2.3.4;host={elsewhere}"),
        ("X-Host", elsewhere),
        ("X-Original-URL", f"{trap}/a"),
        ("X-Rewrite-URL", f"{trap}/a"),
        ("Referer", f"{trap}/a"),
        ("Origin", trap),
        ("Proxy-Connection", "keep-alive"),
    ]
    upgrade = ("Connection", "Upgrade"), ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==")
    sent = [request(method, target) for target in targets for method in ("GET", "DELETE")]
    sent += [request("POST", target, body=b"body") for target in targets]
    sent += [request("GET", target, *upgrade, ("Upgrade", "websocket")) for target in targets]
    sent += [request("GET", target, *upgrade, ("Upgrade", "h2c")) for target in targets]
    sent += [request("GET", "/a", host=host) for host in hosts]
    sent += [request("GET", "/a", field) for field in fields]
    sent += [request("CONNECT", elsewhere), request("GET", "/ready")]
    return sent


def _reply(trap: str, message: Message) -> bytes:
    """What Immich answers: a redirect to the trap where it is asked for one, or hints at it."""
    hints = (("Alt-Svc", f'h2="{urlsplit(trap).netloc}"'), ("Refresh", f"0; url={trap}/a"))
    links = (("Link", f"<{trap}/a>; rel=preload"), ("Content-Location", f"{trap}/a"))
    asked = message.header("X-Redirect")
    if asked is not None:
        return answer(f"{asked} Elsewhere", ("Location", f"{trap}/a"), *hints)
    return answer("200 OK", *hints, *links)


async def test_no_request_leads_elsewhere(
    trap: ScriptedUpstream, start_process: StartProcess, tmp_path: Path, effort: Effort
) -> None:
    seen: list[Message] = []
    async with (
        recording_upstream(seen, lambda message: _reply(trap.url, message)) as immich,
        _watched(start_process, immich.url, trap, tmp_path) as watched,
    ):
        sent = _requests(trap.url)
        for raw in sent:
            async with connect(watched.bridge.url) as peer:
                await peer.send(raw)
                assert (await peer.read_answer()).status in (200, 400, 404, 501)
        host = urlsplit(immich.url).netloc
    made = watched.connections_to_immich()
    assert made == immich.connections
    assert len(seen) > 50
    for message in seen:
        assert message.all("Host") == [host]
        assert message.all("Authorization") == message.all("Proxy-Authorization") == []
        assert message.target.startswith(b"/")
    effort.figure(
        _PROMISE,
        f"{len(sent)} requests that name another server: {made} connections, all to Immich, "
        f"{trap.connections} to the other",
    )


async def test_no_redirect_is_followed(
    trap: ScriptedUpstream, start_process: StartProcess, tmp_path: Path
) -> None:
    seen: list[Message] = []
    async with (
        recording_upstream(seen, lambda message: _reply(trap.url, message)) as immich,
        _watched(start_process, immich.url, trap, tmp_path) as watched,
    ):
        for status in _REDIRECTS:
            redirect = ("X-Redirect", str(status))
            async with connect(watched.bridge.url) as peer:
                for method, body in (("GET", b""), ("HEAD", b""), ("POST", b"a"), ("PUT", b"a")):
                    await peer.send(request(method, "/a", redirect, body=body))
                    told = await peer.read_answer(method)
                    assert (told.status, told.header("Location")) == (status, f"{trap.url}/a")
                await peer.send(request("POST", ROUTE, KEY, NAME, redirect, body=jpeg(1000)))
                told = await peer.read_answer()
                assert (told.status, told.header("Location")) == (502, None)
    assert watched.connections_to_immich() == immich.connections
    assert len(seen) == 5 * len(_REDIRECTS)


async def test_nothing_malformed_leads_elsewhere(
    trap: ScriptedUpstream, start_process: StartProcess, tmp_path: Path, effort: Effort
) -> None:
    if (reason := missing_reason()) is not None:
        pytest.skip(reason)
    total = effort.amount(150, 5000)
    async with (
        NodeUpstream() as node,
        _watched(start_process, node.url, trap, tmp_path) as watched,
    ):
        runner = Runner(watched.bridge, node)
        findings = await runner.run(
            conversation(n, effort.chance("outbound", n), TO_IMMICH) for n in range(total)
        )
        assert not findings, f"seed {effort.seed}: {findings[0]}"
    made = watched.connections_to_immich()
    assert made > total / 10
    effort.figure(
        _PROMISE,
        f"{total} malformed requests: {made} connections, all to Immich, "
        f"{trap.connections} to the other",
    )
