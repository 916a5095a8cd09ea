"""nginx and Caddy as processes, with the example files of `deploy/` but for ports and paths."""

import asyncio
import os
import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from debian_tools import program
from front import unused_port
from test_serve import Identity, make_identity
from wire import Message, Peer, request

SITE: Final = "photos.example.com"
"""The name that both example files serve."""

EXAMPLES: Final = Path(__file__).parents[2] / "deploy"

_START_SECONDS: Final = 20.0
_STOP_SECONDS: Final = 10.0

# What goes around the example file: it touches nothing of the machine, and compresses as much
# as it can, which many a machine's own settings do.
_NGINX_MAIN: Final = """
daemon off;
pid {folder}/pid;
error_log stderr notice;
events {{}}
http {{
    access_log off;
    gzip on;
    gzip_proxied any;
    gzip_types *;
    gzip_min_length 1;
    client_body_temp_path {spool}/body;
    proxy_temp_path {spool}/proxy;
    fastcgi_temp_path {spool}/fastcgi;
    scgi_temp_path {spool}/scgi;
    uwsgi_temp_path {spool}/uwsgi;
    include {site};
}}
"""


@dataclass(frozen=True)
class TlsFront:
    """A running front; the bridge behind it has to listen on `bridge_port`."""

    name: str
    http_port: int
    https_port: int
    bridge_port: int
    identity: Identity
    spool: Path
    """The folder for temporary files, should it write any."""

    @asynccontextmanager
    async def connect(
        self, protocol: str = "http/1.1", source: str = "127.0.0.1"
    ) -> AsyncIterator[Peer]:
        """A client's connection from the address `source`, speaking `protocol` over TLS."""
        context = self.identity.client
        context.set_alpn_protocols([protocol])
        peer = Peer(
            *await asyncio.open_connection(
                "127.0.0.1",
                self.https_port,
                ssl=context,
                server_hostname=SITE,
                local_addr=(source, 0),
            )
        )
        try:
            session: ssl.SSLObject = peer.writer.get_extra_info("ssl_object")
            assert session.selected_alpn_protocol() == protocol
            yield peer
        finally:
            # What still came when we left makes the end of TLS an error.
            with suppress(ssl.SSLError):
                await peer.close()

    async def fetch(
        self, method: str, target: str, *headers: tuple[str, str], body: bytes = b""
    ) -> Message:
        """One request on a connection of its own."""
        async with self.connect() as peer:
            await peer.send(request(method, target, *headers, body=body, host=SITE))
            return await peer.read_answer(method)

    def spooled(self) -> list[Path]:
        """Temporary files that it holds."""
        return [path for path in self.spool.rglob("*") if path.is_file()]


def substituted(text: str, substitutions: Mapping[str, str]) -> str:
    """`text` with each key replaced; each has to be there."""
    for old, new in substitutions.items():
        assert old in text, f"{old!r} is no longer in the example"
        text = text.replace(old, new)
    return text


@contextmanager
def running_nginx(folder: Path) -> Iterator[TlsFront]:
    """nginx with `deploy/nginx.conf` included where `/etc/nginx/conf.d` would be."""
    binary = program("nginx", "nginx")
    front = _front("nginx", folder)
    site = folder / "site.conf"
    site.write_text(
        substituted(
            (EXAMPLES / "nginx.conf").read_text(),
            {
                "listen 80;": f"listen 127.0.0.1:{front.http_port};",
                "listen 443 ssl http2;": f"listen 127.0.0.1:{front.https_port} ssl http2;",
                "    listen [::]:80;\n": "",
                "    listen [::]:443 ssl http2;\n": "",
                "127.0.0.1:8080": f"127.0.0.1:{front.bridge_port}",
                "/etc/nginx/tls/fullchain.pem": str(front.identity.certificate),
                "/etc/nginx/tls/privkey.pem": str(front.identity.key),
            },
        )
    )
    main = folder / "nginx.conf"
    main.write_text(_NGINX_MAIN.format(folder=folder, spool=front.spool, site=site))
    command: list[str | Path] = [binary, "-p", folder, "-c", main]
    if os.geteuid() == 0:
        # Else its workers could not write into the folder, and would fail instead of buffering.
        command += ["-g", "user root;"]
    with _running(front, command, {}):
        yield front


@contextmanager
def running_caddy(folder: Path) -> Iterator[TlsFront]:
    """Caddy with `deploy/Caddyfile`, and the certificate in the place that it names for one."""
    front = _front("caddy", folder)
    config = folder / "Caddyfile"
    identity = front.identity
    config.write_text(
        substituted(
            (EXAMPLES / "Caddyfile").read_text(),
            {
                "\tservers {\n": f"\tadmin off\n\thttp_port {front.http_port}\n"
                f"\thttps_port {front.https_port}\n\tservers {{\n",
                "# tls /etc/caddy/tls/fullchain.pem /etc/caddy/tls/privkey.pem": (
                    f"tls {identity.certificate} {identity.key}"
                ),
                "127.0.0.1:8080": f"127.0.0.1:{front.bridge_port}",
            },
        )
    )
    binary = Path(sys.executable).with_name("caddy")
    command: list[str | Path] = [binary, "run", "--adapter", "caddyfile", "--config", config]
    home = {name: str(folder) for name in ("HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME")}
    with _running(front, command, {**home, "TMPDIR": str(front.spool)}):
        yield front


RUNNING: Final[Mapping[str, Callable[[Path], Any]]] = {
    "nginx": running_nginx,
    "caddy": running_caddy,
}


def _front(name: str, folder: Path) -> TlsFront:
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl to make a certificate with")
    spool = folder / "spool"
    spool.mkdir()
    ports = (unused_port(), unused_port(), unused_port())
    return TlsFront(name, *ports, make_identity(folder, f"DNS:{SITE}"), spool)


@contextmanager
def _running(
    front: TlsFront, command: Sequence[str | Path], environment: Mapping[str, str]
) -> Iterator[None]:
    log = front.spool.with_name("log")
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={"PATH": os.environ["PATH"], **environment},
        )
    try:
        _wait_for_port(process, front.https_port, log)
        yield
    finally:
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for_port(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            time.sleep(0.01)
        else:
            return
    raise AssertionError(f"it does not listen:\n{log.read_text()}")
