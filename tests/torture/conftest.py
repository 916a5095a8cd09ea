"""Promises put to the test: a seeded part with every run, all of it with `--torture`."""

import random
from typing import Final

import pytest

from torture.effort import Effort

_SEED: Final = 20_261_121
"""Of the part that runs with all other tests: the same today and tomorrow."""
_FULL_TIMEOUT: Final = 3600
"""Seconds for one test of a full run, the soak not counted."""
_EFFORT: Final = pytest.StashKey[Effort]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("torture")
    group.addoption("--torture", action="store_true", help="full amounts instead of small ones")
    group.addoption("--seed", type=int, help="repeat the run that named this seed")
    group.addoption("--soak-minutes", type=float, default=2.0, help="length of the soak")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if _effort(config).full:
        seconds = _FULL_TIMEOUT + _effort(config).soak_seconds
        for item in items:
            item.add_marker(pytest.mark.timeout(seconds))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    effort = _effort(terminalreporter.config)
    if effort.figures and effort.full:
        terminalreporter.section(f"figures (seed {effort.seed})")
        for promise, measured in sorted(effort.figures.items()):
            for line in measured:
                terminalreporter.line(f"{promise}: {line}")


@pytest.fixture(scope="session")
def effort(pytestconfig: pytest.Config) -> Effort:
    """How hard to try; collects the figures."""
    return _effort(pytestconfig)


def _effort(config: pytest.Config) -> Effort:
    if _EFFORT not in config.stash:
        # Without a path to this folder its options are not known to pytest.
        full = bool(config.getoption("torture", False))
        given = config.getoption("seed", None)
        seed = given if given is not None else random.randrange(10**9) if full else _SEED
        reporter = config.pluginmanager.getplugin("terminalreporter")

        def say(line: str) -> None:
            if reporter is not None:
                reporter.ensure_newline()
                reporter.write_line(line)

        config.stash[_EFFORT] = Effort(
            full=full,
            seed=seed,
            soak_seconds=60 * float(config.getoption("soak_minutes", 2.0)),
            say=say,
        )
    return config.stash[_EFFORT]
