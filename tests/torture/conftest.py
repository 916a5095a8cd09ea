"""Promises put to the test: a seeded part with every run, all of it with `--torture`."""

import fcntl
import random
import sys
from collections.abc import Iterator
from typing import Any, Final

import pytest

from torture.effort import Effort

_SEED: Final = 20_261_121
"""Of the part that runs with all other tests: the same today and tomorrow."""
_FULL_TIMEOUT: Final = 3600
"""Seconds for one test of a full run, the soak not counted."""
_EFFORT: Final = pytest.StashKey[Effort]()
_SEED_KEY: Final = "torture_seed"
_FIGURES_KEY: Final = "torture_figures"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("torture")
    group.addoption("--torture", action="store_true", help="full amounts instead of small ones")
    group.addoption("--seed", type=int, help="repeat the run that named this seed")
    group.addoption("--soak-minutes", type=float, default=2.0, help="length of the soak")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "alone: compares times, so that nothing else may run beside it in a full run"
    )


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a process of pytest-xdist's the seed that was drawn here."""
    node.workerinput[_SEED_KEY] = _effort(node.config).seed


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take the figures of a process of pytest-xdist's that has ended."""
    effort = _effort(node.config)
    for promise, measured in getattr(node, "workeroutput", {}).get(_FIGURES_KEY, {}).items():
        effort.figures.setdefault(promise, []).extend(measured)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput[_FIGURES_KEY] = _effort(session.config).figures


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not _effort(config).full:
        return
    # The longest begins first, and those that wait for all others are left to the end.
    items.sort(key=lambda item: (_is_alone(item), "test_soak" not in item.nodeid))
    for item in items:
        item.add_marker(pytest.mark.timeout(_FULL_TIMEOUT + _effort(config).soak_seconds))


@pytest.fixture(autouse=True)
def room_on_this_machine(
    request: pytest.FixtureRequest, effort: Effort, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """In a full run by several processes: wait until a test that is to run alone can do so."""
    if not effort.full or not hasattr(request.config, "workerinput"):
        yield
        return
    of_all_processes = tmp_path_factory.getbasetemp().parent
    with (of_all_processes / "machine.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX if _is_alone(request.node) else fcntl.LOCK_SH)
        yield


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


def _is_alone(item: pytest.Item) -> bool:
    return item.get_closest_marker("alone") is not None


def _effort(config: pytest.Config) -> Effort:
    if _EFFORT not in config.stash:
        # Without a path to this folder its options are not known to pytest.
        full = bool(config.getoption("torture", False))
        config.stash[_EFFORT] = Effort(
            full=full,
            seed=_seed(config, full),
            soak_seconds=60 * float(config.getoption("soak_minutes", 2.0)),
            say=lambda line: _say(config, line),
        )
    return config.stash[_EFFORT]


def _seed(config: pytest.Config, full: bool) -> int:
    drawn: int | None = getattr(config, "workerinput", {}).get(_SEED_KEY)
    given: int | None = config.getoption("seed", None)
    if given is None:
        given = drawn
    if given is None:
        given = random.randrange(10**9) if full else _SEED
    return given


def _say(config: pytest.Config, line: str) -> None:
    """Write a line past pytest's capture."""
    if hasattr(config, "workerinput"):
        # Such a process has only its standard error in common with the terminal.
        with config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
            print(line, file=sys.stderr, flush=True)
        return
    reporter = config.pluginmanager.getplugin("terminalreporter")
    if reporter is not None:
        reporter.ensure_newline()
        reporter.write_line(line)
