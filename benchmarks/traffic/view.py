"""The soak as it goes: a live table on a terminal, a line now and then elsewhere."""

import asyncio
from typing import Final

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text
from traffic.server_watch import ServerWatch
from traffic.tally import Tally, pause

_LINE_SECONDS: Final = 10.0
_SHOWN_MESSAGES: Final = 5
_COLUMNS: Final = (
    *("done", "failed", "under way", "per s", "MB/s"),
    *("p50 ms", "p95 ms", "p99 ms", "longest ms"),
)


class View:
    """Shows `tally`, and the server if it is watched, for a soak of `duration` seconds."""

    def __init__(
        self, console: Console, tally: Tally, watch: ServerWatch | None, duration: float
    ) -> None:
        self._console = console
        self._tally = tally
        self._watch = watch
        self._duration = duration

    async def run(self, stop: asyncio.Event) -> None:
        """Show until `stop`."""
        if not self._console.is_terminal:
            while not stop.is_set():
                await pause(stop, _LINE_SECONDS)
                self._console.print(self._status(), soft_wrap=True)
            return
        with Live(self._frame(), console=self._console, refresh_per_second=4, transient=True) as ui:
            while not stop.is_set():
                await pause(stop, 0.25)
                ui.update(self._frame())

    def table(self) -> Table:
        """The figures by kind."""
        table = Table()
        table.add_column("kind", no_wrap=True)
        for column in _COLUMNS:
            table.add_column(column, justify="right", no_wrap=True)
        elapsed = self._tally.elapsed
        for name, kind in self._tally.kinds.items():
            percentiles = [kind.latencies.percentile(p) * 1000 for p in (50, 95, 99)]
            table.add_row(
                name,
                f"{kind.done:,}",
                Text(str(kind.failed), style="bold red" if kind.failed else "green"),
                str(kind.under_way),
                f"{kind.done / elapsed:.1f}",
                f"{kind.bytes / 1e6 / elapsed:.1f}" if kind.bytes else "",
                *(f"{value:.1f}" for value in percentiles),
                f"{kind.latencies.longest * 1000:.0f}",
            )
        return table

    def _frame(self) -> Group:
        elapsed = min(self._tally.elapsed, self._duration)
        messages = (Text(text, style="red") for text in self._tally.messages[-_SHOWN_MESSAGES:])
        bar = ProgressBar(total=self._duration, completed=elapsed, width=60)
        return Group(Text(self._status()), bar, self.table(), *messages)

    def _status(self) -> str:
        tally = self._tally
        line = (
            f"{tally.elapsed:.0f} of {self._duration:.0f} s: {tally.done:,} requests, "
            f"{tally.failed} failed"
        )
        if self._watch:
            look = self._watch.last
            line += (
                f"; server {look.rss_mib:.0f} MiB, {look.descriptors} descriptors, "
                f"{look.cpu * 100:.0f} % CPU"
            )
        return line
