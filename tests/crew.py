"""Workers in this process, each on a port of its own, so that a test can choose who is asked."""

import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from immich_bridge.config import Config
from immich_bridge.serve import Server, running_server
from immich_bridge.sockets import listening_socket, metrics_socket
from immich_bridge.worker import Inheritance, Worker


class Crew:
    """Two workers, as far as they were started; they end with `stack`."""

    def __init__(self, stack: AsyncExitStack, immich_url: str, folder: Path) -> None:
        self._stack = stack
        self._immich_url = immich_url
        self.folder = folder

    async def start(self, number: int, **settings: str) -> Server:
        """Start one of two workers; the first one tells the metrics."""
        config = Config.from_mapping(
            {
                "LISTEN_ADDR": "127.0.0.1:0",
                "BACKUP_ENABLED": "false",
                "IMMICH_SERVER_URL": self._immich_url,
                "WORKERS": "2",
                **settings,
            }
        )
        exposed = None
        if config.metrics_addr is not None and number == 0:
            exposed = metrics_socket(config.metrics_addr)
        inherited = Inheritance(
            Worker(number, 2, self.folder), listening_socket("127.0.0.1", 0), exposed
        )
        return await self._stack.enter_async_context(running_server(config, inherited))


@asynccontextmanager
async def a_crew(immich_url: str) -> AsyncIterator[Crew]:
    """Workers to be started, in front of the Immich at `immich_url`."""
    # The names of sockets have to be short, so that they may not lie in `tmp_path`.
    with tempfile.TemporaryDirectory(prefix="w") as folder:
        async with AsyncExitStack() as stack:
            yield Crew(stack, immich_url, Path(folder))
