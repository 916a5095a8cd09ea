"""Node's parsers for the tests here; and a word, where nobody overlooks it, if they had no say."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from node_tools import FormParser, missing_reason

HERE = Path(__file__).parent.name


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def parser() -> AsyncIterator[FormParser]:
    """busboy and multer, in one Node process a module: to start it costs more than a form."""
    reason = missing_reason()
    if reason is not None:
        pytest.skip(reason)
    async with FormParser() as running:
        yield running


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = [
        report
        for report in terminalreporter.getreports("skipped")
        if HERE in Path(report.nodeid.partition("::")[0]).parts
    ]
    if not skipped:
        return
    # The longrepr of a skip is (path, line, reason).
    reasons = {
        str(report.longrepr[2]).removeprefix("Skipped: ")
        for report in skipped
        if isinstance(report.longrepr, tuple)
    }
    terminalreporter.section("Node counterparts", sep="!", red=True, bold=True)
    terminalreporter.line(f"{len(skipped)} tests did NOT run: {'; '.join(sorted(reasons))}")
