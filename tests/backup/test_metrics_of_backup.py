"""What the backup wing counts, as Prometheus reads it."""

import asyncio
import shutil
from pathlib import Path

import pytest

from backup_uploads import ROUTES, Route, begun, index, pattern, upload
from backup_wing import PASSWORD, USERNAME, Api, Login, StartBackup
from immich_bridge.backup.accounts import User
from immich_bridge.serve import Server
from scrape import ON, in_flight, scrape, scrape_at_rest, scrape_when

PHOTO = pattern(100_000)
WAYS = {"form": "/photos/upload", "raw": "/photos/upload/stream", "chunk": "/photos/upload/chunk"}


@pytest.fixture
async def backup(start_backup: StartBackup, user: User) -> Server:
    return await start_backup(**ON)


def stored(way: str, files: int, size: int) -> dict[str, float]:
    changes = {"files": files, "bytes": size}
    return {f'immich_bridge_stored_{what}_total{{way="{way}"}}': n for what, n in changes.items()}


class TestStored:
    @pytest.mark.parametrize("way", ROUTES)
    async def test_files_are_counted_by_the_way_they_came(
        self, backup: Server, api: Api, way: Route
    ) -> None:
        await index(api, "IMG_1234")
        before = await scrape_at_rest(backup)
        assert (await upload(api, way, PHOTO)).status == 200
        assert (await upload(api, way, PHOTO[:70_000])).status == 200
        changes = (await scrape_at_rest(backup)).changes(before)
        assert {k: v for k, v in changes.items() if "stored" in k} == stored(way, 2, 170_000)
        labels = f'{{method="POST",route="{WAYS[way]}",status="200"}}'
        assert changes[f"immich_bridge_requests_total{labels}"] == 2

    async def test_chunks_count_once_they_are_a_file(self, backup: Server, api: Api) -> None:
        await index(api, "IMG_1234")
        before = await scrape_at_rest(backup)
        fields = {"local_id": "IMG_1234", "file_type": "image/jpeg", "total_chunks": "2"}
        first = await api.upload_chunk({**fields, "chunk_number": "1"}, PHOTO[60_000:])
        assert first.json["complete"] is False
        changes = (await scrape_at_rest(backup)).changes(before)
        assert not any("stored" in name for name in changes)
        for _ in range(2):  # a repetition stores nothing
            last = await api.upload_chunk({**fields, "chunk_number": "0"}, PHOTO[:60_000])
            assert last.json["complete"] is True
        changes = (await scrape_at_rest(backup)).changes(before)
        assert {k: v for k, v in changes.items() if "stored" in k} == stored("chunk", 1, 100_000)

    async def test_nothing_is_counted_of_what_was_not_stored(
        self, backup: Server, api: Api
    ) -> None:
        await index(api, "IMG_1234")
        before = await scrape_at_rest(backup)
        refused = await upload(api, "raw", PHOTO, ("Repr-Digest", f"sha-256=:{'A' * 43}=:"))
        assert refused.status == 422
        async with begun(api, "raw", PHOTO, sent=50_000):
            halfway = await scrape_when(
                backup, lambda seen: in_flight(seen) == {"/photos/upload/stream": 1}
            )
            assert not any("stored" in name for name in halfway.changes(before))
        changes = (await scrape_at_rest(backup)).changes(before)
        assert not any("stored" in name for name in changes)
        errors = {name: value for name, value in changes.items() if "errors" in name}
        assert errors == {
            f'immich_bridge_errors_total{{error="{code}",route="/photos/upload/stream"}}': 1
            for code in ("checksum_mismatch", "client_gone")
        }


class TestDisk:
    async def test_tells_how_much_room_is_left(self, backup: Server, storage_dir: Path) -> None:
        seen = await scrape(backup)
        usage = shutil.disk_usage(storage_dir)
        for folder in ("storage", "database"):
            size = seen.value("immich_bridge_disk_size_bytes", folder=folder)
            free = seen.value("immich_bridge_disk_free_bytes", folder=folder)
            assert size == usage.total
            assert free == pytest.approx(usage.free, abs=usage.total / 100)

    async def test_that_is_gone_spoils_no_other_number(
        self, backup: Server, storage_dir: Path
    ) -> None:
        shutil.move(storage_dir, storage_dir.with_name("elsewhere"))
        seen = await scrape(backup)
        free = 'immich_bridge_disk_free_bytes{folder="%s"}'
        assert free % "storage" not in seen.samples
        assert seen.samples[free % "database"] > 0


async def test_passwords_that_wait_are_counted(backup: Server, login: Login) -> None:
    queue = "immich_bridge_argon2_queue_length"
    assert (await scrape(backup)).value(queue) == 0
    logins = asyncio.gather(*(login(backup, USERNAME, PASSWORD) for _ in range(12)))
    longest = await scrape_when(backup, lambda seen: seen.value(queue) > 0)
    assert longest.value(queue) <= 10  # two are being hashed
    await logins
    assert (await scrape(backup)).value(queue) == 0
