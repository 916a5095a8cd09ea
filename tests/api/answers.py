"""Holds every answer of the servers in this process against the API document.

A watcher in front of everything else sees what the server writes to its connections. An
answer that the document does not promise fails the test that caused it.
"""

import asyncio
import functools
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, Final

import pytest
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from api.document import ApiDocument, SeenAnswer
from immich_bridge.app import make_app
from immich_bridge.http.connection import Connection

_MOST_BYTES: Final = 1024 * 1024
"""More is kept of no answer; one of ours that large would be a fault of its own."""

_document = functools.cache(ApiDocument.load)


class Answers:
    """The answers that were seen, and what is wrong with them."""

    def __init__(self) -> None:
        self.seen: Counter[tuple[str, str, int]] = Counter()
        """Method, route and status of what was held against the document."""
        self.problems: list[str] = []

    def middleware(self) -> Middleware:
        """The watcher of one application."""

        @web.middleware
        async def watch(request: web.Request, handler: Handler) -> web.StreamResponse:
            resource = request.match_info.route.resource
            path = resource.canonical if resource else ""
            protocol = request.protocol
            transport = protocol.transport
            if path not in _document().paths or transport is None:
                response = await handler(request)
                if isinstance(response, web.Response):
                    self._judge_error(request, response)
                return response
            recorder = _Recorder(transport)
            protocol.transport = recorder  # type: ignore[assignment]  # it is as good as one
            try:
                return await handler(request)
            finally:
                if protocol.transport is recorder:  # type: ignore[comparison-overlap]
                    protocol.transport = transport
                # Clients of tus that cannot send a method say here which one they mean.
                method = request.headers.get("X-HTTP-Method-Override", request.method)
                answer = _parse(method, path, bytes(recorder.written))
                if answer is not None:
                    self._note(answer, _document().problems(answer))

        return watch

    def _judge_error(self, request: web.BaseRequest, response: web.Response) -> None:
        """Errors that we make in Immich's place, or before there is a route."""
        if "X-Bridge-Error" not in response.headers:
            return
        body = response.body if isinstance(response.body, bytes) else b""
        answer = SeenAnswer(
            request.method, "", response.status, list(response.headers.items()), body
        )
        self._note(answer, _document().error_problems(answer))

    def judge_malformed(self, request: web.BaseRequest, response: web.StreamResponse) -> None:
        """The answer to what is no HTTP."""
        if isinstance(response, web.Response):
            self._judge_error(request, response)

    def _note(self, answer: SeenAnswer, problems: Iterable[str]) -> None:
        self.seen[answer.method, answer.path, answer.status] += 1
        what = f"{answer.method} {answer.path or '(any route)'} -> {answer.status}"
        self.problems += [f"{what}: {problem} | {answer.body[:300]!r}" for problem in problems]


class _Recorder:
    """A transport that keeps what is written to it."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self.written = bytearray()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if len(self.written) < _MOST_BYTES:
            self.written += data
        self._transport.write(data)

    def writelines(self, pieces: Iterable[bytes | bytearray | memoryview]) -> None:
        self.write(b"".join(pieces))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


def _parse(method: str, path: str, written: bytes) -> SeenAnswer | None:
    """The answer in `written`; None where the client left before it was whole."""
    while True:
        head, end, body = written.partition(b"\r\n\r\n")
        if not end:
            return None
        first, *lines = head.decode("latin-1").split("\r\n")
        status = int(first.split()[1])
        if status >= 200:
            break
        written = body
    headers = [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines)]
    answer = SeenAnswer(method, path, status, headers, b"")
    if "chunked" in answer.all("Transfer-Encoding"):
        whole, body = _unchunked(body)
    else:
        announced = answer.all("Content-Length")
        whole = method == "HEAD" or len(body) == int(announced[0]) if announced else True
    return SeenAnswer(method, path, status, headers, body) if whole else None


def _unchunked(framed: bytes) -> tuple[bool, bytes]:
    """Whether the chunks end, and what is in them."""
    body = bytearray()
    while True:
        line, _, framed = framed.partition(b"\r\n")
        size = int(line or b"0", 16)
        if not size:
            return line == b"0", bytes(body)
        body += framed[:size]
        framed = framed[size + 2 :]


@pytest.fixture(autouse=True)
def documented_answers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Answers]:
    """Fails a test in which a server answered what the API document does not promise."""
    answers = Answers()
    handle_error = Connection.handle_error

    def make_watched_app(*args: Any, **kwargs: Any) -> web.Application:
        app = make_app(*args, **kwargs)
        app.middlewares.insert(0, answers.middleware())
        return app

    def handle_watched_error(
        self: Connection, request: web.BaseRequest, *args: Any, **kwargs: Any
    ) -> web.StreamResponse:
        response = handle_error(self, request, *args, **kwargs)
        answers.judge_malformed(request, response)
        return response

    monkeypatch.setattr("immich_bridge.serve.make_app", make_watched_app)
    monkeypatch.setattr(Connection, "handle_error", handle_watched_error)
    yield answers
    assert not answers.problems, "\n".join(["not as in docs/openapi.yaml:", *answers.problems])
