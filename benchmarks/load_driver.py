"""The client: `native/driver.c`, which sends one request again and again and times each."""

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Final

from block import Block

_LONGEST_SECONDS: Final = 300.0


class LoadFailed(Exception):
    """A request was not answered as it should be; the message holds what came instead."""


@dataclass(frozen=True)
class Request:
    """What is sent: a head, then `file_bytes` of the block; and what has to come back.

    `answer_bytes` 0: any number.
    """

    head: str
    file_bytes: int = 0
    status: int = 200
    answer_bytes: int = 0


@dataclass(frozen=True)
class Drive:
    """One run of the driver. `begun` is a time of CLOCK_MONOTONIC."""

    begun: float
    seconds: float
    requests: int
    p50_us: float
    p99_us: float


class LoadDriver:
    """Sends requests to ports of this machine."""

    def __init__(self, program: Path, block: Block) -> None:
        self._program = program
        self._block = block

    def drive(
        self, port: int, request: Request, *, connections: int, requests: int, seconds: float
    ) -> Drive:
        """Send up to `requests` over `connections`, begin none after `seconds`.

        Raises `LoadFailed`.
        """
        limits = (port, connections, requests, seconds, request.status, request.answer_bytes)
        command = [self._program, *limits, request.head, "", self._block.path, request.file_bytes]
        try:
            done = subprocess.run(
                [str(argument) for argument in command],
                capture_output=True,
                timeout=_LONGEST_SECONDS,
                check=True,
            )
        except subprocess.SubprocessError as exc:
            raise LoadFailed(str(exc)) from exc
        report = json.loads(done.stdout)
        if report["fault"]:
            raise LoadFailed(report["fault"])
        latencies = report["latencies_us"]
        return Drive(
            begun=report["begun"],
            seconds=report["seconds"],
            requests=len(latencies),
            p50_us=median(latencies),
            p99_us=quantiles(latencies, n=100)[98] if len(latencies) > 1 else latencies[0],
        )
