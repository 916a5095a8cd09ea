"""Helm, and what it makes of each set of values."""

import os
from collections.abc import Iterator
from functools import cache

import pytest

from deploy.helm.helm_engine import HelmEngine, Release, Render, running_helm
from deploy.helm.helm_library import LibraryMissingError
from deploy.helm.value_sets import VALUE_SETS


@pytest.fixture(scope="session")
def helm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HelmEngine]:
    """A running Helm; where there is none the test is skipped, but fails where `CI` is set."""
    try:
        with running_helm(tmp_path_factory.mktemp("helm")) as engine:
            yield engine
    except LibraryMissingError as error:
        reason = f"!!! NOT TESTED: no Helm for the chart: {error}"
        if os.environ.get("CI"):
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)


@pytest.fixture(scope="session")
def render(helm: HelmEngine) -> Render:
    """The release that a set of values makes, each made once."""

    @cache
    def rendered(name: str) -> Release:
        return helm.upgrade(VALUE_SETS[name])

    return rendered


@pytest.fixture(params=sorted(VALUE_SETS))
def release(request: pytest.FixtureRequest, render: Render) -> Release:
    """Each of the releases in turn."""
    return render(request.param)
