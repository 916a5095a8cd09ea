"""Tell at the end of a run, where nobody overlooks it, that the Node counterparts had no say."""

from pathlib import Path

import pytest

HERE = Path(__file__).parent.name


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
