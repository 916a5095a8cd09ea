"""Tests of what may go wrong with a body run twice: moved inside the kernel, and copied."""

from typing import Final

import pytest

from immich_bridge import splice
from immich_bridge.bridge import relay

BOTH_WAYS: Final = frozenset(
    {"test_background_upload_faults", "test_reverse_proxy", "test_relay", "test_splice"}
)
"""Modules whose tests run both ways; elsewhere the size of a body decides, as always."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if metafunc.module.__name__ in BOTH_WAYS and "passage" in metafunc.fixturenames:
        # hypothesis takes no test that runs in two ways
        both = not hasattr(metafunc.function, "hypothesis")
        ways = ["spliced", "copied"] if both else ["spliced"]
        metafunc.parametrize("passage", ways, indirect=True)


@pytest.fixture(autouse=True)
def passage(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str | None:
    """How bodies go through the bridge: `spliced`, however small, or `copied`."""
    chosen: str | None = getattr(request, "param", None)
    if chosen == "spliced":
        defaults = {**(splice.move.__kwdefaults__ or {}), "least": 1}
        monkeypatch.setattr(splice.move, "__kwdefaults__", defaults)
        monkeypatch.setattr(relay, "_WORTH_A_CONNECTION", 1)
    elif chosen == "copied":
        monkeypatch.setattr(splice, "_POSSIBLE", False)
    return chosen
