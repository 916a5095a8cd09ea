"""Each misbehaviour does what it says, seen from a plain socket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from immich_standin import Behaviour, StandIn

from .forms import BOUNDARY, JPEG, jpeg, upload_form
from .wire import TIMEOUT, Headers, Wire, connect, head

AUTH = ("x-api-key", StandIn.api_key)
FORM = ("Content-Type", f"multipart/form-data; boundary={BOUNDARY.decode()}")
PING = head("GET", "/api/server/ping", [])

# More than the sockets between client and server hold.
LARGE = upload_form(jpeg(32_000_000))


@pytest.fixture
async def immich(tmp_path: Path) -> AsyncIterator[StandIn]:
    async with StandIn(data_dir=tmp_path) as immich:
        yield immich


def upload_head(body: bytes, *more: tuple[str, str]) -> bytes:
    headers: Headers = [AUTH, FORM, ("Content-Length", str(len(body))), *more]
    return head("POST", "/api/assets", headers)


async def upload(wire: Wire, body: bytes | None = None) -> None:
    body = upload_form() if body is None else body
    await wire.send(upload_head(body) + body)


async def ended(wire: Wire) -> str:
    """How the connection ended, after nothing more was said."""
    async with asyncio.timeout(TIMEOUT):
        try:
            assert await wire.reader.read() == b""
        except ConnectionResetError:
            return "rst"
        return "fin"


async def test_answers_before_the_body(immich: StandIn) -> None:
    immich.behaviour.early_status = 413
    immich.behaviour.answer_body = '{"message":"too much"}'
    body = upload_form()
    async with connect(immich) as wire:
        await wire.send(upload_head(body))
        response = await wire.response()
        assert (response.status, response.json) == (413, {"message": "too much"})
        assert immich.requests[0].body_received == 0
        immich.behaviour = Behaviour()
        await wire.send(body + PING)
        assert (await wire.response()).json == {"res": "pong"}
    assert immich.assets == []


async def test_stalls_in_the_body_until_released(immich: StandIn) -> None:
    immich.behaviour.stall_after = 100_000
    async with connect(immich) as wire:
        sending = asyncio.create_task(upload(wire, LARGE))
        seen = await immich.wait_for_request(
            lambda seen: seen.body_received >= 100_000 and len(immich.partial_files()) == 1
        )
        assert not sending.done()
        assert not seen.completed
        immich.behaviour.release()
        await sending
        assert (await wire.response()).status == 201
    assert seen.completed
    assert immich.assets[0].size == 32_000_000


async def test_stalls_before_the_body(immich: StandIn) -> None:
    immich.behaviour = Behaviour(stall_after=0)
    async with connect(immich) as wire:
        sending = asyncio.create_task(upload(wire, LARGE))
        await immich.wait_for_request()
        assert immich.partial_files() == []
        immich.behaviour = Behaviour()
        await sending
        assert (await wire.response()).status == 201


async def test_a_client_may_give_up_during_a_stall(immich: StandIn) -> None:
    immich.behaviour = Behaviour(stall_after=1000)
    body = upload_form()
    async with connect(immich) as wire:
        await wire.send(upload_head(body) + body[:1000])
        seen = await immich.wait_for_request(lambda seen: seen.body_received == 1000)
        wire.reset()
    assert await immich.wait_for_abort() is seen
    assert immich.files() == []


async def test_waits_for_the_end_of_the_body_not_of_the_form(immich: StandIn) -> None:
    # Longer than what aiohttp's reader takes ahead.
    body = upload_form() + b"a line of an epilogue\r\n" * 50_000
    async with connect(immich) as wire, connect(immich) as other:
        await wire.send(upload_head(body + b"!") + body)
        seen = await immich.wait_for_request(lambda seen: seen.body_received == len(body))
        await other.send(PING)
        assert (await other.response()).status == 200
        assert (seen.status, immich.assets) == (None, [])
        await wire.send(b"!")
        assert (await wire.response()).status == 201


@pytest.mark.parametrize("how", ["rst", "fin"])
async def test_vanishes_in_the_body(immich: StandIn, how: str) -> None:
    immich.behaviour = Behaviour(vanish_after=5000, vanish_with=how)
    body = upload_form()
    async with connect(immich) as wire:
        await wire.send(upload_head(body) + body[:5000])
        assert await ended(wire) == how
    seen = await immich.wait_for_abort()
    assert seen.status is None
    assert immich.assets == []
    assert immich.files() == []


async def test_never_answers(immich: StandIn) -> None:
    immich.behaviour = Behaviour(never_answer=True)
    async with connect(immich) as wire:
        await upload(wire)
        seen = await immich.wait_for_request(lambda _: bool(immich.assets))
        assert seen.completed
        assert seen.status is None
        immich.behaviour.release()
        assert await ended(wire) == "rst"
    assert seen.status is None


async def test_never_answering_ends_with_the_client(immich: StandIn) -> None:
    immich.behaviour = Behaviour(never_answer=True)
    async with connect(immich) as wire:
        await wire.send(PING)
        seen = await immich.wait_for_request()
    assert await immich.wait_for_request(lambda seen: seen.finished) is seen
    assert immich.open_connections == 0


@pytest.mark.parametrize(
    ("status", "headers"), [(503, {"Retry-After": "1"}), (307, {"Location": "/x"}), (422, {})]
)
async def test_answers_after_the_body(
    immich: StandIn, status: int, headers: dict[str, str]
) -> None:
    immich.behaviour = Behaviour(answer_status=status, answer_headers=headers)
    async with connect(immich) as wire:
        await upload(wire)
        response = await wire.response()
    assert response.status == status
    assert set(headers.items()) <= set(response.headers)
    assert immich.requests[0].completed
    assert immich.assets == []


async def stored(immich: StandIn) -> str:
    """The path of an asset's original."""
    async with connect(immich) as wire:
        await upload(wire)
        return f"/api/assets/{(await wire.response()).json['id']}/original"


async def test_cuts_an_answer_with_a_length(immich: StandIn) -> None:
    path = await stored(immich)
    immich.behaviour = Behaviour(cut_answer_after=1000)
    async with connect(immich) as wire:
        await wire.send(head("GET", path, [AUTH]))
        response = await wire.response("HEAD")
        assert response.header("Content-Length") == "9097"
        assert await wire.closed() == JPEG[:1000]


async def test_cuts_an_answer_in_chunks(immich: StandIn) -> None:
    path = await stored(immich)
    immich.behaviour = Behaviour(cut_answer_after=1000, cut_chunked=True)
    async with connect(immich) as wire:
        await wire.send(head("GET", path, [AUTH]))
        response = await wire.response("HEAD")
        assert response.header("Content-Length") is None
        assert response.header("Transfer-Encoding") == "chunked"
        assert await wire.closed() == b"3e8\r\n" + JPEG[:1000] + b"\r\n"


async def test_closes_idle_connections_without_a_word(immich: StandIn) -> None:
    immich.behaviour = Behaviour(close_idle=True)
    async with connect(immich) as wire:
        await wire.send(PING)
        response = await wire.response()
        assert response.header("Connection") == "keep-alive"
        assert await ended(wire) == "fin"


async def test_resets_new_connections(immich: StandIn) -> None:
    immich.behaviour = Behaviour(reset_on_accept=True, times=1)
    async with connect(immich) as wire:
        assert await ended(wire) == "rst"
    async with connect(immich) as wire:
        await wire.send(PING)
        assert (await wire.response()).status == 200
    assert len(immich.requests) == 1


async def test_holds_the_answer_back(immich: StandIn) -> None:
    immich.behaviour = Behaviour(hold_answer=True)
    async with connect(immich) as wire:
        await upload(wire)
        seen = await immich.wait_for_request(lambda _: bool(immich.assets))
        assert seen.status is None
        immich.behaviour.release()
        assert (await wire.response()).status == 201


@pytest.mark.parametrize("how", ["rst", "fin"])
async def test_loses_the_answer(immich: StandIn, how: str) -> None:
    immich.behaviour = Behaviour(lose_answer=True, vanish_with=how)
    async with connect(immich) as wire:
        await upload(wire)
        assert await ended(wire) == how
    assert len(immich.assets) == 1


async def test_is_narrowed_to_some_requests(immich: StandIn) -> None:
    immich.behaviour = Behaviour(method="GET", path="/api/server", times=2, early_status=500)
    async with connect(immich) as wire:
        statuses = []
        for request in (PING, head("HEAD", "/api/server/ping", []), PING, PING):
            await wire.send(request)
            statuses.append((await wire.response(request.split(b" ")[0].decode())).status)
    assert statuses == [500, 200, 500, 200]


async def test_closes_what_is_idle(tmp_path: Path) -> None:
    async with StandIn(data_dir=tmp_path, idle_timeout=0.05) as immich, connect(immich) as wire:
        await wire.send(PING)
        await wire.response()
        assert immich.open_connections == 1
        assert await ended(wire) == "fin"


async def test_comes_back_on_the_same_port(immich: StandIn) -> None:
    await stored(immich)
    port = immich.port
    async with connect(immich) as wire:
        await wire.send(PING)
        await wire.response()
        await immich.stop()
        assert await ended(wire) == "rst"
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(immich.host, port)
    await immich.start()
    assert immich.port == port
    assert len(immich.assets) == 1
    async with connect(immich) as wire:
        await wire.send(PING)
        assert (await wire.response()).status == 200


async def test_waiting_times_out(immich: StandIn) -> None:
    with pytest.raises(TimeoutError):
        await immich.wait_for_request(timeout=0.01)
    with pytest.raises(TimeoutError):
        await immich.wait_for_abort(timeout=0.01)


async def control(immich: StandIn, method: str, path: str, value: Any = None) -> Any:
    body = b"" if value is None else json.dumps(value).encode()
    async with connect(immich) as wire:
        headers = [("Content-Length", str(len(body))), ("Content-Type", "application/json")]
        await wire.send(head(method, f"/_standin/{path}", headers) + body)
        response = await wire.response(method)
        return response.status, response.json if response.body else None


async def test_is_controlled_over_http(immich: StandIn) -> None:
    status, behaviour = await control(immich, "PUT", "behaviour", {"stall_after": 10, "times": 1})
    assert (status, behaviour["stall_after"]) == (200, 10)
    assert immich.behaviour == Behaviour(stall_after=10, times=1)
    async with connect(immich) as wire:
        sending = asyncio.create_task(upload(wire, LARGE))
        await immich.wait_for_request(lambda seen: seen.body_received >= 10)
        assert (await control(immich, "GET", "state"))[1]["requests"][0]["completed"] is False
        assert await control(immich, "DELETE", "behaviour") == (204, None)
        await sending
        assert (await wire.response()).status == 201
    assert immich.behaviour == Behaviour()
    status, state = await control(immich, "GET", "state")
    assert [asset["size"] for asset in state["assets"]] == [32_000_000]
    assert [seen["target"] for seen in state["requests"]] == ["/api/assets"]
    assert await control(immich, "DELETE", "state") == (204, None)
    assert (immich.assets, immich.requests, immich.files()) == ([], [], [])


async def test_knows_no_other_behaviour(immich: StandIn) -> None:
    status, answer = await control(immich, "PUT", "behaviour", {"explode": True})
    assert (status, answer) == (400, {"message": "no such behaviour: explode"})
