"""Several processes on one port: the parent, which serves nobody and looks after those who do.

Each worker has a listening socket of its own, among which the kernel distributes connections. The
parent keeps all of them open, so that those who come to one whose worker has died wait until there
is another. Signals are for the parent alone: what is sent to the whole group, by a terminal or a
service manager, is one signal and not several. Workers obey a channel, and end when it does.
"""

import asyncio
import gc
import logging
import os
import selectors
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NoReturn

from immich_bridge.config import Config
from immich_bridge.errors import StartError
from immich_bridge.logs import log_event
from immich_bridge.serve import event_loop_factory, log_listening, serve_as_worker
from immich_bridge.signals import NAMES, signals_as_bytes
from immich_bridge.sockets import local_address, metrics_socket, shared_sockets
from immich_bridge.worker import Inheritance, Worker

_logger = logging.getLogger("immich_bridge")

_STOPPING: Final = frozenset({signal.SIGTERM, signal.SIGINT})
_SECONDS_BETWEEN_STARTS: Final = 1.0
"""Of one worker: one that cannot start must not keep the machine busy with trying."""
_ORDER: Final = b"."


def serve_with_workers(config: Config) -> None:
    """Serve with `config.workers` processes until SIGTERM or SIGINT, then have them drain.

    A second signal ends the wait, a third one kills who does not even hear of it. Raises
    `StartError`.
    """
    # What is there by now stays. To look for garbage in it would write to memory that workers
    # share with their parent, and so make copies of it: half of what a worker takes.
    gc.freeze()
    with ExitStack() as stack:
        signals = stack.enter_context(signals_as_bytes(_STOPPING))
        listening = shared_sockets(*config.listen_addr, config.workers)
        for each in listening:
            stack.callback(each.close)
        metrics = None
        if config.metrics_addr is not None:
            metrics = stack.enter_context(metrics_socket(config.metrics_addr))
        folder = stack.enter_context(_private_folder())
        crew = _Crew(
            config,
            signals,
            [
                _Slot(
                    Inheritance(
                        Worker(number, config.workers, folder), each, None if number else metrics
                    )
                )
                for number, each in enumerate(listening)
            ],
        )
        crew.run()


@dataclass
class _Process:
    """A worker that runs, as far as the parent knows."""

    pid: int
    channel: socket.socket
    ready: bool = False
    heard: bytes = b""
    """What it said that is not a whole line yet."""
    failure: str | None = None
    """Why it could not start."""
    unfinished: str | None = None
    """How many requests it left unfinished; None before it has drained."""


@dataclass
class _Slot:
    """The place of one worker."""

    inheritance: Inheritance
    process: _Process | None = None
    started_at: float = field(default=-_SECONDS_BETWEEN_STARTS)

    @property
    def due_in(self) -> float:
        """Seconds until a worker may be started here."""
        return max(0.0, self.started_at + _SECONDS_BETWEEN_STARTS - time.monotonic())


class _Crew:
    """All workers, from the first start to the end of the last one."""

    def __init__(self, config: Config, signals: socket.socket, slots: list[_Slot]) -> None:
        self._config = config
        self._signals = signals
        self._slots = slots
        self._selector = selectors.PollSelector()
        self._selector.register(signals, selectors.EVENT_READ, self._on_signals)
        self._announced = False
        self._orders = 0
        self._unfinished: list[str] = []
        """How many requests each worker that has drained left unfinished."""
        self._failure: str | None = None
        """Why the start has come to nothing."""

    def run(self) -> None:
        """Start all, replace those that die, and return when the last has ended as it was told.

        Raises `StartError`.
        """
        try:
            while not self._orders or self._running:
                if not self._orders:
                    self._fill()
                    if self._orders:
                        continue  # it has come to nothing, perhaps with nobody to wait for
                for key, _ in self._selector.select(self._patience()):
                    key.data()
        finally:
            self._selector.close()
        if self._failure is not None:
            raise StartError(self._failure)
        known = all(map(str.isdecimal, self._unfinished))
        unfinished = sum(map(int, self._unfinished)) if known else "unknown"
        log_event(_logger, logging.INFO, "stopped", unfinished_requests=unfinished)

    @property
    def _running(self) -> list[_Process]:
        return [slot.process for slot in self._slots if slot.process is not None]

    def _patience(self) -> float | None:
        if self._orders:
            return None
        return min((slot.due_in for slot in self._slots if slot.process is None), default=None)

    def _fill(self) -> None:
        """Start a worker wherever there is none and one is due."""
        for slot in self._slots:
            if slot.process is None and not slot.due_in and self._failure is None:
                slot.started_at = time.monotonic()
                try:
                    self._start(slot)
                except OSError as exc:
                    self._lost(slot, f"a worker cannot be started: {exc.strerror}")

    def _start(self, slot: _Slot) -> None:
        ours, theirs = socket.socketpair()
        # Until it ignores them, a signal to the group would reach the child as one to the parent.
        signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)
        parent = os.getpid()
        try:
            pid = os.fork()
            if pid == 0:
                ours.close()
                self._be_worker(slot, theirs, parent)
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPPING)
        process = slot.process = _Process(pid, ours)
        self._selector.register(ours, selectors.EVENT_READ, lambda: self._on_news(slot, process))

    def _be_worker(self, slot: _Slot, channel: socket.socket, parent: int) -> NoReturn:
        """What a child does, and no more: it never returns into what is the parent's."""
        code = 1
        try:
            for number in _STOPPING:
                signal.signal(number, signal.SIG_IGN)
            signal.set_wakeup_fd(-1)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPPING)
            self._close_all_but(slot)
            with asyncio.Runner(loop_factory=event_loop_factory()) as runner:
                runner.run(serve_as_worker(self._config, slot.inheritance, channel))
            code = 0
        except StartError as exc:
            with suppress(OSError):
                os.write(channel.fileno(), f"failed {exc}\n".encode("utf-8", "replace"))
        except Exception:
            _logger.exception("worker %d failed", slot.inheritance.worker.number)
        finally:
            try:
                if os.getppid() != parent:
                    with suppress(OSError):  # not empty before the last one has ended
                        slot.inheritance.worker.folder.rmdir()
                sys.stderr.flush()  # which fails where nobody reads it any more
            finally:
                os._exit(code)

    def _close_all_but(self, slot: _Slot) -> None:
        """Close what a child has of the parent and of other workers.

        The end of a channel is only seen when nobody else holds it, and a socket that somebody
        holds takes connections that nobody serves.
        """
        self._selector.close()
        self._signals.close()
        for other in self._slots:
            if other.process is not None:
                other.process.channel.close()
            if other is not slot:
                other.inheritance.listening.close()
                if other.inheritance.metrics is not None:
                    other.inheritance.metrics.close()

    def _on_signals(self) -> None:
        numbers = self._signals.recv(64)
        for number in numbers:
            if number in _STOPPING:
                self._order()

    def _order(self) -> None:
        """Have all workers drain; told again, have them end that wait; then kill them."""
        self._orders += 1
        if self._orders > 2:
            for process in self._running:
                if process.unfinished is None:
                    os.kill(process.pid, signal.SIGKILL)
            return
        if self._orders == 1:
            for slot in self._slots:
                slot.inheritance.listening.close()
            if self._failure is None:
                grace = self._config.shutdown_grace
                log_event(_logger, logging.INFO, "stopping", grace_seconds=grace)
        for process in self._running:
            with suppress(OSError):  # it has just died
                process.channel.send(_ORDER)

    def _on_news(self, slot: _Slot, process: _Process) -> None:
        """A worker says something, or is gone."""
        try:
            said = process.channel.recv(4096)
        except ConnectionResetError:
            said = b""
        if not said:
            self._on_end(slot, process)
            return
        *lines, process.heard = (process.heard + said).split(b"\n")
        for line in lines:
            word, _, rest = line.decode().partition(" ")
            if word == "ready":
                process.ready = True
                self._announce()
            elif word == "failed":
                process.failure = rest
            elif word == "drained":
                process.unfinished = rest
                self._unfinished.append(rest)
                self._end_when_all_have_drained()

    def _announce(self) -> None:
        """Say that all are there, once."""
        if self._announced or self._orders:
            return
        if not all(process.ready for process in self._running):
            return
        self._announced = True
        first = self._slots[0].inheritance
        scheme = "https" if self._config.tls_cert_file else "http"
        metrics = f"http://{local_address(first.metrics)}/metrics" if first.metrics else None
        url = f"{scheme}://{local_address(first.listening)}"
        log_listening(self._config, url, metrics, self._config.workers)

    def _on_end(self, slot: _Slot, process: _Process) -> None:
        """Find out how a worker ended, and what that means."""
        self._selector.unregister(process.channel)
        process.channel.close()
        slot.process = None
        _, status = os.waitpid(process.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        if self._orders and code == 0:
            return
        how = f"exit code {code}" if code >= 0 else NAMES.get(-code, f"signal {-code}")
        self._lost(slot, process.failure or f"worker process {process.pid} ended: {how}")

    def _lost(self, slot: _Slot, why: str) -> None:
        """A worker is not there, or no longer, which nobody has asked for."""
        if not self._announced and not self._orders:
            self._failure = why
            self._order()
        elif self._failure is None:  # else one reason is enough
            number = slot.inheritance.worker.number
            log_event(_logger, logging.ERROR, "worker lost", worker=number, reason=why)
        self._end_when_all_have_drained()

    def _end_when_all_have_drained(self) -> None:
        """Let the workers end, who tell of each other until then."""
        if self._orders and all(each.unfinished is not None for each in self._running):
            for process in self._running:
                with suppress(OSError):
                    process.channel.shutdown(socket.SHUT_WR)


@contextmanager
def _private_folder() -> Iterator[Path]:
    """A folder for the sockets of workers, gone afterwards."""
    try:
        folder = Path(tempfile.mkdtemp(prefix="immich-bridge-"))
    except OSError as exc:
        raise StartError(f"WORKERS: no folder for temporary files (TMPDIR): {exc}") from exc
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
