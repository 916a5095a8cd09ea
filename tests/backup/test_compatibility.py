"""The API document of the photo backup server, row by row: what it says is what is answered.

A client that was written against that document matches statuses, error types, messages and
JSON members; here each of them stands once, word for word. What the server adds beyond the
document is written out too, so that nothing else slips in.
"""

import json
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import jwt
import pytest

from backup_wing import PASSWORD, Answer, Api, Header, rows
from wire import connect, request

# The example requests of the document.
LOGIN = b"""{
    "username": "admin",
    "password": "SecurePassword123"
  }"""
INDEX = b"""{
    "date": "2025-12-10",
    "photos": [
      {
        "local_id": "IMG_1234",
        "creation_time": "2025-12-10T10:00:00Z",
        "file_extension": "jpg",
        "file_type": "image/jpeg"
      },
      {
        "local_id": "IMG_1235",
        "creation_time": "2025-12-10T10:05:00Z",
        "file_extension": "jpg",
        "file_type": "image/jpeg"
      }
    ]
  }"""
FIRST_PHOTO = {
    "local_id": "IMG_1234",
    "creation_time": "2025-12-10T10:00:00Z",
    "file_extension": "jpg",
    "file_type": "image/jpeg",
}
UPLOAD = {"local_id": "IMG_1234", "file_type": "image/jpeg"}
BYTES = b"\xff\xd8\xff\xe0 a photo \xff\xd9"
JSON: Header = ("Content-Type", "application/json")

# Errors: method, target, `Authorization` (None: no such header), body, expected answer.
# "TOKEN" stands for a token that counts, "GONE" for one that does not.
Row = tuple[str, str, str | None, bytes | dict[str, Any], int, str, str]

UNAUTHORIZED = (401, "unauthorized")
BAD_REQUEST = (400, "bad_request")

ERRORS: list[Row] = [
    # POST /login
    (
        *("POST", "/login", None, {"username": "admin", "password": "wrong"}),
        *(*UNAUTHORIZED, "invalid credentials"),
    ),
    (
        *("POST", "/login", None, {"username": "nobody", "password": PASSWORD}),
        *(*UNAUTHORIZED, "invalid credentials"),
    ),
    ("POST", "/login", None, b"", *BAD_REQUEST, "Invalid request format"),
    ("POST", "/login", None, {}, *BAD_REQUEST, "Invalid request format"),
    ("POST", "/login", None, {"username": "admin"}, *BAD_REQUEST, "Invalid request format"),
    ("POST", "/login", None, {"password": PASSWORD}, *BAD_REQUEST, "Invalid request format"),
    # POST /refresh, GET /status
    ("POST", "/refresh", "Bearer GONE", {}, *UNAUTHORIZED, "token not found or expired"),
    ("GET", "/status", "Bearer GONE", b"", *UNAUTHORIZED, "token not found or expired"),
    # POST /photos/index
    (
        *("POST", "/photos/index", "Bearer TOKEN", {"date": "10-12-2025", "photos": []}),
        *(*BAD_REQUEST, "Invalid date format, expected YYYY-MM-DD"),
    ),
    (
        *("POST", "/photos/index", "Bearer TOKEN", {"date": "2025-02-30", "photos": []}),
        *(*BAD_REQUEST, "Invalid date format, expected YYYY-MM-DD"),
    ),
    ("POST", "/photos/index", "Bearer TOKEN", b"{", *BAD_REQUEST, "Invalid request format"),
    ("POST", "/photos/index", "Bearer GONE", INDEX, *UNAUTHORIZED, "Token not found"),
    # "Missing Token" and "Invalid Token Format"
    *(
        (method, target, None, b"", *UNAUTHORIZED, "Authorization header is required")
        for method, target in (
            ("POST", "/refresh"),
            ("GET", "/status"),
            ("POST", "/photos/index"),
            ("POST", "/photos/upload"),
        )
    ),
    *(
        (method, target, "Token TOKEN", b"", *UNAUTHORIZED, "Invalid authorization header format")
        for method, target in (
            ("POST", "/refresh"),
            ("GET", "/status"),
            ("POST", "/photos/index"),
            ("POST", "/photos/upload"),
        )
    ),
]

UPLOAD_ERRORS: list[tuple[str, dict[str, str], int, str, str]] = [
    ("TOKEN", {"file_type": "image/jpeg"}, *BAD_REQUEST, "local_id is required"),
    ("GONE", UPLOAD, *UNAUTHORIZED, "Token not found"),
    # Not a 404: clients know this answer by its text.
    ("TOKEN", {**UPLOAD, "local_id": "IMG_9999"}, 500, "internal_error", "photo not found"),
    ("TOKEN", {**UPLOAD, "local_id": "img_1234"}, 500, "internal_error", "photo not found"),
]

# Column, type, part of the primary key.
COLUMNS = [
    ("local_id", "TEXT", 1),
    ("creation_time", "DATETIME", 0),
    ("file_path", "TEXT", 0),
    ("file_name", "TEXT", 0),
    ("file_type", "TEXT", 0),
    ("file_count", "INTEGER", 0),
    ("uploaded_extensions", "TEXT", 0),
    ("created_at", "DATETIME", 0),
    ("updated_at", "DATETIME", 0),
    ("deleted_at", "DATETIME", 0),
]


def assert_error(answer: Answer, status: int, error: str, text: str) -> None:
    """An error is exactly the document's object, and is of its content type."""
    assert answer.status == status
    assert answer.json == {"error": error, "message": text}
    assert list(answer.json) == ["error", "message"]
    assert answer.header("Content-Type") == "application/json"


async def test_every_error_of_the_document(api: Api, subtests: pytest.Subtests) -> None:
    gone = (await api.refresh()).json["token"]
    api = Api(api.url, (await Api(api.url, gone).refresh()).json["token"])
    for method, target, authorization, body, status, error, text in ERRORS:
        with subtests.test(target=target, authorization=authorization, body=body):
            headers: list[Header] = [JSON] if body else []
            if authorization is not None:
                words = authorization.replace("TOKEN", str(api.token)).replace("GONE", gone)
                headers.append(("Authorization", words))
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            answer = await Api(api.url).call(method, target, *headers, body=content)
            assert_error(answer, status, error, text)


async def test_every_error_of_an_upload(api: Api, subtests: pytest.Subtests) -> None:
    await api.index("2025-12-10", [FIRST_PHOTO])
    for token, fields, status, error, text in UPLOAD_ERRORS:
        for first in (False, True):
            with subtests.test(token=token, fields=fields, file_first=first):
                sender = api if token == "TOKEN" else Api(api.url, "gone")
                answer = await sender.upload_form(fields, BYTES, file_first=first)
                assert_error(answer, status, error, text)


async def test_health(api: Api) -> None:
    before = int(time.time())
    answer = await Api(api.url).call("GET", "/health")
    assert answer.status == 200
    stamp = answer.json["timestamp"]
    assert before <= stamp <= time.time()
    # `time` is the one thing beyond the document.
    said = datetime.fromisoformat(answer.json["time"])
    assert answer.json == {"status": "ok", "timestamp": stamp, "time": answer.json["time"]}
    assert said.timestamp() == stamp
    assert type(stamp) is int


async def test_login(api: Api) -> None:
    answer = await Api(api.url).post_json("/login", LOGIN)
    assert answer.status == 200
    assert list(answer.json) == ["token", "expires_at"]
    # The header `{"alg":"HS256","typ":"JWT"}`, as the document's example has it.
    assert answer.json["token"].startswith("eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.")
    claims = jwt.decode(answer.json["token"], options={"verify_signature": False})
    assert {name: type(value) for name, value in claims.items()} == {
        "user_id": int,
        "username": str,
        "exp": int,
        "iat": int,
        "jti": str,
    }
    assert (claims["user_id"], claims["username"]) == (1, "admin")
    # The week between the document's `iat` and `exp` is to the minute what the default is.
    assert claims["exp"] - claims["iat"] == 7 * 24 * 3600
    assert len(answer.json["expires_at"]) == len("2025-12-17T21:34:47+08:00")
    assert datetime.fromisoformat(answer.json["expires_at"]).timestamp() == claims["exp"]


async def test_refresh_invalidates_the_old_token_and_issues_a_new_one(api: Api) -> None:
    answer = await api.call("POST", "/refresh", JSON, body=b"{}")
    assert answer.status == 200
    assert list(answer.json) == ["token", "expires_at"]
    gone = (401, "unauthorized", "token not found or expired")
    assert_error((await api.status()), *gone)
    assert_error((await api.refresh()), *gone)
    assert (await Api(api.url, answer.json["token"]).status()).status == 200


async def test_status(api: Api) -> None:
    answer = await api.status()
    assert answer.status == 200
    assert answer.json == {"status": "online", "user_id": 1, "username": "admin"}


async def upload(api: Api, **fields: str) -> Answer:
    """The upload of the document, as curl's `-F` sends it."""
    return await api.upload_form({**UPLOAD, **fields}, BYTES)


async def test_index(api: Api) -> None:
    await api.index("2025-12-10", [FIRST_PHOTO])
    assert (await upload(api)).status == 200
    answer = await api.call("POST", "/photos/index", JSON, body=INDEX)
    assert answer.status == 200
    assert answer.json == {
        "status": "success",
        "date": "2025-12-10",
        "assigned_files": [
            {
                "local_id": "IMG_1234",
                "filename": "IMG_0001.jpg",
                "uploaded_extensions": ["jpg"],
            },
            {
                "local_id": "IMG_1235",
                "filename": "IMG_0002.jpg",
                "uploaded_extensions": [],
            },
        ],
    }
    # "Existing photos are preserved", however often and in whatever order they come.
    assert (await api.call("POST", "/photos/index", JSON, body=INDEX)).json == answer.json
    # "Sequence starts from 0001 for each date", "File extension is preserved".
    tomorrow = [{**FIRST_PHOTO, "local_id": "next", "file_extension": "heic"}]
    next_day = (await api.index("2025-12-11", tomorrow)).json
    assert next_day["assigned_files"][0]["filename"] == "IMG_0001.heic"


async def test_upload(api: Api, storage_dir: Path) -> None:
    await api.index("2025-12-10", [FIRST_PHOTO])
    answer = await upload(api)
    assert answer.status == 200
    assert answer.json == {
        "status": "success",
        "message": "File uploaded",
        "local_id": "IMG_1234",
        "filename": "IMG_0001.jpg",
        # Beyond the document.
        "file_path": "storage/photo/1/2025/12/10/IMG_0001.jpg",
        "size": len(BYTES),
    }
    stored = storage_dir / "photo/1/2025/12/10/IMG_0001.jpg"
    assert stored.read_bytes() == BYTES
    # "Files are always overwritten if they already exist".
    assert (await api.upload_form(UPLOAD, b"the latest version")).json["size"] == 18
    assert stored.read_bytes() == b"the latest version"


async def test_upload_as_a_browser_writes_the_form(api: Api, storage_dir: Path) -> None:
    await api.index("2025-12-10", [FIRST_PHOTO])
    boundary = "----WebKitFormBoundary7MA4YWxkTrZu0gW"
    body = (
        f"--{boundary}\r\n"
        'Content-Disposition: form-data; name="local_id"\r\n\r\nIMG_1234\r\n'
        f"--{boundary}\r\n"
        'Content-Disposition: form-data; name="file_type"\r\n\r\nimage/jpeg\r\n'
        f"--{boundary}\r\n"
        'Content-Disposition: form-data; name="file"; filename="Foto \u00e9.jpg"\r\n'
        "Content-Type: image/jpeg\r\n\r\n"
    ).encode() + (BYTES + f"\r\n--{boundary}--\r\n".encode())
    content_type = ("Content-Type", f"multipart/form-data; boundary={boundary}")
    answer = await api.call("POST", "/photos/upload", content_type, body=body)
    assert answer.json["filename"] == "IMG_0001.jpg"
    assert (storage_dir / "photo/1/2025/12/10/IMG_0001.jpg").read_bytes() == BYTES


async def test_the_table_of_photos_has_the_columns_of_the_document(api: Api, db_path: Path) -> None:
    found = rows(db_path, "SELECT name, type, pk FROM pragma_table_info('photos_user_1')")
    columns = [(row["name"], row["type"], row["pk"]) for row in found]
    assert columns[: len(COLUMNS)] == COLUMNS
    # Beyond the document, and behind what it names.
    assert columns[len(COLUMNS) :] == [("number", "INTEGER", 0), ("file_extension", "TEXT", 0)]


async def make_example_record(api: Api) -> None:
    photo = {**FIRST_PHOTO, "local_id": "IMG_001", "creation_time": "2025-01-15T10:30:00Z"}
    await api.index("2025-01-15", [photo])
    for file_type in "image/jpeg", "image/heic":
        assert (await upload(api, local_id="IMG_001", file_type=file_type)).status == 200


async def test_the_example_record_of_the_document(
    api: Api, db_path: Path, storage_dir: Path
) -> None:
    await make_example_record(api)
    [record] = rows(db_path, "SELECT * FROM photos_user_1")
    assert json.loads(record.pop("uploaded_extensions")) == ["jpg", "heic"]
    created_at, updated_at = record.pop("created_at"), record.pop("updated_at")
    assert record == {
        "local_id": "IMG_001",
        "creation_time": "2025-01-15T10:30:00Z",
        "file_path": "storage/photo/1/2025/01/15/",
        "file_name": "IMG_0001",
        "file_type": "image/jpeg",
        "file_count": 2,
        "deleted_at": None,
        # Beyond the document.
        "number": 1,
        "file_extension": "jpg",
    }
    for moment in created_at, updated_at:
        assert datetime.strptime(moment, "%Y-%m-%dT%H:%M:%SZ")
    # "{file_path}{file_name}.{extension}"
    for extension in "jpg", "heic":
        path = f"{record['file_path']}{record['file_name']}.{extension}"
        assert (storage_dir / path.removeprefix("storage/")).read_bytes() == BYTES


async def test_a_new_record_says_that_nothing_was_uploaded(api: Api, db_path: Path) -> None:
    await api.index("2025-12-10", [FIRST_PHOTO])
    [record] = rows(db_path, "SELECT file_count, uploaded_extensions FROM photos_user_1")
    assert record == {"file_count": 0, "uploaded_extensions": "[]"}


async def test_uploaded_extensions_are_written_as_the_document_writes_them(
    api: Api, db_path: Path
) -> None:
    await make_example_record(api)
    [record] = rows(db_path, "SELECT uploaded_extensions FROM photos_user_1")
    assert record["uploaded_extensions"] == '["jpg","heic"]'


async def test_a_photo_that_cannot_be_recorded_is_named_so(api: Api, db_path: Path) -> None:
    rows(db_path, "DROP TABLE photos_user_1")
    answer = await api.index("2025-12-10", [FIRST_PHOTO])
    assert answer.error[:2] == (500, "internal_error")
    assert answer.error[2].startswith("failed to create photo record: ")


async def test_a_file_of_more_than_fifty_megabytes_is_refused_before_it_comes(api: Api) -> None:
    # "max 50MB", which is 50 * 1024 * 1024 there; a form may hold some fields beside it.
    form = ("Content-Type", "multipart/form-data; boundary=x")
    for size, status in (52_428_800 + 1_048_577, 413), (52_428_800, 100):
        async with connect(api.url) as peer:
            headers = (form, ("Content-Length", str(size)), ("Expect", "100-continue"))
            authorization = ("Authorization", f"Bearer {api.token}")
            await peer.send(request("POST", "/photos/upload", authorization, *headers))
            assert (await peer.read_head()).status == status
