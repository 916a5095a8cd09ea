"""schemathesis makes requests out of the API document and holds the answers against it."""

import re
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from api.document import DOCUMENT
from api.live import Live, Run
from backup_uploads import index
from backup_wing import PASSWORD, USERNAME, Api
from raw_upload import jpeg, result, upload

CONFIG = Path(__file__).with_name("schemathesis.toml")
SECONDS = 150
LEAST_CASES = 500


@pytest.mark.timeout(SECONDS + 30)
async def test_a_live_server_is_as_documented(
    live: Live, run: Run, variables: Mapping[str, str]
) -> None:
    """Several hundred requests, right and wrong ones, always the same."""
    api = Api(live.url)
    api.token = (await api.login(USERNAME, PASSWORD)).json["token"]
    await index(api, "IMG_1234")  # the photo of the document's examples
    video = await upload(live.url, jpeg(100), ("X-Filename", "v.mov"), ("X-Visibility", "hidden"))
    status, report = await run(
        *(sys.executable, "-m", "schemathesis.cli", "--config-file", CONFIG),
        *("run", DOCUMENT, "--url", live.url, "--no-color"),
        seconds=SECONDS,
        VIDEO_ID=result(video)["id"],
        **variables,
    )
    assert status == 0, report
    passed = re.search(r"(\d+) generated, (\d+) passed", report)
    assert passed is not None, report
    assert passed[1] == passed[2]
    assert int(passed[1]) >= LEAST_CASES
    # It has come as far as that: photos lie on the disk, and assets at Immich.
    assert (live.storage / "photo/1/2025/12/10/IMG_0001.jpg").is_file()
    assert len(live.immich.assets) > 1
