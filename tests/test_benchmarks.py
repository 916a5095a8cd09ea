"""The benchmarks work: they measure what they say, and notice what is wrong. Nothing is timed."""

import asyncio
import json
import socket
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from block import Block
from chart import Bar, Panel, svg
from compiler import compiled
from discarding_upstream import DiscardingUpstream, running_upstream
from figures import Figures, Sample
from load_driver import LoadDriver, LoadFailed, Request
from soak import is_private
from targets import parse_mode
from traffic.photo import Photo
from traffic.tally import Latencies, Tally, Wrong
from works import GIB, MIB, Work

from debian_tools import program

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
SIZE = 300_000
UPLOAD = f"POST /api/assets HTTP/1.1\r\nHost: x\r\nContent-Length: {SIZE}\r\n\r\n"


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for what is compiled, on a machine that can compile."""
    program("cc", "build-essential")
    return tmp_path_factory.mktemp("native")


@pytest.fixture(scope="module")
def block() -> Iterator[Block]:
    block = Block()
    yield block
    block.close()


@pytest.fixture
def upstream(native: Path, block: Block) -> Iterator[DiscardingUpstream]:
    """One that compares every byte."""
    with running_upstream(compiled("upstream", native), block, verify=True) as upstream:
        yield upstream


@pytest.fixture
def driver(native: Path, block: Block) -> LoadDriver:
    return LoadDriver(compiled("driver", native), block)


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(BENCHMARKS / script), *arguments],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


def exchange(port: int, request: bytes) -> bytes:
    """Send a request, then nothing more; all that comes back."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
        answer = b""
        # A server that has seen enough closes with bytes unread, which resets the connection.
        with suppress(OSError):
            sock.sendall(request)
            sock.shutdown(socket.SHUT_WR)
            while piece := sock.recv(65536):
                answer += piece
        return answer


def test_a_comparison_moves_every_byte_and_writes_its_report(native: Path, tmp_path: Path) -> None:
    done = run("compare.py", "--tiny", "--alone", "--verify", "--results", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "tiny.json").read_text())
    assert report["faults"] == report["missed_limits"] == []
    works = {work["name"]: work["targets"] for work in report["works"]}
    assert works.keys() == {
        "upload 4 MiB",
        "upload 100 KB, 4 at once, checksum",
        "GET 3 MB",
        "JSON",
    }
    for targets in works.values():
        assert targets.keys() == {"direct", "bridge"}
        assert targets["bridge"][0]["requests"] > 0
        assert targets["bridge"][0]["peak_rss"] > 10 * MIB
        assert targets["direct"][0]["cpu_seconds"] is None
    assert "| bridge |" in (tmp_path / "tiny.md").read_text()
    for kind in ("speed", "cpu"):
        ElementTree.parse(tmp_path / f"tiny-{kind}.svg")


def test_a_soak_without_a_failure(tmp_path: Path) -> None:
    clients = ("--phones", "2", "--browsers", "1", "--sockets", "3", "--backup-phones", "1")
    target = tmp_path / "soak.json"
    done = run("soak.py", "--duration", "2s", *clients, "--json", str(target))
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(target.read_text())
    expected = {"photo", "JSON", "thumbnail", "range", "socket ping", "backup index", "delete"}
    assert expected <= report["kinds"].keys()
    assert report["kinds"]["socket life"]["done"] == 3
    assert all(kind["failed"] == 0 < kind["done"] for kind in report["kinds"].values())
    assert report["server"]["looks"][-1]["rss_mib"] > 10


def test_a_soak_fails_when_nobody_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = reserved.getsockname()[1]
    done = run("soak.py", "--target", f"http://127.0.0.1:{port}", "--api-key", "x")
    assert done.returncode == 1
    assert "13 of 13 requests failed" in done.stdout


@pytest.mark.parametrize(
    ("url", "private"),
    [
        ("http://127.0.0.1:8080", True),
        ("http://[::1]:8080", True),
        ("https://192.168.1.20", True),
        ("http://8.8.8.8", False),
        ("http://[2606:4700::1111]", False),
    ],
)
def test_which_hosts_are_soaked_without_asking(url: str, private: bool) -> None:
    assert is_private(url) is private


def test_a_public_target_is_refused() -> None:
    done = run("soak.py", "--target", "http://8.8.8.8", "--api-key", "x")
    assert done.returncode == 2
    assert "--i-own-this-host" in done.stderr


def test_the_driver_sends_the_block_and_the_upstream_counts_it(
    upstream: DiscardingUpstream, driver: LoadDriver
) -> None:
    request = Request(UPLOAD, SIZE, status=201)
    drive = driver.drive(upstream.port, request, connections=3, requests=20, seconds=60)
    receipts = upstream.receipts()
    assert (drive.requests, receipts.uploads, receipts.file_bytes) == (20, 20, 20 * SIZE)
    assert (receipts.faults, receipts.fault) == (0, "")
    assert drive.begun < receipts.first_byte
    assert drive.p50_us <= drive.p99_us


@pytest.mark.parametrize(
    ("request_", "complaint"),
    [
        (Request(UPLOAD, SIZE, status=200), "201 Created"),
        (Request("GET / HTTP/1.1\r\n\r\n", answer_bytes=5), "200 OK"),
        (Request("POST / HTTP/1.1\r\n\r\n", status=201), "no whole answer"),
    ],
)
def test_the_driver_fails_at_an_answer_that_is_not_the_expected_one(
    upstream: DiscardingUpstream, driver: LoadDriver, request_: Request, complaint: str
) -> None:
    with pytest.raises(LoadFailed, match=complaint):
        driver.drive(upstream.port, request_, connections=1, requests=1, seconds=60)


FORM_START = b'--b\r\nContent-Disposition: form-data; name="assetData"; filename="a"\r\n\r\n'


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        (FORM_START + b"%b\r\n--b--\r\n", ""),
        (FORM_START + b"%b\r\n--b-!\r\n", "the form does not end in its closing boundary"),
        (FORM_START + b"x%b\r\n--b--\r\n", "a byte is wrong"),
    ],
    ids=["whole", "without its end", "with a byte more"],
)
def test_the_upstream_looks_into_forms(
    upstream: DiscardingUpstream, block: Block, body: bytes, fault: str
) -> None:
    content = block.path.read_bytes()[:SIZE]
    body = body.replace(b"%b", content)
    head = b"POST / HTTP/1.1\r\nContent-Type: multipart/form-data; boundary=b\r\n"
    answer = exchange(upstream.port, head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    receipts = upstream.receipts()
    assert (receipts.fault, receipts.file_bytes) == (fault, 0 if fault else SIZE)
    assert answer.startswith(b"HTTP/1.1 201 ") is not bool(fault)


@pytest.mark.parametrize(
    ("rest", "fault"),
    [(b"\0" * 10, "more came than was announced"), (b"", "the body broke off")],
)
def test_the_upstream_counts_raw_bodies(
    upstream: DiscardingUpstream, block: Block, rest: bytes, fault: str
) -> None:
    content = block.path.read_bytes()[: 1000 if rest else 999]
    exchange(upstream.port, b"POST / HTTP/1.1\r\nContent-Length: 1000\r\n\r\n" + content + rest)
    assert upstream.receipts().fault == fault


def figures(*, growth: int, first_byte_ms: float) -> Figures:
    def sample(seconds: float) -> Sample:
        return Sample(
            seconds,
            1,
            p50_us=seconds * 1e6,
            p99_us=seconds * 1e6,
            cpu_seconds=seconds / 2,
            peak_rss=50 * MIB + growth,
            idle_rss=50 * MIB,
            first_byte_ms=first_byte_ms,
        )

    result = Figures(Work("upload 1 GiB", Request("", GIB), once=True))
    result.samples = {
        "direct": [Sample(0.25, 1, 250_000, 250_000), Sample(0.5, 1, 500_000, 500_000)],
        "bridge": [sample(0.5), sample(2.0)],
    }
    return result


def test_ratios_are_of_the_same_round() -> None:
    result = figures(growth=0, first_byte_ms=1.0)
    assert result.ratio("bridge", "direct") == [0.5, 0.25]
    assert result.cpu("bridge") == [0.25, 1.0]
    assert result.added_ms("bridge", "p50") == [250.0, 1500.0]
    assert result.speed("bridge")[0] == pytest.approx(GIB / 1e6 / 0.5)
    assert result.missed_limits("bridge") == []


def test_limits_of_memory_and_of_the_first_byte() -> None:
    memory, first_byte = figures(growth=25 * MIB, first_byte_ms=51.0).missed_limits("bridge")
    assert memory == "RSS growth 25.0 MiB > 24 MiB"
    assert first_byte == "first byte after 51.0 ms > 50 ms"


def test_modes_are_settings_that_exist() -> None:
    mode = parse_mode("asyncio,LOG_LEVEL=error")
    assert (mode.event_loop, mode.settings) == ("asyncio", {"LOG_LEVEL": "error"})
    with pytest.raises(ValueError, match="NO_SUCH"):
        parse_mode("NO_SUCH=1")


def test_charts_are_well_formed_whatever_they_show() -> None:
    text = svg([Panel("a < b", "MB/s", [Bar('"<&', 0.0), Bar("ours", 2.5, ours=True)])], "c & d")
    root = ElementTree.fromstring(text)
    texts = ["".join(each.itertext()) for each in root.iter("{http://www.w3.org/2000/svg}text")]
    assert texts == ["a < bMB/s", '"<&', "0.00", "ours", "2.50", "c & d"]


def test_percentiles_of_classes_two_percent_wide() -> None:
    latencies = Latencies()
    for milliseconds in range(1, 1001):
        latencies.add(milliseconds / 1000)
    for percent in (50, 95, 99):
        assert percent / 100 <= latencies.percentile(percent) <= percent / 100 * 1.02
    assert latencies.percentile(100) == latencies.longest == 1.0


def test_what_goes_wrong_is_counted_and_what_is_cancelled_is_not() -> None:
    tally = Tally()
    with tally.request("photo", 10):
        pass
    with tally.request("photo", 10):
        raise Wrong("no")
    with pytest.raises(asyncio.CancelledError), tally.request("photo"):
        raise asyncio.CancelledError
    photo = tally.kinds["photo"]
    assert (photo.done, photo.failed, photo.under_way, photo.bytes) == (1, 1, 0, 10)
    assert tally.messages[0].endswith("photo: Wrong: no")


async def test_a_photo_is_the_bytes_that_its_digests_cover() -> None:
    photo = Photo(20_000_000)
    streamed = b"".join([piece async for piece in photo])
    assert len(streamed) == photo.size
    assert streamed == photo.content
    assert Photo(20_000_000).sha1 != photo.sha1
