"""Conversations in parallel with a bridge, each from an address of its own, and their judgement."""

import asyncio
import re
import socket
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Protocol
from urllib.parse import urlsplit

from raw_upload import eventually
from torture.node_upstream import NodeUpstream, Seen
from torture.request_corpus import Conversation
from torture.request_judge import Ending, Outcome, answers_in, faults_of
from torture.request_reading import End
from wire import PATIENCE, fetch

_AT_ONCE: Final = 64
"""Connections in parallel."""
_LONGEST: Final = 30.0
"""Seconds after which a conversation hangs; loaded machines are slow, but not that slow."""
_REQUEST: Final = re.compile(r" INFO (?:malformed )?request client=(127\.\d+\.\d+\.\d+) ")


class BridgeProcess(Protocol):
    """A bridge as a process of its own."""

    process: asyncio.subprocess.Process
    url: str
    log: list[str]


StartProcess = Callable[..., Awaitable[BridgeProcess]]
"""What the fixture of that name is."""


@dataclass(frozen=True)
class Finding:
    """A conversation that did not go as it should, and how to repeat it."""

    fault: str
    outcome: Outcome
    lines: Sequence[str]
    """Of the log."""

    def __str__(self) -> str:
        one = self.outcome.conversation
        return (
            f"conversation {one.number}: {self.fault}\n"
            f"  sent {one.pieces!r}\n  got {self.outcome.raw!r}\n"
            f"  ended {self.outcome.ending.value}\n  logged {self.lines}"
        )


class Runner:
    """Talks to `bridge`, which stands before `upstream`."""

    def __init__(self, bridge: BridgeProcess, upstream: NodeUpstream) -> None:
        self._bridge = bridge
        self._upstream = upstream
        self._rounds = 0
        self.refused: Counter[str] = Counter()
        """What Node's parser refused of what it was sent: its codes, and how often."""
        self.statuses: Counter[int] = Counter()
        """Of all answers."""
        self.seen = 0
        """Requests that came to their end at Node."""
        self.strange_lines: list[str] = []
        """Of the log: all that do not tell of a request in one line."""

    async def run(self, conversations: Iterable[Conversation]) -> list[Finding]:
        """Have them all, 64 at once; what was found."""
        waiting = iter(conversations)
        outcomes: list[Outcome] = []

        async def work() -> None:
            outcomes.extend([await self._converse(one) for one in waiting])

        await asyncio.gather(*(work() for _ in range(_AT_ONCE)))
        await self._settle()
        return self._judge(outcomes)

    async def _converse(self, conversation: Conversation) -> Outcome:
        received = bytearray()
        with socket.socket() as client:
            client.setblocking(False)
            client.bind((conversation.client, 0))
            try:
                async with asyncio.timeout(_LONGEST):
                    ending = await self._exchange(conversation, client, received)
            except TimeoutError:
                ending = Ending.HUNG
        return Outcome(conversation, bytes(received), ending)

    async def _exchange(
        self, conversation: Conversation, client: socket.socket, received: bytearray
    ) -> Ending:
        loop = asyncio.get_running_loop()
        at = urlsplit(self._bridge.url)
        await loop.sock_connect(client, (at.hostname, at.port))
        # What comes is read also behind a failure to send, which streams would not do.
        with suppress(ConnectionError):
            for piece in conversation.pieces:
                await loop.sock_sendall(client, piece)
                await asyncio.sleep(0)
        if conversation.cut_off:
            return Ending.CUT_OFF
        reading = conversation.reading
        methods = [request.method for request in reading.requests]
        # Where more could follow, the bridge may wait as long as it likes.
        enough = len(methods) if reading.end is End.WAITS else None
        with suppress(ConnectionError):
            while True:
                answers = list(answers_in(bytes(received), methods))
                if len(answers) == enough or (answers and answers[-1].status == 101):
                    return Ending.LEFT
                if not (piece := await loop.sock_recv(client, 1 << 16)):
                    break
                received += piece
        return Ending.CLOSED

    async def _settle(self) -> None:
        """Wait until everything is told and logged."""
        await self._upstream.quiet(PATIENCE)
        self._rounds += 1
        mark = f"/settled/{self._rounds}"
        await fetch(self._bridge.url, "GET", mark)
        await eventually(lambda: any(f" path={mark} " in line for line in self._bridge.log))

    def _judge(self, outcomes: Sequence[Outcome]) -> list[Finding]:
        lines: dict[str, list[str]] = defaultdict(list)
        for line in self._bridge.log:
            if (found := _REQUEST.search(line)) is not None:
                lines[found[1]].append(line)
            elif " INFO listening " not in line:
                self.strange_lines.append(line)
        self._bridge.log.clear()
        seen: dict[str, list[Seen]] = defaultdict(list)
        for one in self._upstream.seen:
            seen[one.client].append(one)
            self.seen += one.complete
        self.refused.update(refused.code for refused in self._upstream.refused)
        findings = []
        for outcome in outcomes:
            client = outcome.conversation.client
            logged = lines.pop(client, [])
            self.statuses.update(answer.status for answer in outcome.answers)
            faults = faults_of(outcome, seen.pop(client, []), logged)
            findings += [Finding(fault, outcome, logged) for fault in faults]
        # Those of `_settle`, and of whoever prepared the bridge.
        seen.pop("127.0.0.1", None)
        lines.pop("127.0.0.1", None)
        assert not seen, f"Node saw requests of nobody: {seen}"
        assert not lines, f"the log has lines of nobody: {lines}"
        self._upstream.seen.clear()
        self._upstream.refused.clear()
        return findings
