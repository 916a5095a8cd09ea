"""The backup wing put together: its parts see the same database at every moment."""

import json
from collections.abc import Awaitable, Callable

from backup_wing import PASSWORD, USERNAME, Api
from immich_bridge.backup.accounts import User
from immich_bridge.serve import Server
from wire import fetch


async def test_what_was_written_after_a_readiness_check_is_seen(
    start_backup: Callable[..., Awaitable[Server]],
    make_user: Callable[[str, str], Awaitable[User]],
) -> None:
    backup = await start_backup()
    ready = await fetch(backup.address, "GET", "/ready")
    assert json.loads(ready.body)["checks"]["database"] == "ok"
    # Made over another connection, as the command line does.
    await make_user(USERNAME, PASSWORD)
    answer = await Api(backup.address).login(USERNAME, PASSWORD)
    assert answer.status == 200
    status = await Api(backup.address, answer.json["token"]).status()
    assert (status.status, status.json["username"]) == (200, USERNAME)
