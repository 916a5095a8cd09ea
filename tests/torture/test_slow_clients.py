"""Slow clients hurt only themselves: others do not notice them, and each comes to its end."""

import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from statistics import median
from typing import Final

import pytest

from debian_tools import program
from torture.effort import Effort
from torture.memory_server import (
    MB,
    MIB,
    Bench,
    MeasuredServer,
    many_descriptors,
    measured_server,
    running_bench,
)
from torture.slow_clients import (
    Limits,
    SlowClients,
    SlowCrowd,
    bodies,
    connected,
    half_heads,
    large_answers,
)
from wire import PATIENCE, request

PROMISE: Final = "8 slow clients"
SMALL_LIMITS: Final = Limits(head=3.0, idle_body=2.0, unread_answer=3.0)
# Long enough for the good uploads to come to their end before any of them.
FULL_LIMITS: Final = Limits(head=120.0, idle_body=20.0, unread_answer=120.0)
KIB_EACH: Final = {"half-sent head": 32, "trickling body": 128, "reader that does not read": 1024}
ENDLESS_MIB: Final = 16
"""By how much a head that goes on and on may make the memory grow, before it is refused."""
SLOWEST_RATIO: Final = 2.0
_GOOD_BYTES: Final = 2 * MB
_GOOD_UPLOADS: Final = 25
"""Of each wing at a time."""
_MARGIN: Final = 30.0
"""Seconds beyond a limit that a busy machine may take."""


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    program("cc", "build-essential")
    with many_descriptors(), running_bench(tmp_path_factory.mktemp("native")) as bench:
        yield bench


@pytest.mark.alone
def test_slow_clients_hurt_only_themselves(effort: Effort, bench: Bench, tmp_path: Path) -> None:
    count, rounds = effort.amount(30, 500), effort.amount(1, 12)
    limits = FULL_LIMITS if effort.full else SMALL_LIMITS
    with ExitStack() as stack:

        def start(name: str) -> MeasuredServer:
            folder = tmp_path / name
            folder.mkdir()
            idle = f"{limits.idle_body}s"
            return stack.enter_context(
                measured_server(bench, folder, command=limits.command, BODY_IDLE_TIMEOUT=idle)
            )

        server, unloaded = start("server"), start("unloaded")
        at_rest = settled(server.stats.descriptors)
        crowd = gather_crowd(stack, effort, server, count)
        slower = []
        for number in range(rounds):
            # One after the other: what else this machine does meanwhile is the same for both.
            alone = good_uploads(unloaded)
            with crowd.dripping(effort.chance(number)):
                crowded = good_uploads(server)
            slower.append(max(crowded[wing] / alone[wing] for wing in alone))
        if effort.full:
            assert server.stats.descriptors() >= at_rest + 3 * count, "some are gone already"
        began = time.monotonic()
        wait_until(lambda: server.stats.descriptors() <= at_rest, limits.longest + _MARGIN)
        reaped = time.monotonic() - began
        assert set(crowd.bodies.first_lines()) == {b"HTTP/1.1 408 Request Timeout"}
        assert set(crowd.heads.first_lines()) == {b""}
    assert not list((tmp_path / "server" / "storage").rglob("*.part"))
    effort.figure(
        PROMISE,
        f"{3 * count} slow ones, {2 * rounds * _GOOD_UPLOADS} good uploads: all succeed, p99 "
        f"{median(slower):.2f} x unloaded; all slow ones gone {reaped:.0f} s after their last byte "
        f"(limits {limits.head:g}, {limits.idle_body:g} and {limits.unread_answer:g} s), "
        f"descriptors back to {at_rest}",
    )
    if effort.full:
        assert median(slower) <= SLOWEST_RATIO


def test_what_has_no_end_is_refused_before_it_fills_the_memory(
    effort: Effort, bench: Bench, tmp_path: Path
) -> None:
    in_chunks = request("POST", "/", ("Transfer-Encoding", "chunked"), body=b"1\r\na\r\n")
    field = b"X-A: %b\r\n" % bytes(b"a" * 30_000)
    endless = (
        (b"GET / HTTP/1.1\r\nHost: bridge\r\n", field),
        (in_chunks + b"0\r\n", field),  # trailers
        (in_chunks + b"1;", b"a" * 30_000),  # an extension of a chunk
    )
    with measured_server(bench, tmp_path) as server:

        def send_all() -> None:
            with ThreadPoolExecutor(len(endless)) as executor:
                for sent in [executor.submit(send_on_and_on, server.port, *e) for e in endless]:
                    sent.result()

        grown = server.growth(send_all)
    assert grown <= ENDLESS_MIB
    effort.figure(
        PROMISE, f"a head, trailers and a chunk extension without end: refused, {grown:.1f} MiB"
    )


def send_on_and_on(port: int, beginning: bytes, piece: bytes) -> None:
    """Send until the server has had enough."""
    deadline = time.monotonic() + PATIENCE
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as peer:
        peer.sendall(beginning)
        with suppress(ConnectionError):
            while time.monotonic() < deadline:
                peer.sendall(piece)
            pytest.fail("the server has never enough")


def gather_crowd(stack: ExitStack, effort: Effort, server: MeasuredServer, count: int) -> SlowCrowd:
    """All slow clients, one kind after the other, to see what each kind costs."""
    beginnings = (half_heads(count), bodies(server, count), large_answers(count))
    kinds: list[SlowClients] = []
    for (name, most), texts in zip(KIB_EACH.items(), beginnings, strict=True):
        rss, descriptors = server.stats.rss(), server.stats.descriptors()
        kinds.append(stack.enter_context(connected(server.port, texts)))
        wait_until(lambda: server.stats.descriptors() >= descriptors + count)  # noqa: B023
        each = (settled(server.stats.rss) - rss) / count / 1024
        effort.figure(PROMISE, f"{count} of {name}: {each:.0f} KiB each")
        assert each <= most + MIB / count / 1024, name
    return SlowCrowd(*kinds)


def good_uploads(server: MeasuredServer) -> dict[str, float]:
    """Upload to both wings at the same time; the p99 of each."""
    with ThreadPoolExecutor(2) as executor:
        wings = {
            "bridge": executor.submit(server.upload, _GOOD_BYTES, times=_GOOD_UPLOADS, at_once=5),
            "backup": executor.submit(server.back_up, _GOOD_BYTES, times=_GOOD_UPLOADS, at_once=2),
        }
    for drive in wings.values():
        assert drive.result().requests == _GOOD_UPLOADS
    return {wing: drive.result().p99_us for wing, drive in wings.items()}


def wait_until(condition: Callable[[], bool], seconds: float = PATIENCE) -> None:
    """For what a process shows by no event: return as soon as it is so."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.02)


def settled(measure: Callable[[], int]) -> int:
    """A measure of the server, once it has not changed for a while."""
    value, since = measure(), time.monotonic()
    deadline = since + PATIENCE
    while time.monotonic() - since < 0.3 and time.monotonic() < deadline:
        time.sleep(0.05)
        if (now := measure()) != value:
            value, since = now, time.monotonic()
    return value
