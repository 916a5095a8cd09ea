"""Is the server of this container alive? Exit code 0 when it answers `/health`, else 1.

It reads the environment as the server does, so that it knocks where the server listens. Flags
given to the server it cannot see: in a container settings belong into the environment.
"""

import http.client
import os
import ssl
import sys

from immich_bridge.config import Config, ConfigError

TIMEOUT = 3.0
"""Seconds; below the timeout of HEALTHCHECK, which would kill this without a word."""


def main() -> None:
    """Ask once; raises `SystemExit` with what is wrong."""
    try:
        config = Config.from_mapping(os.environ)
    except ConfigError as exc:
        sys.exit(str(exc))
    host, port = config.listen_addr
    # Linux takes a connection to 0.0.0.0 or [::] as one to the loopback, but needs some address.
    host = host or "127.0.0.1"
    connection: http.client.HTTPConnection
    if config.tls_cert_file is None:
        connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT)
    else:
        # The certificate bears the name that clients use, not the address of this loopback.
        trusting = ssl.create_default_context()
        trusting.check_hostname = False
        trusting.verify_mode = ssl.CERT_NONE
        connection = http.client.HTTPSConnection(host, port, timeout=TIMEOUT, context=trusting)
    try:
        connection.request("GET", "/health", headers={"Connection": "close"})
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as exc:
        sys.exit(f"no answer from port {port}: {exc}")
    if status != http.client.OK:
        sys.exit(f"/health answered {status}")


main()
