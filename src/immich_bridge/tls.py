"""The certificates and keys that settings name, as contexts of TLS.

OpenSSL says neither which of its files is wrong nor, of most faults, what they are. So the files
are looked at here first, and its errors put into words.
"""

import re
import ssl
from pathlib import Path
from typing import Final

from immich_bridge.config import Config, ConfigError

_CERTIFICATE: Final = re.compile(rb"-----BEGIN (?:X509 |TRUSTED )?CERTIFICATE-----")
_PRIVATE_KEY: Final = re.compile(rb"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY-----")
_OF_ANOTHER_CERTIFICATE: Final = frozenset(
    # The last one where even the kinds of the two differ.
    {"KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED"}
)
_TOO_WEAK: Final = frozenset({"EE_KEY_TOO_SMALL", "CA_KEY_TOO_SMALL", "CA_MD_TOO_WEAK"})


class _EncryptedKeyError(Exception):
    """The key has a passphrase, and nobody is there to be asked for it."""


def server_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """What to serve HTTPS with; raises `ConfigError`."""
    _certificates("TLS_CERT_FILE", certificate)
    if not _PRIVATE_KEY.search(_content("TLS_KEY_FILE", key)):
        raise _unusable("TLS_KEY_FILE", key, "it holds no private key")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(certificate, key, password=_no_passphrase)
    except _EncryptedKeyError:
        raise _unusable("TLS_KEY_FILE", key, "its private key is encrypted") from None
    except OSError as exc:  # also ssl.SSLError
        reason = getattr(exc, "reason", None)
        if reason in _TOO_WEAK:
            weak = "its certificate is too weak for OpenSSL"
            raise _unusable("TLS_CERT_FILE", certificate, weak) from exc
        if reason in _OF_ANOTHER_CERTIFICATE:
            other = f"its private key is not that of the certificate in {str(certificate)!r}"
            raise _unusable("TLS_KEY_FILE", key, other) from exc
        raise _unusable("TLS_KEY_FILE", key, "its private key is damaged") from exc
    return context


def client_context(authority: Path) -> ssl.SSLContext:
    """What to verify an https Immich with; raises `ConfigError`."""
    return _certificates("IMMICH_CA_FILE", authority)


def check_tls_files(config: Config) -> None:
    """Read the files that a server with `config` needs; raises `ConfigError`."""
    if config.tls_cert_file is not None and config.tls_key_file is not None:
        server_context(config.tls_cert_file, config.tls_key_file)
    if config.immich_ca_file is not None and config.immich_server_url is not None:
        client_context(config.immich_ca_file)


def _certificates(name: str, path: Path) -> ssl.SSLContext:
    """A context that trusts the certificates in the file of the setting `name`."""
    if not _CERTIFICATE.search(_content(name, path)):
        raise _unusable(name, path, "it holds no certificate")
    try:
        return ssl.create_default_context(cafile=path)
    except OSError as exc:  # also ssl.SSLError
        raise _unusable(name, path, "a certificate in it is damaged") from exc


def _content(name: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise _unusable(name, path, "there is no such file") from None
    except IsADirectoryError:
        raise _unusable(name, path, "it is a folder") from None
    except PermissionError:
        raise _unusable(name, path, "this user may not read it") from None
    except OSError as exc:
        raise _unusable(name, path, f"it cannot be read ({exc.strerror})") from exc


def _no_passphrase() -> str:
    # Without this OpenSSL would ask on the terminal, and wait.
    raise _EncryptedKeyError


def _unusable(name: str, path: Path, reason: str) -> ConfigError:
    return ConfigError.of(name, repr(str(path)), reason)
