"""The examples for clients do what they are said to do."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import pytest
import tree_sitter_swift
from tree_sitter import Language, Node, Parser

from api.document import DOCUMENT, ApiDocument
from api.live import Live, Run
from debian_tools import program
from immich_bridge.bridge.asset import PARAMETERS
from node_tools import INSTALL_SECONDS, require_node

GUIDE: Final = DOCUMENT.with_name("clients.md")
SECONDS: Final = 30


def blocks(language: str) -> list[str]:
    """The code of that language in the guide, block by block."""
    return re.findall(rf"^```{language}\n(.*?)^```$", GUIDE.read_text(), re.DOTALL | re.MULTILINE)


def stored(live: Live, day: str) -> dict[str, bytes]:
    """The photos of a day on the disk."""
    folder = live.storage / "photo/1" / day
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def three(photo: bytes) -> dict[str, bytes]:
    """What is there after a form, a stream and chunks."""
    return {f"IMG_000{number}.jpg": photo for number in (1, 2, 3)}


async def test_curl(
    live: Live, run: Run, variables: Mapping[str, str], photo: bytes, tmp_path: Path
) -> None:
    for name in ("curl", "openssl"):
        program(name, name)
    script = tmp_path / "guide.sh"
    script.write_text("\n".join(blocks("sh")))
    status, output = await run("sh", script, seconds=SECONDS, **variables)
    assert status == 0, output
    # The answers, one after another: the first with its headers.
    head, _, answers = output.replace("\r\n", "\n").partition("\n\n")
    assert " 201 " in head.partition("\n")[0]
    [asset] = live.immich.assets
    assert f"X-Immich-Asset-Id: {asset.id}" in head
    assert "X-Immich-Status: created" in head
    parsed = _json_values(answers)
    assert [answer["duplicate"] for answer in parsed[:2]] == [False, True]
    assert [answer["id"] for answer in parsed[:2]] == [asset.id, asset.id]
    assert asset.original_file_name == "IMG_0001.JPG"
    assert asset.is_favorite
    assert asset.path.read_bytes() == photo
    assert stored(live, "2025/12/10") == three(photo)
    chunks = [answer["complete"] for answer in parsed if "complete" in answer]
    assert len(chunks) > 2
    assert chunks == [False] * (len(chunks) - 1) + [True]
    assert [answer["username"] for answer in parsed if "username" in answer] == ["admin"]
    assert "token" in parsed[-1]


@pytest.mark.timeout(INSTALL_SECONDS + SECONDS)
@pytest.mark.usefixtures("node_packages")
async def test_javascript(
    live: Live, run: Run, variables: Mapping[str, str], photo: bytes, tmp_path: Path
) -> None:
    script = tmp_path / "guide.mjs"
    script.write_text("\n".join(blocks("js")))
    status, output = await run(
        require_node(),
        "--disable-warning=ExperimentalWarning",
        script,
        seconds=SECONDS,
        **variables,
    )
    assert status == 0, output
    [asset] = live.immich.assets
    assert asset.original_file_name == "Zürich 照片.jpg"
    assert asset.path.read_bytes() == photo
    [metadata] = asset.metadata
    assert metadata["value"] == {
        "iCloudId": "6F1C9A52-0D7E-4F0A-9A51-2B8F7C1D9E30/L0/001",
        "createdAt": "2026-11-21T09:00:00.000Z",
        "latitude": "47.3769",
        "longitude": "8.5417",
    }
    assert stored(live, "2025/12/11") == three(photo)
    assert output.splitlines() == [
        f"created: {asset.id}",
        "js/form IMG_0001.jpg []",
        "js/stream IMG_0002.jpg []",
        "js/chunks IMG_0003.jpg []",
        "complete: true",
        "422 checksum_mismatch",
    ]


class TestSwift:
    """No Swift with PhotoKit runs here: what can be seen without is checked."""

    def test_can_be_parsed(self) -> None:
        parser = Parser(Language(tree_sitter_swift.language()))
        for block in blocks("swift"):
            assert _errors(parser.parse(block.encode()).root_node) == []
        broken = blocks("swift")[0].replace("->", "=>", 1)
        assert _errors(parser.parse(broken.encode()).root_node)

    def test_names_are_those_of_the_document(self) -> None:
        code = "\n".join(blocks("swift"))
        upload = ApiDocument.load().whole["paths"]["/api/assets/background"]["post"]
        assert 'appendingPathComponent("api/assets/background")' in code
        assert 'httpMethod = "POST"' in code
        headers = set(re.findall(r'forHTTPHeaderField: "([^"]+)"', code))
        assert headers == {
            "x-api-key",
            "X-File-Created-At",
            "X-File-Modified-At",
            "X-Is-Favorite",
            "X-Latitude",
            "X-Longitude",
            "X-Duration",
        }
        assert headers - {"x-api-key"} <= PARAMETERS.keys()
        queries = set(re.findall(r'URLQueryItem\(name: "([^"]+)"', code))
        assert queries == {"filename", "deviceAssetId", "iCloudId"}
        assert queries <= set(PARAMETERS.values())
        described = {header.lower() for header in upload["responses"]["502"]["headers"]}
        assert set(re.findall(r'responseHeaderFields\?\["([^"]+)"\]', code)) <= described


def test_codes_of_errors_are_those_of_the_document() -> None:
    table = GUIDE.read_text().partition("## Errors")[2]
    named = set(re.findall(r"`([a-z_]+)`", "\n".join(re.findall(r"^\| (.*?) \|", table, re.M))))
    codes = ApiDocument.load().component("schemas", "Error")["properties"]["error"]["enum"]
    # The rest is met by no client that keeps to the document.
    assert set(codes) - named == {"not_found", "method_not_allowed", "not_implemented"}
    assert named <= set(codes)


def _json_values(text: str) -> list[dict[str, object]]:
    """JSON objects that were written one behind the other."""
    decoder = json.JSONDecoder()
    values = []
    at = text.index("{")
    while at >= 0:
        value, end = decoder.raw_decode(text, at)
        values.append(value)
        at = text.find("{", end)
    return values


def _errors(node: Node) -> list[str]:
    """What the parser could not make sense of."""
    if node.is_error or node.is_missing:
        return [f"{node.start_point}: {node.text!r}"]
    return [error for child in node.children for error in _errors(child)]
