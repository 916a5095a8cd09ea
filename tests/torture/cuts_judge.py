"""One cut at a time: drawn at random, undergone, and judged by what both ends are left with."""

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, get_args

from torture.cuts_bench import RELEASED_SECONDS, Bench
from torture.cuts_requests import BACKUP_KINDS, CONFIRMED, READS, Ask, Kind
from torture.fault_proxy import Direction, Fault, Way
from wire import Message

Side = Literal["client", "immich"]
SIDES: Final[tuple[Side, ...]] = get_args(Side)
"""Between the client and the bridge, or between the bridge and Immich."""

LEAVES_AFTER: Final = 1.2
"""Seconds of silence after which a client gives up that nobody else would help."""
_NEVER: Final = 1 << 60
_ENDS: Final = 120
"""Bytes at the end of a request in which its closing boundary lies."""
_STARTS: Final = 1500
"""Bytes at the start of a request to Immich in which its head and the form's fields lie."""


@dataclass
class Cut:
    """A request, and what happens to it on its way."""

    ask: Ask
    side: Side
    fault: Fault

    def __str__(self) -> str:
        fault = self.fault
        return (
            f"{fault.way} at {fault.at} {fault.direction} on the side of {self.side}: "
            f"{self.ask.kind} of {len(self.ask.content)} bytes as {self.ask.size} ({self.ask.name})"
        )

    @property
    def struck(self) -> bool:
        """Whether it did happen, and was not a mere delay."""
        return self.fault.happened.is_set() and self.fault.way != "trickle"

    @property
    def client_has_to_leave(self) -> bool:
        """Whether the bridge waits for as long as its client does, or for longer than a test can.

        The client does not read, or Immich does not: neither has a limit of time. Half of a
        head has one of more than a minute.
        """
        fault = self.fault
        if fault.way != "stall":
            return False
        if self.side == "client" and fault.direction == "up":
            return fault.at < len(self.ask.head)
        return (self.side, fault.direction) in (("client", "down"), ("immich", "up"))

    @property
    def head_came(self) -> bool:
        """Whether the bridge has surely seen the head. A reset takes what was not read with it."""
        if self.side == "immich" or not self.struck or self.fault.direction == "down":
            return True
        return self.fault.way != "reset" and self.fault.at > len(self.ask.head)

    @property
    def sent_whole(self) -> bool:
        """Whether all bytes of the request may have come to the bridge.

        What a stall has held back comes after all when the client is gone.
        """
        on_its_way = self.side == "client" and self.fault.direction == "up"
        if not (self.struck and on_its_way) or self.client_has_to_leave:
            return True
        return self.fault.at >= self.ask.size


@dataclass(frozen=True)
class Sizes:
    """What an unharmed request of a kind had on the wire beside its content, in both directions."""

    client: dict[Direction, int]
    immich: dict[Direction, int]

    def total(self, ask: Ask, side: Side, direction: Direction) -> int:
        """Bytes of `ask` on that side; an estimate on the side of Immich."""
        if side == "client" and direction == "up":
            return ask.size
        beside = (self.client if side == "client" else self.immich)[direction]
        # At least one, whatever a second try on another connection did to the rehearsal.
        return max(1, beside + (len(ask.content) if direction == _way_of_content(ask) else 0))


def draw(chance: random.Random, ask: Ask, ways: Sequence[Way], sizes: Sizes) -> Cut:
    """A cut of `ask`: heads, first and last bytes and answers are hit as often as all the rest."""
    side: Side = "client"
    if ask.kind not in BACKUP_KINDS and chance.random() < 0.5:
        side = "immich"
    towards_content, other = _way_of_content(ask), _other(_way_of_content(ask))
    direction = towards_content if chance.random() < 0.8 else other
    total = sizes.total(ask, side, direction)
    start = len(ask.head) if side == "client" and direction == "up" else min(_STARTS, total)
    at = chance.choice(
        [
            chance.randrange(start + 1),
            start + chance.randrange(600),
            chance.randrange(total),
            chance.randrange(total),
            total - chance.randrange(_ENDS),
        ]
    )
    return Cut(ask, side, Fault(chance.choice(ways), direction, max(0, min(at, total))))


@dataclass
class Tally:
    """What came of the cuts."""

    struck: Counter[str] = field(default_factory=Counter)
    """By way; those that came too late to happen do not count."""
    released: list[float] = field(default_factory=list)
    """Seconds from a cut or a reset at the client's side until Immich was rid of the request."""
    told: list[float] = field(default_factory=list)
    """Seconds from a cut or a reset at Immich's side until the client had its answer."""
    trickled: int = 0
    acknowledged: int = 0
    may_arrive: dict[str, bytes] = field(default_factory=dict)
    """Name and SHA-1 of requests that were whole, and not yet there when they were judged."""

    @property
    def total(self) -> int:
        """How many cuts have happened."""
        return sum(self.struck.values())


async def rehearse(bench: Bench, for_client: Ask, for_immich: Ask) -> Sizes:
    """Send a request unharmed past the proxy of either side; what it had on the wire."""
    passed: list[dict[Direction, int]] = []
    for ask, proxy, url in (
        (for_client, bench.before, bench.before.url),
        (for_immich, bench.behind, bench.url),
    ):
        fault = proxy.faults[ask.name] = Fault("trickle", "up", _NEVER)
        answer = await ask.sent_to(url)
        assert answer.status in (200, 201), answer
        assert ask.kind not in READS or ask.brought(answer)
        await bench.ended(ask)
        await bench.released(ask)
        bench.arrived(ask)
        del proxy.faults[ask.name]
        fault.passed[_way_of_content(ask)] -= len(ask.content)
        passed.append(fault.passed)
    return Sizes(*passed)


async def undergo(
    bench: Bench, cut: Cut, tally: Tally, arrived: Callable[[Ask], bool] | None = None
) -> None:
    """Send the request, let it happen, and judge; `arrived` looks for its content."""
    ask, fault = cut.ask, cut.fault
    proxy = bench.before if cut.side == "client" else bench.behind
    proxy.faults[ask.name] = fault
    try:
        answer = await _answer(bench, cut)
    except TimeoutError:
        raise AssertionError(f"hangs: {cut}") from None
    answered_at = asyncio.get_running_loop().time()
    del proxy.faults[ask.name]
    try:
        if cut.head_came:
            await bench.ended(ask)
        # Immich cannot see what became of a connection on which it reads nothing.
        fault.over.set()
        done_at = await bench.released(ask)
    except TimeoutError:
        raise AssertionError(f"not released in {RELEASED_SECONDS:g} s: {cut}") from None
    here = (arrived or bench.arrived)(ask)
    try:
        _judge(cut, answer, here)
    except AssertionError as exc:
        exc.add_note("\n".join(bench.log.of(ask.name)))
        raise
    if cut.struck:
        tally.struck[fault.way] += 1
        if fault.way != "stall" and cut.side == "client":
            tally.released.append(done_at - fault.happened_at)
        elif fault.way != "stall":
            tally.told.append(answered_at - fault.happened_at)
    tally.trickled += fault.happened.is_set() and not cut.struck
    tally.acknowledged += answer is not None and answer.status in (200, 201)
    if cut.sent_whole and not here:
        tally.may_arrive[ask.name] = ask.sha1


async def undergo_all(
    bench: Bench,
    cuts: Iterator[Cut],
    tally: Tally,
    *,
    wanted: int,
    at_once: int,
    arrived: Callable[[Ask], bool] | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> None:
    """Undergo cuts, `at_once` at a time, until `wanted` more have happened."""
    enough = tally.total + wanted

    async def work() -> None:
        while tally.total < enough:
            await undergo(bench, next(cuts), tally, arrived)
            progress(tally.total)

    async with asyncio.TaskGroup() as group:
        for _ in range(at_once):
            group.create_task(work())


async def _answer(bench: Bench, cut: Cut) -> Message | None:
    """The answer as the client sees it; None when there was none, or no whole one."""
    url = bench.before.url if cut.side == "client" else bench.url
    sending = asyncio.create_task(cut.ask.sent_to(url))
    happening = asyncio.create_task(cut.fault.happened.wait())
    try:
        await asyncio.wait({sending, happening}, return_when=asyncio.FIRST_COMPLETED)
        if happening.done():
            bench.look_at_pipes()
        while cut.client_has_to_leave and not sending.done():
            await asyncio.wait({sending}, timeout=LEAVES_AFTER)
            # `wait_for` swallows a cancellation in the moment in which it ends: then once more.
            sending.cancel()
        await asyncio.wait({sending})
        broken = (ConnectionError, asyncio.IncompleteReadError)
        if sending.cancelled() or isinstance(sending.exception(), broken):
            return None
        return sending.result()
    finally:
        sending.cancel()
        happening.cancel()


def _judge(cut: Cut, answer: Message | None, here: bool) -> None:
    good = answer is not None and answer.status in (200, 201)
    if cut.ask.kind in READS:
        assert answer is None or not good or cut.ask.brought(answer), f"not whole: {cut}"
    else:
        assert here or not good, f"acknowledged and not there: {cut}"
        assert cut.sent_whole or not here, f"made of less than was sent: {cut}"
    if cut.fault.way == "stall" and not cut.struck:
        return  # it met limits of time so short that a busy machine alone exceeds them
    if not cut.struck:
        assert good, f"nothing happened to it, and yet {answer}: {cut}"
    elif cut.side == "immich" and not cut.client_has_to_leave:
        if cut.ask.kind not in READS:
            assert cut.fault.met == 1, f"sent {cut.fault.met} times: {cut}"
        if cut.fault.direction == "up" or cut.ask.kind in CONFIRMED:
            # Else it may be the answer on its way to the client that is cut.
            assert answer is not None, f"the client was told nothing: {cut}"
        if answer is not None and not good:
            codes = {502: "bad_gateway", 504: "gateway_timeout"}
            assert answer.header("X-Bridge-Error") == codes.get(answer.status), cut


def _way_of_content(ask: Ask) -> Direction:
    return "down" if ask.kind in READS else "up"


def _other(direction: Direction) -> Direction:
    return "down" if direction == "up" else "up"


def kinds_in_turn(chance: random.Random, kinds: Sequence[Kind]) -> Iterator[Kind]:
    """Each kind as often as the others, in an order that changes."""
    while True:
        yield from chance.sample(kinds, len(kinds))
