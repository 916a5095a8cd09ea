"""Uploads in pieces run both ways: moved inside the kernel, and copied."""

import pytest

from bridge.conftest import passage as passage

BOTH_WAYS = frozenset(
    f"test_resumable_{name}" for name in ("uploads", "ends", "faults", "lengths", "immich")
)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if metafunc.module.__name__ in BOTH_WAYS:
        metafunc.parametrize("passage", ["spliced", "copied"], indirect=True)
