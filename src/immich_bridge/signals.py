"""Signals as bytes that can be waited for together with other things, without an event loop."""

import signal
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Final

NAMES: Final = {each.value: each.name for each in signal.Signals}
"""By number; those for real time have none."""


@contextmanager
def signals_as_bytes(numbers: Iterable[int]) -> Iterator[socket.socket]:
    """A socket from which the number of each signal comes as a byte, while the context lasts."""
    ours, handlers = socket.socketpair()
    with ours, handlers:
        ours.setblocking(False)
        handlers.setblocking(False)
        descriptor_before = signal.set_wakeup_fd(handlers.fileno())
        before: dict[int, Callable[..., object] | int | None] = {
            number: signal.signal(number, _noted) for number in numbers
        }
        try:
            yield ours
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(descriptor_before)


def _noted(number: int, frame: object) -> None:
    """That there is a handler has Python write the number to the wakeup descriptor."""
