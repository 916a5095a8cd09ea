"""The backup wing put together: its parts, and what lives as long as the server does."""

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Final

from aiohttp import web

from immich_bridge.backup.accounts import Accounts
from immich_bridge.backup.catalog import Catalog
from immich_bridge.backup.chunks import Chunks
from immich_bridge.backup.database import Database, DatabaseError
from immich_bridge.backup.disk_space import DiskSpace
from immich_bridge.backup.held_upload import HeldUploads
from immich_bridge.backup.integrity import Integrity
from immich_bridge.backup.photos import Photos
from immich_bridge.backup.sessions import Sessions
from immich_bridge.backup.storage import Storage
from immich_bridge.backup.stored import Stored
from immich_bridge.backup.tokens import KeyFileError, Tokens, load_key
from immich_bridge.backup.uploads import Uploads
from immich_bridge.config import Config
from immich_bridge.errors import BridgeError, StartError
from immich_bridge.http.metrics import Metrics
from immich_bridge.http.rate_limit import RateLimit, RateLimitStorageError, rate_limit_storage
from immich_bridge.http.routing import add_route
from immich_bridge.logs import log_event
from immich_bridge.resumable.resource import Resumable

_logger = logging.getLogger("immich_bridge.backup")

_SWEEP_SECONDS: Final = 3600.0


class BackupWing:
    """The photo backup server. `lifetime` opens and closes what it holds."""

    def __init__(self, config: Config, resumable: Resumable | None = None) -> None:
        self._config = config
        self._resumable = resumable
        self._held: HeldUploads | None = None
        self._storage = Storage(config.storage_dir)
        self._database = Database(config.db_path)
        self._stored = Stored()

    def add_routes(self, app: web.Application) -> None:
        """Route what is ours; the handlers work once `lifetime` has begun."""
        try:
            counts = rate_limit_storage(self._config.rate_limit_storage)
            key = load_key(self._config.jwt_secret, self._config.jwt_secret_path)
        except (RateLimitStorageError, KeyFileError) as exc:
            raise StartError(str(exc)) from exc
        self._accounts = Accounts(self._database)
        self._tokens = Tokens(self._database, key, self._config.token_ttl)
        catalog = Catalog(self._database)
        self._uploads = Uploads(catalog, self._storage, self._stored)
        self._chunks = Chunks(self._storage, self._uploads, max_total=self._config.max_stream_size)
        if self._resumable is not None:
            self._held = HeldUploads(self._storage, self._uploads, self._tokens, self._resumable)
            add_route(app, "OPTIONS", "/photos/upload/stream", self._held.options)
        login_limit = RateLimit(counts, self._config.rate_limit_login, "login")
        upload_limit = RateLimit(counts, self._config.rate_limit_upload, "upload")
        sessions = Sessions(self._config, self._accounts, self._tokens, login_limit)
        photos = Photos(
            self._config,
            self._tokens,
            catalog,
            self._uploads,
            self._chunks,
            upload_limit,
            self._held,
        )
        add_route(app, "POST", "/login", sessions.login)
        add_route(app, "POST", "/refresh", sessions.refresh)
        add_route(app, "GET", "/status", sessions.status)
        add_route(app, "POST", "/photos/index", photos.index)
        add_route(app, "POST", "/photos/upload", photos.upload_form)
        add_route(app, "POST", "/photos/upload/stream", photos.upload_stream)
        add_route(app, "POST", "/photos/upload/chunk", photos.upload_chunk)
        app.cleanup_ctx.append(self._lifetime)

    def expose(self, metrics: Metrics) -> None:
        """Let `metrics` tell of passwords that wait, and of disks that fill."""
        metrics.gauge(
            "immich_bridge_argon2_queue_length",
            "Passwords that wait for a thread to hash them.",
            lambda: [((), self._accounts.queue_length)],
        )
        self._stored.expose(metrics)
        folders = {"storage": self._config.storage_dir, "database": self._config.db_path.parent}
        DiskSpace(folders).expose(metrics)

    async def check_database(self) -> None:
        """Return if the database answers; raise if not."""
        await self._database.check()

    async def check_storage(self) -> None:
        """Return if files can be written; raise if not."""
        await self._storage.check()

    async def _lifetime(self, _: web.Application) -> AsyncIterator[None]:
        try:
            swept = await asyncio.to_thread(self._storage.prepare)
        except OSError as exc:
            raise StartError(f"STORAGE_DIR: {self._config.storage_dir}: {exc}") from exc
        if swept:
            log_event(_logger, logging.INFO, "swept files of interrupted uploads", files=swept)
        try:
            await self._database.open()
        except DatabaseError as exc:
            self._storage.close()
            raise StartError(f"DB_PATH: {exc}") from exc
        await self._settle()
        if self._held is not None:
            await self._held.restore()
        sweeping = asyncio.create_task(self._sweep_for_ever())
        try:
            yield
        finally:
            sweeping.cancel()
            await asyncio.wait({sweeping})
            await self._uploads.close()
            self._accounts.close()
            await self._database.close()
            self._storage.close()

    async def _settle(self) -> None:
        """Bring rows in line with photos whose upload ended between the two."""
        marks = self._storage.marks
        try:
            await Integrity(self._database, self._storage).settle(marks)
        except BridgeError as exc:
            # No reason not to start, as a full disk is none: the marks are there the next time.
            log_event(_logger, logging.ERROR, "settling uploads failed", reason=exc.message)
        else:
            if marks:
                log_event(_logger, logging.INFO, "settled interrupted uploads", files=len(marks))

    async def _sweep_for_ever(self) -> None:
        """Forget expired tokens and abandoned chunks, now and every hour."""
        while True:
            try:
                tokens = await self._tokens.sweep()
                chunks = await self._chunks.sweep()
            except Exception:
                _logger.exception("sweeping failed")
            else:
                if tokens or chunks:
                    log_event(
                        _logger, logging.INFO, "swept", expired_tokens=tokens, chunk_folders=chunks
                    )
            await asyncio.sleep(_SWEEP_SECONDS)
