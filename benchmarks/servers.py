"""The two servers of a run, each a process of its own: the upstream, and the bridge to it."""

import json
import os
import queue
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

from discarding_upstream import Receipt
from process_stats import ProcessStats

_START_SECONDS = 20.0
_STOP_SECONDS = 5.0
_RECEIPT_SECONDS = 60.0
# Leaves asyncio's own event loop to the bridge although uvloop is installed.
_WITHOUT_UVLOOP = (
    "import sys; sys.modules['uvloop'] = None; from immich_bridge.cli import main; sys.exit(main())"
)
# What the bridge's settings are must not depend on who runs the benchmark.
_PASSED_ON = ("PATH", "HOME", "LANG", "PYTHONPATH")


class Upstream:
    """The discarding upstream as the benchmark sees it: a port, and receipts."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        self.port = int(process.stdout.readline())
        self._lines = process.stdout
        self._receipts: queue.Queue[Receipt] = queue.Queue()
        threading.Thread(target=self._collect, daemon=True).start()

    def receipt(self) -> Receipt:
        """The oldest receipt that was not asked for yet; raises `queue.Empty` if none comes."""
        return self._receipts.get(timeout=_RECEIPT_SECONDS)

    def faults(self) -> list[str]:
        """What was wrong with the uploads whose receipts are here and were not asked for."""
        faults = []
        while not self._receipts.empty():
            faults.append(self._receipts.get().fault)
        return [fault for fault in faults if fault]

    def _collect(self) -> None:
        for line in self._lines:
            self._receipts.put(Receipt(**json.loads(line)))


class Bridge:
    """A running bridge. `idle_rss` is its memory before the first upload."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self.port = port
        self.stats = ProcessStats(process.pid)
        self.idle_rss = self.stats.rss()


@contextmanager
def running_upstream(*, verify: bool) -> Iterator[Upstream]:
    """An upstream for as long as the context lasts."""
    program = Path(__file__).with_name("discarding_upstream.py")
    command = [sys.executable, str(program), *(["--verify"] if verify else [])]
    with _process(subprocess.Popen(command, stdout=subprocess.PIPE, text=True)) as process:
        yield Upstream(process)


@contextmanager
def running_bridge(upstream: Upstream, event_loop: str) -> Iterator[Bridge]:
    """A bridge to `upstream` on `auto` or `asyncio` as its event loop, warnings to stderr."""
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = reserved.getsockname()[1]
    start = ["-m", "immich_bridge"] if event_loop == "auto" else ["-c", _WITHOUT_UVLOOP]
    environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ} | {
        "LISTEN_ADDR": f"127.0.0.1:{port}",
        "IMMICH_SERVER_URL": f"http://127.0.0.1:{upstream.port}",
        "BACKUP_ENABLED": "false",
        "LOG_LEVEL": "warning",
    }
    with (
        tempfile.TemporaryDirectory() as folder,
        _process(
            subprocess.Popen([sys.executable, *start], env=environment, cwd=folder, text=True)
        ) as process,
    ):
        _wait_for_health(process, port)
        yield Bridge(process, port)


@contextmanager
def _process(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for_health(process: subprocess.Popen[str], port: int) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with urlopen(f"http://127.0.0.1:{port}/health", timeout=1):
                return
        except OSError:
            time.sleep(0.05)
    raise SystemExit("the bridge did not start")
