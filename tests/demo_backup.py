"""The second half of the showing: the bridge's own photo backup, from login to files on disk."""

import asyncio
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp

from demo_deliveries import DELIVERIES, SAMPLES
from demo_servers import DemoError
from demo_show import say

USERNAME = "admin"
PASSWORD = "SecurePass123"
DAY = "2026-11-20"

MIME_TYPES = {
    ".HEIC": "image/heic",
    ".JPG": "image/jpeg",
    ".PNG": "image/png",
    ".MOV": "video/quicktime",
}


class BackupShow:
    """Makes an account, logs in, indexes and uploads the samples; `failures` counts faults."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        bridge_url: str,
        folder: Path,
        environment: Mapping[str, str],
    ) -> None:
        self.failures = 0
        self._session = session
        self._bridge = bridge_url
        self._folder = folder
        self._environment = environment
        self._token = ""

    async def all(self) -> None:
        """The whole showing."""
        say("\nThe photo backup of the same server")
        await self._create_user()
        await self._log_in()
        samples = [SAMPLES / name for name in dict.fromkeys(d.sample for d in DELIVERIES)]
        names = await self._index(samples)
        contents = {sample: sample.read_bytes() for sample in samples}
        stored = {}
        for sample, content in contents.items():
            path = await self._upload(sample, content)
            stored[path] = content
            if not path.startswith(f"storage/photo/1/2026/11/20/{names[sample.stem]}."):
                self._fault(f"{sample.name} went to {path}")
        self._show_tree(stored)

    async def _create_user(self) -> None:
        command = ["user", "create", "--username", USERNAME, "--password-stdin"]
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "immich_bridge",
            *command,
            cwd=self._folder,
            env=self._environment,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await process.communicate(PASSWORD.encode())
        if process.returncode != 0:
            raise DemoError(f"the account could not be made: {output.decode().strip()}")
        say(f"  $ immich-bridge {' '.join(command)}\n    -> {output.decode().strip()}")

    async def _log_in(self) -> None:
        answer = await self._post("/login", json={"username": USERNAME, "password": PASSWORD})
        self._token = answer["token"]
        say(f"  POST /login\n    -> a token, valid until {answer['expires_at']}")

    async def _index(self, samples: list[Path]) -> dict[str, str]:
        """Tell the server of the day's photos; the name on disk by the name on the phone."""
        photos = {
            sample.stem: {
                "local_id": f"{sample.stem}/L0/001",
                "creation_time": f"{DAY}T18:0{number}:00Z",
                "file_extension": sample.suffix[1:].lower(),
                "file_type": MIME_TYPES[sample.suffix],
            }
            for number, sample in enumerate(samples)
        }
        answer = await self._post(
            "/photos/index", json={"date": DAY, "photos": list(photos.values())}
        )
        names = [entry["filename"] for entry in answer["assigned_files"]]
        say(f"  POST /photos/index  {len(photos)} photos of {DAY}\n    -> {', '.join(names)}")
        return {stem: name.partition(".")[0] for stem, name in zip(photos, names, strict=True)}

    async def _upload(self, sample: Path, content: bytes) -> str:
        form = aiohttp.FormData()
        form.add_field("local_id", f"{sample.stem}/L0/001")
        form.add_field("file_type", MIME_TYPES[sample.suffix])
        form.add_field("file", content, filename=sample.name)
        answer = await self._post("/photos/upload", data=form)
        say(f"  POST /photos/upload  {sample.name}\n    -> {answer['file_path']}")
        return str(answer["file_path"])

    def _show_tree(self, stored: Mapping[str, bytes]) -> None:
        """The files that lie on disk, each compared with what was sent."""
        say(f"\nOn disk, in {self._folder}")
        found = sorted(path for path in (self._folder / "storage").rglob("*") if path.is_file())
        for path in found:
            name = path.relative_to(self._folder).as_posix()
            identical = path.read_bytes() == stored.get(name)
            taken = datetime.fromtimestamp(path.stat().st_mtime, UTC).strftime("%Y-%m-%d %H:%M")
            say(f"  {name}  {taken}  {'identical' if identical else 'DIFFERENT'}")
            self.failures += not identical
        self.failures += len(found) != len(stored)

    def _fault(self, text: str) -> None:
        self.failures += 1
        say(f"    NOT RIGHT: {text}")

    async def _post(self, path: str, **body: Any) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        async with self._session.post(self._bridge + path, headers=headers, **body) as response:
            answer: dict[str, Any] = await response.json()
        if response.status != 200:
            raise DemoError(f"POST {path} answered {response.status}: {answer['message']}")
        return answer
