"""Running the application: sockets, signals, and an end that loses nothing."""

import asyncio
import contextlib
import logging
import signal
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterable
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
from immich_bridge.http.metrics_sum import MetricsSum, metrics_told
from immich_bridge.http.record import running
from immich_bridge.logs import add_to_every_line, log_event
from immich_bridge.malloc import keep_blocks
from immich_bridge.sockets import listening_socket, local_address, metrics_socket
from immich_bridge.splice import share_pipes
from immich_bridge.tls import server_context
from immich_bridge.worker import Inheritance

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
        return f"{self._scheme}://{local_address(self._listener.sockets[0])}"

    @property
    def metrics_address(self) -> str | None:
        """The URL of the metrics, or None if they are off."""
        listener = self._metrics_listener
        return f"http://{local_address(listener.sockets[0])}/metrics" if listener else None

    async def drain(self, grace: float) -> int:
        """Take no new connections, let running requests finish; how many did not in `grace`."""
        self._listener.close()
        connections = self._runner.server.connections if self._runner.server else []
        for connection in connections:
            if isinstance(connection, Connection) and connection.idle:
                connection.force_close()
        lifecycle = self._runner.app[LIFECYCLE]
        await lifecycle.drain(grace)
        return len(list(running(lifecycle)))


def event_loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's event loop when it is installed (extra `fast`), else None for asyncio's own."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


@asynccontextmanager
async def running_server(
    config: Config, inherited: Inheritance | None = None
) -> AsyncIterator[Server]:
    """A server for `config` that listens for as long as the context lasts.

    One of several workers has `inherited` what it listens on. Raises `StartError` when it
    cannot. Leaving the context ends what still runs; call `Server.drain` before to let it finish.
    """
    if HttpRequestParser is HttpRequestParserPy:
        raise StartError("aiohttp is installed without its C parser, which is not safe to expose")
    tls = _tls_context(config)
    metrics = Metrics(_event_loop_name()) if config.metrics_addr is not None else None
    app = make_app(config, metrics, inherited.worker if inherited else None)
    async with AsyncExitStack() as stack:
        # First of all: a second server by mistake must not touch the files of the first.
        listening = stack.enter_context(
            inherited.listening if inherited else listening_socket(*config.listen_addr)
        )
        metrics_listener: asyncio.Server | None = None
        if metrics is not None:
            metrics_listener = await _tell(config, metrics, inherited, stack)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=_ABORT_SECONDS)
        stack.push_async_callback(runner.cleanup)
        stack.callback(listening.close)
        await runner.setup()
        if inherited is not None:
            await _listen_to_siblings(runner, inherited, stack, metrics)
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
        log_listening(config, server.address, server.metrics_address)
        await stop.wait()
        log_event(_logger, logging.INFO, "stopping", grace_seconds=config.shutdown_grace)
        unfinished = await _drain(server, config.shutdown_grace, hurry)
    log_event(_logger, logging.INFO, "stopped", unfinished_requests=unfinished)


async def serve_as_worker(config: Config, inherited: Inheritance, channel: socket.socket) -> None:
    """Serve until the parent process says on `channel` to stop, or is gone.

    Any byte is an order: the first one to drain, the second one to end that wait. The end of the
    channel is the order to end; it comes once all workers have drained, so that one of them can
    tell of the others until then. To the parent goes a line when the server listens, and one
    when it has drained, with the number of requests that have not finished.

    Raises `StartError`.
    """
    if config.malloc_tuning == "auto":
        keep_blocks()
    share_pipes(inherited.worker.count)
    add_to_every_line(worker=inherited.worker.number)
    stop, hurry, end = asyncio.Event(), asyncio.Event(), asyncio.Event()
    # A copy, since the loop closes what it is given, and the parent may still have to be told why.
    reader, writer = await asyncio.open_unix_connection(sock=channel.dup())

    async def obey() -> None:
        with contextlib.suppress(ConnectionError):
            while await reader.read(1):
                (hurry if stop.is_set() else stop).set()
        if not stop.is_set():
            _logger.error("the parent process is gone, this worker stops")
            stop.set()
        end.set()

    obeying = asyncio.create_task(obey())
    async with running_server(config, inherited) as server:
        writer.write(b"ready\n")
        await stop.wait()
        unfinished = await _drain(server, config.shutdown_grace, hurry)
        writer.write(f"drained {unfinished}\n".encode())
        await end.wait()
    await obeying
    writer.close()


def log_listening(
    config: Config, url: str, metrics: str | None, workers: int | None = None
) -> None:
    """Say that clients may come."""
    log_event(
        _logger,
        logging.INFO,
        "listening",
        url=url,
        immich=config.immich_server_url or "off",
        metrics=metrics,
        version=__version__,
        workers=workers,
    )


async def _drain(server: Server, grace: float, hurry: asyncio.Event) -> int | str:
    """Drain `server`, not longer than until `hurry`; how many requests did not finish."""
    draining = asyncio.create_task(server.drain(grace))
    hurrying = asyncio.create_task(hurry.wait())
    await asyncio.wait({draining, hurrying}, return_when=asyncio.FIRST_COMPLETED)
    hurrying.cancel()
    if draining.done():
        return draining.result()
    draining.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await draining
    return "unknown"


async def _tell(
    config: Config, metrics: Metrics, inherited: Inheritance | None, stack: AsyncExitStack
) -> asyncio.Server | None:
    """Serve `metrics`, until `stack` is left; None where others are told of them by a sibling."""
    total = None
    if inherited is None:
        assert config.metrics_addr is not None  # noqa: S101 - or there were no metrics
        exposed = stack.enter_context(metrics_socket(config.metrics_addr))
    elif inherited.metrics is None:
        await stack.enter_async_context(metrics_told(metrics, inherited.worker))
        return None
    else:
        exposed = stack.enter_context(inherited.metrics)
        total = MetricsSum(metrics, inherited.worker)
    page = await stack.enter_async_context(metrics_runner(metrics, total))
    listener = await _listen(page, exposed)
    stack.callback(listener.close)
    return listener


async def _listen_to_siblings(
    runner: web.AppRunner, inherited: Inheritance, stack: AsyncExitStack, metrics: Metrics | None
) -> None:
    """Take requests that other workers pass on, until `stack` is left."""
    path = inherited.worker.requests_socket(inherited.worker.number)
    connection = _connection_factory(runner, metrics, internal=True)
    stack.callback(path.unlink, missing_ok=True)
    try:
        listener = await asyncio.get_running_loop().create_unix_server(
            connection, str(path), backlog=_BACKLOG
        )
    except OSError as exc:
        raise StartError(f"cannot listen on {path}: {exc.strerror or exc}") from exc
    stack.callback(listener.close)


async def _listen(
    runner: web.AppRunner,
    listening: socket.socket,
    tls: ssl.SSLContext | None = None,
    metrics: Metrics | None = None,
) -> asyncio.Server:
    """Serve the application of `runner` to those who connect to `listening`."""
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        # Inherited by every connection (Linux). The kernel counts, so it does not matter who
        # writes: a transport, TLS, a tunnel, or a splice.
        milliseconds = int(_UNREAD_SECONDS * 1000)
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
    return await asyncio.get_running_loop().create_server(
        _connection_factory(runner, metrics), sock=listening, ssl=tls, backlog=_BACKLOG
    )


def _connection_factory(
    runner: web.AppRunner, metrics: Metrics | None, *, internal: bool = False
) -> Callable[[], Connection]:
    """Makes a connection to the application of `runner` for each who connects."""
    loop = asyncio.get_running_loop()
    read_buffer = _READ_BUFFER_UVLOOP if _event_loop_name() == "uvloop" else _READ_BUFFER_ASYNCIO
    manager = runner.server
    assert manager is not None  # noqa: S101 - it exists after setup()

    def connection() -> Connection:
        return Connection(
            manager, loop=loop, read_bufsize=read_buffer, metrics=metrics, internal=internal
        )

    return connection


def _expose_connections(metrics: Metrics, runner: web.AppRunner) -> None:
    def connections() -> Iterable[web.RequestHandler]:
        return runner.server.connections if runner.server else []

    metrics.gauge(
        "immich_bridge_client_connections_open",
        "Connections of clients, idle ones among them.",
        lambda: [((), sum(map(_is_of_a_client, connections())))],
    )


def _is_of_a_client(connection: web.RequestHandler) -> bool:
    return not (isinstance(connection, Connection) and connection.internal)


def _event_loop_name() -> str:
    return type(asyncio.get_running_loop()).__module__.partition(".")[0]


def _tls_context(config: Config) -> ssl.SSLContext | None:
    if config.tls_cert_file is None or config.tls_key_file is None:
        return None
    return server_context(config.tls_cert_file, config.tls_key_file)
