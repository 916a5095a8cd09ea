"""The Postman collection walks through the whole workflow with newman, against a live server."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pytest

from api.document import DOCUMENT, ApiDocument
from api.live import Live, Run
from node_tools import INSTALL_SECONDS, NODE_MODULES, require_node

COLLECTION: Final = DOCUMENT.with_name("immich-bridge.postman_collection.json")
NEWMAN: Final = NODE_MODULES / "newman" / "bin" / "newman.js"
SECONDS: Final = 30
NOT_WALKED: Final = frozenset({"/metrics", "/uploads/"})
"""On a listener of its own, and what nobody speaks by hand."""


def requests() -> Iterator[Mapping[str, Any]]:
    """The requests of the collection, in their order."""
    for folder in json.loads(COLLECTION.read_text())["item"]:
        yield from folder["item"]


def test_it_has_every_operation_of_the_document() -> None:
    described = {
        (method, path)
        for method, path in ApiDocument.load().operations()
        if method in ("GET", "POST") and path not in NOT_WALKED
    }
    walked = set()
    for item in requests():
        request = item["request"]
        walked.add((request["method"], "/" + "/".join(request["url"]["path"])))
        assert request["description"]
    assert walked == described


def test_every_request_asserts_its_answer() -> None:
    for item in requests():
        [script] = [event["script"]["exec"] for event in item["event"]]
        assert any("pm.test(" in line for line in script), item["name"]
        assert any("status(" in line or "response.code" in line for line in script), item["name"]


@pytest.mark.timeout(INSTALL_SECONDS + 2 * SECONDS)
@pytest.mark.usefixtures("node_packages")
async def test_newman_walks_through_it_twice(
    live: Live, run: Run, variables: Mapping[str, str], photo: bytes, tmp_path: Path
) -> None:
    """The second time everything is there already, and that is no error."""
    half = len(photo) // 2
    (tmp_path / "photo.part0").write_bytes(photo[:half])
    (tmp_path / "photo.part1").write_bytes(photo[half:])
    values = [f"{name.lower()}={value}" for name, value in variables.items()]
    options = [option for value in values for option in ("--env-var", value)]
    for _ in range(2):
        status, report = await run(
            require_node(),
            NEWMAN,
            "run",
            COLLECTION,
            *options,
            "--working-dir",
            tmp_path,
            "--reporters",
            "cli,json",
            "--reporter-json-export",
            tmp_path / "report.json",
            "--color",
            "off",
            seconds=SECONDS,
        )
        assert status == 0, report
        walk = json.loads((tmp_path / "report.json").read_text())["run"]
        assert walk["stats"]["requests"] == {"total": 14, "pending": 0, "failed": 0}
        assert walk["stats"]["assertions"]["total"] > 3 * 14
        assert walk["failures"] == []
    folder = live.storage / "photo/1/2025/12/10"
    stored = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert stored == {f"IMG_000{number}.jpg": photo for number in (1, 2, 3)}
    [asset] = live.immich.assets
    assert asset.original_file_name == "IMG_0001.JPG"
