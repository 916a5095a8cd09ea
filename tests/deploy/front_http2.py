"""An HTTP/2 client that sends a body just when it is told to: what iOS speaks to a TLS front."""

import asyncio
from collections.abc import Iterable
from typing import Final

import h2.config
import h2.connection
import h2.events

from wire import PATIENCE, Message, Peer

PROTOCOL: Final = "h2"


class Http2Client:
    """One connection. Everything is read only while something is waited for."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        config = h2.config.H2Configuration(client_side=True, header_encoding=None)
        self._connection = h2.connection.H2Connection(config)
        self._connection.initiate_connection()
        self._answers: dict[int, Message] = {}
        self._interim: dict[int, Message] = {}
        self._ended: set[int] = set()

    async def begin(
        self, method: str, target: str, authority: str, *headers: tuple[str, str]
    ) -> int:
        """Send the head of a request whose body is yet to come; the id of its stream."""
        stream = self._connection.get_next_available_stream_id()
        pseudo = [(":method", method), (":scheme", "https"), (":authority", authority)]
        fields = [*pseudo, (":path", target), *((name.lower(), value) for name, value in headers)]
        self._connection.send_headers(stream, [(n.encode(), v.encode()) for n, v in fields])
        await self._flush()
        return stream

    async def send(self, stream: int, data: bytes, *, end: bool = False) -> None:
        """Send a part of the body, as fast as the other side's windows allow."""
        at = 0
        while at < len(data):
            size = min(
                self.window(stream), self._connection.max_outbound_frame_size, len(data) - at
            )
            if size == 0:
                await self._receive()
                continue
            self._connection.send_data(stream, data[at : at + size])
            await self._flush()
            at += size
        if end:
            self._connection.end_stream(stream)
            await self._flush()

    async def cancel(self, stream: int) -> None:
        """Give a request up, and keep the connection."""
        self._connection.reset_stream(stream, error_code=8)  # CANCEL (RFC 9113 7)
        await self._flush()

    async def read_answer(self, stream: int) -> Message:
        """The answer with its body."""
        while stream not in self._ended:
            await self._receive()
        return self._answers[stream]

    async def read_interim(self, stream: int) -> Message:
        """The last interim answer, as soon as there is one."""
        while stream not in self._interim:
            await self._receive()
        return self._interim[stream]

    async def read_until_window(self, stream: int, size: int) -> None:
        """Return once so many bytes may be sent at once."""
        while self.window(stream) < size:
            await self._receive()

    def window(self, stream: int) -> int:
        """How many bytes may be sent now."""
        return self._connection.local_flow_control_window(stream)

    async def _receive(self) -> None:
        data = await asyncio.wait_for(self._peer.reader.read(1 << 16), PATIENCE)
        if not data:
            raise ConnectionResetError("the connection has ended")
        for event in self._connection.receive_data(data):
            match event:
                case h2.events.ResponseReceived():
                    self._answers[event.stream_id] = _message(event.headers)
                case h2.events.InformationalResponseReceived():
                    self._interim[event.stream_id] = _message(event.headers)
                case h2.events.DataReceived():
                    self._answers[event.stream_id].body += event.data
                    self._connection.acknowledge_received_data(
                        event.flow_controlled_length, event.stream_id
                    )
                case h2.events.StreamEnded():
                    self._ended.add(event.stream_id)
                case h2.events.StreamReset():
                    raise ConnectionResetError(f"the stream was reset: {event.error_code}")
                case h2.events.ConnectionTerminated():
                    raise ConnectionResetError(f"the connection ends: {event.error_code}")
        await self._flush()

    async def _flush(self) -> None:
        await self._peer.send(self._connection.data_to_send())


def _message(headers: Iterable[tuple[bytes | str, bytes | str]]) -> Message:
    fields = [(_bytes(name), _bytes(value)) for name, value in headers]
    regular = [field for field in fields if not field[0].startswith(b":")]
    return Message(b"HTTP/2 " + dict(fields)[b":status"], regular)


def _bytes(text: bytes | str) -> bytes:
    return text.encode() if isinstance(text, str) else bytes(text)
