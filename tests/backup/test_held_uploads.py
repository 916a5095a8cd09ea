"""Raw uploads to the photo backup that are cut off and go on: one photo, and whole."""

import asyncio
import hashlib
import random
from base64 import b64encode
from pathlib import Path

import pytest

from backup_uploads import FOLDER, index, on_disk, pattern, upload, upload_request
from backup_wing import Answer, Api, Header, Login, MakeUser, StartBackup, rows
from front import let_time_pass
from held_uploads import PiecewiseUpload, cuts, held
from immich_bridge.backup.accounts import Accounts, User
from immich_bridge.http.connection import Connection
from immich_bridge.resumable.uploads import MAX_UPLOADS_OF_ONE
from immich_bridge.serve import Server
from raw_upload import eventually
from resumable.urlsession import VERSIONS, append, creation, interop, read_offer, state_of
from scrape import ON, scrape_at_rest
from wire import connect, fetch, request

JPG = f"{FOLDER}/IMG_0001.jpg"
PHOTO = pattern(2_500_001)
SIZE = len(PHOTO)
HALF = 1_300_000


@pytest.fixture
async def indexed(api: Api) -> Api:
    """A client of the server that has announced a photo."""
    await index(api, "IMG_1234")
    return api


def assert_stored(
    told: Answer, storage_dir: Path, db_path: Path, photo: bytes = PHOTO, path: str = JPG
) -> None:
    """The photo is on disk, alone, with its row, and the client has heard so."""
    assert told.status == 200, told
    assert told.json == {
        "status": "success",
        "message": "File uploaded",
        "local_id": "IMG_1234",
        "filename": Path(path).name,
        "file_path": f"storage/{path}",
        "size": len(photo),
    }
    assert (on_disk(storage_dir) == {path: photo}) is True
    (row,) = rows(db_path, "SELECT * FROM files")
    assert (row["local_id"], row["size"]) == ("IMG_1234", len(photo))


@pytest.mark.parametrize("version", VERSIONS)
class TestEveryVersion:
    async def test_hears_of_the_upload_while_it_runs(
        self, indexed: Api, storage_dir: Path, db_path: Path, version: int
    ) -> None:
        upload = PiecewiseUpload(indexed, PHOTO, version=version)
        async with upload.begun() as peer:
            told = Answer(await peer.read_answer())
            assert state_of(told.message, version).complete
            assert_stored(told, storage_dir, db_path)
            await peer.send(request("GET", "/status", upload.key))
            assert (await peer.read_answer()).status == 200

    async def test_goes_on_where_it_was_cut_off(
        self, indexed: Api, storage_dir: Path, db_path: Path, version: int
    ) -> None:
        upload = PiecewiseUpload(indexed, PHOTO, version=version)
        offset = await upload.cut_off(sent=HALF)
        state = await upload.state()
        assert (state.offset, state.complete) == (offset, False)
        assert_stored(await upload.finish(), storage_dir, db_path)

    async def test_sends_parts_on_purpose(
        self, indexed: Api, storage_dir: Path, db_path: Path, version: int
    ) -> None:
        upload = PiecewiseUpload(indexed, PHOTO, version=version)
        async with upload.begun(part=HALF) as peer:
            told = await peer.read_answer()
            assert (told.status, told.header("Location")) == (201, upload.location)
            head = append(upload.location, HALF, 1, version=version, complete=False, key=upload.key)
            await peer.send(head, PHOTO[HALF : HALF + 1])
            told = await peer.read_answer()
            assert (told.status, state_of(told, version).offset) == (204, HALF + 1)
        assert_stored(await upload.finish(), storage_dir, db_path)

    async def test_takes_it_back(self, indexed: Api, storage_dir: Path, version: int) -> None:
        upload = PiecewiseUpload(indexed, PHOTO, version=version)
        async with upload.begun(sent=HALF) as peer:
            assert held(storage_dir)
            told = await asyncio.gather(upload.cancel(), upload.cancel(), upload.cancel())
            assert sorted(answer.status for answer in told) == [204, 404, 404]
            assert await peer.read_to_end() == b""
        assert (await upload.ask()).status == 404
        assert on_disk(storage_dir) == {}


async def test_uploads_that_are_cut_at_random(api: Api, storage_dir: Path, db_path: Path) -> None:
    chance = random.Random("held uploads")
    local_ids = [f"photo {n}" for n in range(8)]
    names = await index(api, *local_ids)
    photos = [pattern(chance.randrange(1, 4_000_000), n) for n in range(8)]

    async def send(n: int) -> None:
        task = PiecewiseUpload(
            api, photos[n], version=chance.choice(VERSIONS), local_id=local_ids[n]
        )
        at = cuts(chance, len(photos[n]), 6)
        async with task.begun(sent=at[0]) as first:  # and stays open: nobody tells the server
            known = 0
            for cut in at[1:]:
                offset = (await task.state()).offset
                assert known <= offset <= cut
                known = offset
                async with task.resumed(offset, max(offset, cut)) as peer:
                    if chance.random() < 0.5:
                        peer.reset()
            told = await task.finish()
            assert (told.status, told.json["size"]) == (200, len(photos[n]))
            assert await first.read_to_end() == b""

    await asyncio.gather(*map(send, range(8)))
    wanted = {f"{FOLDER}/{name}": photo for name, photo in zip(names, photos, strict=True)}
    assert (on_disk(storage_dir) == wanted) is True
    assert len(rows(db_path, "SELECT * FROM files")) == 8


async def test_two_who_go_on_at_once(indexed: Api, storage_dir: Path, db_path: Path) -> None:
    upload = PiecewiseUpload(indexed, PHOTO)
    offset = await upload.cut_off(sent=HALF)

    async def go_on() -> int:
        async with upload.resumed(offset) as peer:
            try:
                return (await peer.read_answer()).status
            except (asyncio.IncompleteReadError, ConnectionError):
                return 0  # the other one took over

    statuses = await asyncio.gather(*(go_on() for _ in range(4)))
    assert set(statuses) <= {0, 200, 409}
    if 200 not in statuses:
        assert_stored(await upload.finish(), storage_dir, db_path)
    assert (on_disk(storage_dir) == {JPG: PHOTO}) is True


class TestLostAnswer:
    async def test_is_given_again(self, indexed: Api, storage_dir: Path, db_path: Path) -> None:
        upload = PiecewiseUpload(indexed, PHOTO)
        async with upload.begun() as peer:
            await eventually(lambda: on_disk(storage_dir).keys() == {JPG})
            peer.reset()
        state = await upload.state()
        assert (state.offset, state.complete) == (SIZE, True)
        for _ in range(2):
            assert_stored(await upload.finish(), storage_dir, db_path)

    async def test_is_forgotten_by_the_next_start(
        self, indexed: Api, start_backup: StartBackup, storage_dir: Path
    ) -> None:
        upload = PiecewiseUpload(indexed, PHOTO)
        async with upload.begun() as peer:
            await peer.read_answer()
        again = await start_backup()
        upload.api = Api(again.address, indexed.token)
        assert (await upload.ask()).status == 404
        assert (on_disk(storage_dir) == {JPG: PHOTO}) is True


DIGEST: Header = ("Repr-Digest", f"sha-256=:{b64encode(hashlib.sha256(PHOTO).digest()).decode()}:")
SHA1: Header = ("x-immich-checksum", hashlib.sha1(PHOTO).hexdigest())
SHA512: Header = (
    "Content-Digest",
    f"sha-512=:{b64encode(hashlib.sha512(PHOTO).digest()).decode()}:",
)


@pytest.mark.parametrize("promise", [DIGEST, SHA1, SHA512], ids=lambda header: header[0])
class TestDigests:
    async def test_over_several_pieces(
        self, indexed: Api, storage_dir: Path, db_path: Path, promise: Header
    ) -> None:
        upload = PiecewiseUpload(indexed, PHOTO)
        await upload.cut_off(promise, sent=HALF)
        assert_stored(await upload.finish(), storage_dir, db_path)

    async def test_that_are_not_kept_leave_the_old_photo(
        self, indexed: Api, storage_dir: Path, promise: Header
    ) -> None:
        old = pattern(1000, 7)
        assert (await upload(indexed, "raw", old)).status == 200
        damaged = PiecewiseUpload(indexed, PHOTO[:-1] + b"?")
        await damaged.cut_off(promise, sent=HALF)
        told = await damaged.finish()
        assert told.error[:2] == (422, "checksum_mismatch")
        assert on_disk(storage_dir) == {JPG: old}
        assert (await damaged.ask()).status == 404


async def test_a_digest_of_the_first_part_says_nothing_of_the_whole(
    indexed: Api, storage_dir: Path, db_path: Path
) -> None:
    digest = b64encode(hashlib.sha256(PHOTO[:HALF]).digest()).decode()
    upload = PiecewiseUpload(indexed, PHOTO)
    async with upload.begun(("Content-Digest", f"sha-256=:{digest}:"), part=HALF) as peer:
        assert (await peer.read_answer()).status == 201
    assert_stored(await upload.finish(), storage_dir, db_path)


class TestWhoMayGoOn:
    async def test_their_owner_with_a_newer_token(
        self, indexed: Api, storage_dir: Path, db_path: Path
    ) -> None:
        upload = PiecewiseUpload(indexed, PHOTO)
        await upload.cut_off(sent=HALF)
        old = indexed.token
        new = (await indexed.refresh()).json["token"]
        for token, status in ((old, 401), (None, 401), ("none of ours", 401), (new, 204)):
            upload.api = Api(indexed.url, token)
            assert (await upload.ask()).status == status
        assert_stored(await upload.finish(), storage_dir, db_path)

    async def test_nobody_else(
        self, backup: Server, indexed: Api, make_user: MakeUser, login: Login, storage_dir: Path
    ) -> None:
        await make_user("other", "AnotherPassword1")
        other = Api(backup.address, await login(backup, "other", "AnotherPassword1"))
        upload = PiecewiseUpload(indexed, PHOTO)
        offset = await upload.cut_off(sent=HALF)
        upload.api = other
        assert (await upload.ask()).status == 404
        assert (await upload.cancel()).status == 404
        async with upload.resumed(offset) as peer:
            assert (await peer.read_answer()).status == 404
        upload.api = indexed
        assert (await upload.finish()).status == 200
        assert (on_disk(storage_dir) == {JPG: PHOTO}) is True

    async def test_not_a_user_who_was_deleted(
        self, indexed: Api, accounts: Accounts, user: User, storage_dir: Path
    ) -> None:
        upload = PiecewiseUpload(indexed, PHOTO)
        await upload.cut_off(sent=HALF)
        await accounts.delete(user.username)
        assert (await upload.ask()).status == 401
        assert JPG not in on_disk(storage_dir)


class TestAPhotoThatChangedMeanwhile:
    async def test_indexed_again(self, indexed: Api, storage_dir: Path, db_path: Path) -> None:
        upload = PiecewiseUpload(indexed, PHOTO)
        await upload.cut_off(sent=HALF)
        await index(indexed, "IMG_1234", "another")
        assert_stored(await upload.finish(), storage_dir, db_path)

    async def test_uploaded_by_another_way(
        self, indexed: Api, storage_dir: Path, db_path: Path
    ) -> None:
        task = PiecewiseUpload(indexed, PHOTO)
        await task.cut_off(sent=HALF)
        assert (await upload(indexed, "form", pattern(5000, 3))).status == 200
        assert_stored(await task.finish(), storage_dir, db_path)

    async def test_no_longer_known(self, indexed: Api, storage_dir: Path, db_path: Path) -> None:
        upload = PiecewiseUpload(indexed, PHOTO)
        await upload.cut_off(sent=HALF)
        rows(db_path, "DELETE FROM photos_user_1")
        told = await upload.finish()
        assert told.error == (500, "internal_error", "photo not found")
        assert on_disk(storage_dir) == {}


class TestWhatIsRefused:
    @pytest.mark.parametrize(
        ("target", "status"),
        [
            ("local_id=unknown&file_type=jpg", 500),
            ("local_id=&file_type=jpg", 400),
            ("local_id=IMG_1234&file_type=text/nothing", 400),
        ],
    )
    async def test_an_upload_that_goes_nowhere(
        self, indexed: Api, storage_dir: Path, target: str, status: int
    ) -> None:
        key = ("Authorization", f"Bearer {indexed.token}")
        async with connect(indexed.url) as peer:
            await peer.send(creation(SIZE, key, route=f"/photos/upload/stream?{target}"))
            told = await peer.read_answer()
        assert (told.status, told.interim) == (status, [])
        assert on_disk(storage_dir) == {}

    async def test_a_file_that_is_empty(self, indexed: Api, storage_dir: Path) -> None:
        upload = PiecewiseUpload(indexed, b"")
        async with upload.begun() as peer:
            told = Answer(await peer.read_answer())
        assert told.error == (400, "bad_request", "the file is empty")
        assert on_disk(storage_dir) == {}

    async def test_what_is_too_large(
        self, start_backup: StartBackup, indexed: Api, storage_dir: Path
    ) -> None:
        limited = await start_backup(MAX_STREAM_SIZE="1MB")
        upload = PiecewiseUpload(Api(limited.address, indexed.token), PHOTO)
        head = creation(SIZE, upload.key, route=upload.target)
        async with connect(limited.address) as peer:
            await peer.send(head)
            told = await peer.read_answer()
        assert (told.status, told.interim) == (413, [])
        async with connect(limited.address) as peer:
            await peer.send(creation(None, upload.key, route=upload.target))
            await read_offer(peer)
            await peer.send(b"%x\r\n" % SIZE, PHOTO)
            assert (await peer.read_answer()).status == 413
        assert on_disk(storage_dir) == {}

    async def test_more_than_one_may_have(self, indexed: Api, storage_dir: Path) -> None:
        await index(indexed, "whole", "part")
        for _ in range(MAX_UPLOADS_OF_ONE):
            await PiecewiseUpload(indexed, PHOTO).cut_off(sent=1)
        part = PiecewiseUpload(indexed, PHOTO, local_id="part")
        async with connect(indexed.url) as peer:
            head = creation(1, part.key, complete=False, route=part.target)
            await peer.send(head, PHOTO[:1])
            told = await peer.read_answer()
        assert (told.status, told.header("Retry-After")) == (503, "5")
        # All of it in one request is taken as ever.
        whole = PiecewiseUpload(indexed, PHOTO, local_id="whole")
        async with connect(indexed.url) as peer:
            await peer.send(creation(SIZE, whole.key, route=whole.target), PHOTO)
            told = await peer.read_answer()
        assert (told.status, told.interim) == (200, [])


class TestTurnedOff:
    @pytest.fixture
    async def off(self, start_backup: StartBackup, indexed: Api) -> Api:
        server = await start_backup(RESUMABLE="off")
        return Api(server.address, indexed.token)

    @pytest.mark.parametrize("version", VERSIONS)
    async def test_a_part_is_refused(self, off: Api, storage_dir: Path, version: int) -> None:
        upload = PiecewiseUpload(off, PHOTO)
        head = creation(1, upload.key, version=version, complete=False, route=upload.target)
        async with connect(off.url) as peer:
            await peer.send(head, PHOTO[:1])
            told = await peer.read_answer()
        assert told.status == 501
        assert on_disk(storage_dir) == {}

    async def test_a_whole_is_taken_as_ever(
        self, off: Api, storage_dir: Path, db_path: Path
    ) -> None:
        upload = PiecewiseUpload(off, PHOTO)
        async with connect(off.url) as peer:
            await peer.send(creation(SIZE, upload.key, route=upload.target), PHOTO)
            told = Answer(await peer.read_answer())
        assert told.message.interim == []
        assert_stored(told, storage_dir, db_path)


async def test_options_say_what_an_upload_may_be(start_backup: StartBackup, user: User) -> None:
    for settings, status in (({"MAX_STREAM_SIZE": "5MB"}, 200), ({"RESUMABLE": "off"}, 404)):
        server = await start_backup(**settings)
        told = await fetch(server.address, "OPTIONS", "/photos/upload/stream", interop(8))
        assert told.status == status
        limit = f"max-size={5 << 20}, min-size=0" if status == 200 else None
        assert told.header("Upload-Limit") == limit


async def test_a_hold_of_its_own(
    start_backup: StartBackup, indexed: Api, storage_dir: Path, db_path: Path
) -> None:
    server = await start_backup(RESUMABLE_HOLD="20ms")
    upload = PiecewiseUpload(Api(server.address, indexed.token), PHOTO)
    await upload.cut_off(sent=HALF)
    told = await upload.ask()
    assert (told.header("Upload-Limit") or "").endswith("max-age=86400")
    await let_time_pass(0.2)  # what is held for Immich would be gone ten times over
    assert_stored(await upload.finish(), storage_dir, db_path)


async def test_plain_uploads_hear_of_nothing(indexed: Api, storage_dir: Path) -> None:
    told = await upload(indexed, "raw", PHOTO)
    assert (told.status, told.message.interim) == (200, [])
    assert told.header("Upload-Offset") is None
    assert not (storage_dir / "photo" / ".held").exists()


async def test_bytes_that_come_between_a_head_and_its_handler(
    backup: Server, indexed: Api, storage_dir: Path
) -> None:
    # uvloop may hand over several pieces at once; here they are handed over as it does.
    head, body = upload_request("raw", indexed.token, PHOTO[:240_000])
    async with connect(backup.address) as peer:
        await eventually(lambda: bool(connections(backup)))
        [connection] = connections(backup)
        connection.data_received(head)
        while connection._messages:
            await let_time_pass(0)
        assert connection._current_request is None
        connection.data_received(body[:40_000])
        connection.data_received(body[40_000:])
        assert (await peer.read_answer()).status == 200
    assert (on_disk(storage_dir) == {JPG: PHOTO[:240_000]}) is True


def connections(server: Server) -> list[Connection]:
    """The connections of clients that are open."""
    manager = server._runner.server
    assert manager is not None
    return [known for known in manager.connections if isinstance(known, Connection)]


async def test_they_count_as_what_they_are(start_backup: StartBackup, indexed: Api) -> None:
    server = await start_backup(**ON)
    before = await scrape_at_rest(server)
    api = Api(server.address, indexed.token)
    good, bad = PiecewiseUpload(api, PHOTO), PiecewiseUpload(api, PHOTO[:-1])
    await good.cut_off(DIGEST, sent=HALF)
    assert (await good.finish()).status == 200
    await bad.cut_off(DIGEST, sent=HALF)
    assert (await bad.finish()).status == 422
    changes = (await scrape_at_rest(server)).changes(before)
    assert changes['immich_bridge_stored_files_total{way="raw"}'] == 1
    assert {k: v for k, v in changes.items() if "resumable_uploads_total" in k} == {
        f'immich_bridge_resumable_uploads_total{{event="{event}"}}': count
        for event, count in (("created", 2), ("resumed", 2), ("completed", 1), ("failed", 1))
    }
    # None of them is a background upload to Immich.
    assert not [name for name in changes if "background_uploads" in name]
