"""Certificates and keys that cannot be used: each fault in words, with its setting and file."""

import errno
import os
import shutil
import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from immich_bridge.cli import main
from immich_bridge.config import Config, ConfigError
from immich_bridge.tls import check_tls_files, client_context, server_context

pytestmark = pytest.mark.skipif(
    shutil.which("openssl") is None, reason="there is no openssl to make keys with"
)

EC = "ec -pkeyopt ec_paramgen_curve:prime256v1"
EXPECTED = {
    "TLS_CERT_FILE": "a PEM file with a certificate chain",
    "TLS_KEY_FILE": "a PEM file with the private key of TLS_CERT_FILE, without a passphrase",
    "IMMICH_CA_FILE": "a PEM file with certificates",
}


def openssl(folder: Path, command: str) -> None:
    subprocess.run(["openssl", *command.split()], cwd=folder, check=True, capture_output=True)


def make(folder: Path, kind: str) -> None:
    """A certificate that vouches for itself, `c.pem`, and its key, `k.pem`."""
    folder.mkdir(exist_ok=True)
    openssl(
        folder, f"req -x509 -newkey {kind} -nodes -days 2 -subj /CN=test -out c.pem -keyout k.pem"
    )


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a pair that can be used, and with what cannot."""
    folder = tmp_path_factory.mktemp("tls")
    make(folder, EC)
    make(folder / "other", EC)
    make(folder / "rsa", "rsa:2048")
    make(folder / "weak", "rsa:1024")
    openssl(folder, "pkcs8 -topk8 -in k.pem -passout pass:secret -out encrypted.pem")
    openssl(folder, "ec -in k.pem -aes128 -passout pass:secret -out encrypted_ec.pem")
    openssl(folder, "x509 -in c.pem -outform der -out c.der")
    for name in "c", "k":
        head, body, *rest = (folder / f"{name}.pem").read_text().splitlines(keepends=True)
        (folder / f"damaged_{name}.pem").write_text("".join([head, "AAAA" + body[4:], *rest]))
    both = (folder / "c.pem").read_bytes() + (folder / "k.pem").read_bytes()
    (folder / "both.pem").write_bytes("# für den Server\n".encode() + both)
    (folder / "empty.pem").touch()
    return folder


def refusal(name: str, path: Path, reason: str) -> str:
    return f"{name}: '{path}' cannot be used: {reason}, expected {EXPECTED[name]}"


@pytest.mark.parametrize(
    ("certificate", "key"),
    [("c.pem", "k.pem"), ("rsa/c.pem", "rsa/k.pem"), ("both.pem", "both.pem")],
)
def test_a_certificate_with_its_key_is_served(files: Path, certificate: str, key: str) -> None:
    context = server_context(files / certificate, files / key)
    assert context.verify_mode == ssl.CERT_NONE


def test_of_an_https_immich_is_verified(files: Path) -> None:
    context = client_context(files / "c.pem")
    assert context.check_hostname
    assert len(context.get_ca_certs()) == 1


NO_CERTIFICATES = [
    ("missing.pem", "there is no such file"),
    ("c.pem/missing", "there is no such file"),
    (".", "it is a folder"),
    ("empty.pem", "it holds no certificate"),
    ("k.pem", "it holds no certificate"),
    ("c.der", "it holds no certificate"),
    ("damaged_c.pem", "a certificate in it is damaged"),
]


@pytest.mark.parametrize(("given", "reason"), NO_CERTIFICATES)
def test_what_holds_no_certificate_is_named(files: Path, given: str, reason: str) -> None:
    path = files / given
    with pytest.raises(ConfigError) as caught:
        server_context(path, files / "k.pem")
    assert str(caught.value) == refusal("TLS_CERT_FILE", path, reason)
    with pytest.raises(ConfigError) as caught:
        client_context(path)
    assert str(caught.value) == refusal("IMMICH_CA_FILE", path, reason)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("missing.pem", "there is no such file"),
        ("empty.pem", "it holds no private key"),
        ("c.pem", "it holds no private key"),
        ("damaged_k.pem", "its private key is damaged"),
        ("encrypted.pem", "its private key is encrypted"),
        ("encrypted_ec.pem", "its private key is encrypted"),
        ("other/k.pem", "its private key is not that of the certificate in '{}'"),
        ("rsa/k.pem", "its private key is not that of the certificate in '{}'"),
    ],
)
def test_what_is_no_key_of_the_certificate_is_named(files: Path, given: str, reason: str) -> None:
    certificate = files / "c.pem"
    with pytest.raises(ConfigError) as caught:
        server_context(certificate, files / given)
    assert str(caught.value) == refusal("TLS_KEY_FILE", files / given, reason.format(certificate))


def test_a_certificate_that_openssl_takes_for_too_weak_is_named(files: Path) -> None:
    path = files / "weak" / "c.pem"
    with pytest.raises(ConfigError) as caught:
        server_context(path, files / "weak" / "k.pem")
    reason = "its certificate is too weak for OpenSSL"
    assert str(caught.value) == refusal("TLS_CERT_FILE", path, reason)


def test_a_file_of_somebody_else_is_named(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "k.pem"
    path.touch(mode=0)
    if os.geteuid() == 0:  # root may read everything
        read = Path.read_bytes

        def refuse(self: Path) -> bytes:
            if self == path:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            return read(self)

        monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(ConfigError) as caught:
        server_context(files / "c.pem", path)
    assert str(caught.value) == refusal("TLS_KEY_FILE", path, "this user may not read it")


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize(
    "settings",
    [
        lambda files: {"TLS_CERT_FILE": f"{files}/c.pem", "TLS_KEY_FILE": f"{files}/c.pem"},
        lambda files: {"IMMICH_CA_FILE": f"{files}/k.pem"},
    ],
    ids=["key", "ca file"],
)
def test_a_server_does_not_start_with_them(
    capfd: pytest.CaptureFixture[str],
    files: Path,
    workers: str,
    settings: Callable[[Path], dict[str, str]],
) -> None:
    values = {"BACKUP_ENABLED": "false", "WORKERS": workers, "LISTEN_ADDR": "127.0.0.1:0"}
    assert main([], {**values, **settings(files)}) == 2
    written = capfd.readouterr().err
    assert written.startswith("immich-bridge: ")
    assert " cannot be used: it holds no " in written
    assert written.count("\n") == 1


def test_without_a_bridge_nobody_needs_to_know_immich() -> None:
    check_tls_files(
        Config.from_mapping({"IMMICH_SERVER_URL": "", "IMMICH_CA_FILE": "/nonexistent"})
    )
