"""Running the application: sockets, signals, and an end that loses nothing."""

import asyncio
import contextlib
import logging
import signal
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

from aiohttp import web
from aiohttp.http_parser import HttpRequestParser, HttpRequestParserPy

from immich_bridge import __version__
from immich_bridge.app import make_app
from immich_bridge.config import Config
from immich_bridge.errors import StartError
from immich_bridge.http.connection import Connection
from immich_bridge.http.lifecycle import LIFECYCLE
from immich_bridge.http.metrics import Metrics
from immich_bridge.http.metrics_page import metrics_runner
from immich_bridge.logs import log_event
from immich_bridge.malloc import keep_blocks

_logger = logging.getLogger("immich_bridge")

_BACKLOG: Final = 1024
_READ_BUFFER_ASYNCIO: Final = 256 * 1024
# uvloop hands on up to 250 KB at a time, whatever this is. With less, a body that waits for its
# turn stops after the first of them: a third of the memory of 200 uploads that begin at once.
_READ_BUFFER_UVLOOP: Final = 32 * 1024
_UNREAD_SECONDS: Final = 600.0
"""For which a client may take nothing of what is sent to it. A video player that pauses does so
too, and asks for the rest with Range; as long as Immich's documentation sets in nginx."""
_ABORT_SECONDS: Final = 0.5
"""How long requests that outlived the grace are waited for, before and after they are cancelled."""


class Server:
    """A listening server."""

    def __init__(
        self,
        runner: web.AppRunner,
        listener: asyncio.Server,
        scheme: str,
        metrics_listener: asyncio.Server | None,
    ) -> None:
        self._runner = runner
        self._listener = listener
        self._scheme = scheme
        self._metrics_listener = metrics_listener

    @property
    def address(self) -> str:
        """The URL of the server, as seen from this machine."""
        return f"{self._scheme}://{_local_address(self._listener)}"

    @property
    def metrics_address(self) -> str | None:
        """The URL of the metrics, or None if they are off."""
        listener = self._metrics_listener
        return f"http://{_local_address(listener)}/metrics" if listener else None

    async def drain(self, grace: float) -> int:
        """Take no new connections, let running requests finish; how many did not in `grace`."""
        self._listener.close()
        connections = self._runner.server.connections if self._runner.server else []
        for connection in connections:
            if isinstance(connection, Connection) and connection.idle:
                connection.force_close()
        return await self._runner.app[LIFECYCLE].drain(grace)


def event_loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's event loop when it is installed (extra `fast`), else None for asyncio's own."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


@asynccontextmanager
async def running_server(config: Config) -> AsyncIterator[Server]:
    """A server for `config` that listens for as long as the context lasts.

    Raises `StartError` when it cannot. Leaving the context ends what still runs; call
    `Server.drain` before to let it finish.
    """
    if HttpRequestParser is HttpRequestParserPy:
        raise StartError("aiohttp is installed without its C parser, which is not safe to expose")
    tls = _tls_context(config)
    metrics = Metrics(_event_loop_name()) if config.metrics_addr is not None else None
    app = make_app(config, metrics)
    async with AsyncExitStack() as stack:
        # First of all: a second server by mistake must not touch the files of the first.
        listening = stack.enter_context(_listening_socket(*config.listen_addr))
        metrics_listener: asyncio.Server | None = None
        if config.metrics_addr is not None and metrics is not None:
            try:
                exposed = stack.enter_context(_listening_socket(*config.metrics_addr))
            except StartError as exc:
                raise StartError(f"METRICS_ADDR: {exc}") from exc
            page = await stack.enter_async_context(metrics_runner(metrics))
            metrics_listener = await _listen(page, exposed)
            stack.callback(metrics_listener.close)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=_ABORT_SECONDS)
        stack.push_async_callback(runner.cleanup)
        stack.callback(listening.close)
        await runner.setup()
        listener = await _listen(runner, listening, tls, metrics)
        stack.callback(listener.close)
        if metrics is not None:
            _expose_connections(metrics, runner)
        yield Server(runner, listener, "https" if tls else "http", metrics_listener)


async def serve(config: Config) -> None:
    """Serve until SIGTERM or SIGINT, then drain; a second signal ends the wait."""
    if config.malloc_tuning == "auto":
        keep_blocks()
    stop = asyncio.Event()
    hurry = asyncio.Event()

    def on_signal() -> None:
        (hurry if stop.is_set() else stop).set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    async with running_server(config) as server:
        log_event(
            _logger,
            logging.INFO,
            "listening",
            url=server.address,
            immich=config.immich_server_url or "off",
            metrics=server.metrics_address,
            version=__version__,
        )
        await stop.wait()
        log_event(_logger, logging.INFO, "stopping", grace_seconds=config.shutdown_grace)
        draining = asyncio.create_task(server.drain(config.shutdown_grace))
        hurrying = asyncio.create_task(hurry.wait())
        await asyncio.wait({draining, hurrying}, return_when=asyncio.FIRST_COMPLETED)
        hurrying.cancel()
        unfinished = draining.result() if draining.done() else "unknown"
        if not draining.done():
            draining.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await draining
    log_event(_logger, logging.INFO, "stopped", unfinished_requests=unfinished)


async def _listen(
    runner: web.AppRunner,
    listening: socket.socket,
    tls: ssl.SSLContext | None = None,
    metrics: Metrics | None = None,
) -> asyncio.Server:
    """Serve the application of `runner` to those who connect to `listening`."""
    loop = asyncio.get_running_loop()
    read_buffer = _READ_BUFFER_UVLOOP if _event_loop_name() == "uvloop" else _READ_BUFFER_ASYNCIO
    manager = runner.server
    assert manager is not None  # noqa: S101 - it exists after setup()

    if hasattr(socket, "TCP_USER_TIMEOUT"):
        # Inherited by every connection (Linux). The kernel counts, so it does not matter who
        # writes: a transport, TLS, a tunnel, or a splice.
        milliseconds = int(_UNREAD_SECONDS * 1000)
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)

    def connection() -> Connection:
        return Connection(manager, loop=loop, read_bufsize=read_buffer, metrics=metrics)

    return await loop.create_server(connection, sock=listening, ssl=tls, backlog=_BACKLOG)


def _expose_connections(metrics: Metrics, runner: web.AppRunner) -> None:
    metrics.gauge(
        "immich_bridge_client_connections_open",
        "Connections of clients, idle ones among them.",
        lambda: [((), len(runner.server.connections) if runner.server else 0)],
    )


def _event_loop_name() -> str:
    return type(asyncio.get_running_loop()).__module__.partition(".")[0]


def _local_address(listener: asyncio.Server) -> str:
    """Where `listener` can be reached from this machine: host and port, fit for a URL."""
    host, port = listener.sockets[0].getsockname()[:2]
    host = {"::": "localhost", "0.0.0.0": "localhost"}.get(host, host)  # noqa: S104
    return f"{f'[{host}]' if ':' in host else host}:{port}"


def _listening_socket(host: str, port: int) -> socket.socket:
    """A bound socket; without a host one that takes IPv6 and IPv4 on every address."""
    try:
        if not host:
            dual_stack = socket.has_dualstack_ipv6()
            family = socket.AF_INET6 if dual_stack else socket.AF_INET
            return socket.create_server(("", port), family=family, dualstack_ipv6=dual_stack)
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = found[0]
        return socket.create_server(address, family=family)
    except (OSError, UnicodeError) as exc:
        reason = getattr(exc, "strerror", None) or str(exc)
        raise StartError(f"cannot listen on {host or '*'}:{port}: {reason}") from exc


def _tls_context(config: Config) -> ssl.SSLContext | None:
    if config.tls_cert_file is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(config.tls_cert_file, config.tls_key_file)
    except OSError as exc:  # also ssl.SSLError
        raise StartError(f"TLS_CERT_FILE and TLS_KEY_FILE cannot be used: {exc}") from exc
    return context
