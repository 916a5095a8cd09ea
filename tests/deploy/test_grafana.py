"""The dashboard: it can be imported, and asks for nothing that a server does not tell."""

import json
import re
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any, Final

import promql_parser
import pytest

from front import StartBridge
from immich_standin import StandIn
from raw_upload import jpeg, upload
from scrape import ON, Scrape, scrape_at_rest
from wire import fetch

DASHBOARD: Final[dict[str, Any]] = json.loads(
    (Path(__file__).parents[2] / "deploy" / "grafana" / "immich-bridge.json").read_text()
)
PANELS: Final = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
EXPRESSIONS: Final = [target["expr"] for panel in PANELS for target in panel["targets"]]
VARIABLES: Final = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}

OF_PROMETHEUS: Final = {"job", "instance"}
"""Labels that Prometheus gives to all that it scrapes."""


def parsed(expression: str) -> promql_parser.Expr:
    """What Prometheus would make of it, with Grafana's variables filled in."""
    return promql_parser.parse(expression.replace("$__rate_interval", "5m"))


def selectors(expression: str) -> Iterator[tuple[str, set[str]]]:
    """The metrics that an expression asks for, with the labels that it picks them by."""
    text = parsed(expression).prettify()
    for name, matchers in re.findall(r"\b((?:immich_bridge|process)_\w+)(?:\{([^}]*)\})?", text):
        yield name, set(re.findall(r"(\w+)(?:=~|!~|!=|=)", matchers))


def grouped_by(expression: str) -> set[str]:
    """The labels that an expression keeps apart."""
    lists = re.findall(r"\bby \(([^)]*)\)", expression)
    return {label.strip() for each in lists for label in each.split(",")}


@pytest.fixture
async def seen(immich: StandIn, start_bridge: StartBridge, tmp_path: Path) -> Scrape:
    """What a server with both wings tells after some traffic."""
    bridge = await start_bridge(
        immich.url,
        **ON,
        BACKUP_ENABLED="true",
        DB_PATH=str(tmp_path / "app.db"),
        STORAGE_DIR=str(tmp_path / "storage"),
        JWT_SECRET="x" * 32,
    )
    assert (await upload(bridge.address, jpeg(1000))).status == 201
    assert (await upload(bridge.address, jpeg(1000), key="")).status == 401
    assert (await fetch(bridge.address, "GET", "/api/server/ping")).status == 200
    return await scrape_at_rest(bridge)


async def test_every_expression_finds_its_metrics(seen: Scrape) -> None:
    samples: dict[str, set[str]] = {}
    for family in seen.families:
        for sample in family.samples:
            samples.setdefault(sample.name, set(OF_PROMETHEUS)).update(sample.labels)
    for expression in EXPRESSIONS:
        asked = list(selectors(expression))
        assert asked, expression
        for name, labels in asked:
            assert name in samples, expression
            assert labels <= samples[name], expression
            # Each can be narrowed to what the variables at the top choose.
            assert labels >= OF_PROMETHEUS, expression
            assert grouped_by(expression) <= samples[name], expression


async def test_every_metric_of_ours_is_shown(seen: Scrape) -> None:
    shown = {name for expression in EXPRESSIONS for name, _ in selectors(expression)}
    missing = {
        family.name
        for family in seen.families
        if family.name.startswith("immich_bridge_")
        and not any(sample.name in shown for sample in family.samples)
    }
    assert missing == set()


async def test_counters_are_shown_as_rates(seen: Scrape) -> None:
    kinds = {sample.name: family.type for family in seen.families for sample in family.samples}
    for expression in EXPRESSIONS:
        for name, _ in selectors(expression):
            over_time = bool(re.search(rf"\b(rate|increase)\({name}\b", expression))
            assert over_time == (kinds[name] in ("counter", "histogram")), expression


def test_it_asks_for_the_data_source_at_import() -> None:
    (asked,) = DASHBOARD["__inputs"]
    assert (asked["type"], asked["pluginId"]) == ("datasource", "prometheus")
    wanted = {"type": "prometheus", "uid": f"${{{asked['name']}}}"}
    for each in (*PANELS, *(t for panel in PANELS for t in panel["targets"]), *VARIABLES.values()):
        assert each["datasource"] == wanted
    assert "id" not in DASHBOARD  # else it would replace whichever has that id


def test_its_variables_are_those_that_it_uses() -> None:
    used = {name for expression in EXPRESSIONS for name in re.findall(r"\$(\w+)", expression)}
    assert used - {"__rate_interval"} == VARIABLES.keys() == OF_PROMETHEUS
    for variable in VARIABLES.values():
        assert re.match(r"label_values\(immich_bridge_build_info[,{]", variable["definition"])


def test_its_panels_have_a_place_and_a_unit_each() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len({*ids}) == len(ids)
    assert {panel["type"] for panel in PANELS} <= {each["id"] for each in DASHBOARD["__requires"]}
    for panel in PANELS:
        assert panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"]
    places = [panel["gridPos"] for panel in DASHBOARD["panels"]]
    assert all(place["x"] + place["w"] <= 24 for place in places)
    for one, other in combinations(places, 2):
        assert (
            one["x"] + one["w"] <= other["x"]
            or other["x"] + other["w"] <= one["x"]
            or one["y"] + one["h"] <= other["y"]
            or other["y"] + other["h"] <= one["y"]
        ), (one, other)
