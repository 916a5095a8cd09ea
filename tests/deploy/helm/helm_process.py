"""Helm in a process of its own: a request a line on standard input, an answer a line on output.

Apart from the tests, since a Go library brings its own threads and signal handlers.
"""

import ctypes
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

# What the library's install and upgrade take; waiting would need a cluster that starts pods.
OPTIONS = {
    "install": True,
    "wait": False,
    "timeout_seconds": 30,
    "server_side_apply": "auto",
    "disable_openapi_validation": True,
}


class HelmError(Exception):
    """What Helm says when it refuses."""


class Helm:
    """The few functions of the library that the tests need."""

    def __init__(self, library: str, kubeconfig: str) -> None:
        self._library = ctypes.CDLL(library)
        self._library.helm_sdkpy_last_error.restype = ctypes.c_void_p
        self._library.helm_sdkpy_free.argtypes = [ctypes.c_void_p]
        self._library.helm_sdkpy_config_destroy.argtypes = [ctypes.c_ulonglong]
        self._kubeconfig = kubeconfig

    def upgrade(self, chart: str, release: str, namespace: str, values: object) -> dict[str, Any]:
        """`helm upgrade --install` into a cluster that has seen no release yet."""
        with self._configuration(namespace) as handle:
            texts = (release, chart, json.dumps(values), "", json.dumps(OPTIONS))
            result = self._call(self._library.helm_sdkpy_upgrade, handle, *texts)
        # Without the chart, which is most of it.
        return {name: result.get(name) for name in ("manifest", "hooks", "info")}

    def lint(self, chart: str) -> dict[str, Any]:
        """`helm lint`: what it says of the chart with its own values."""
        with self._configuration("default") as handle:
            return self._call(self._library.helm_sdkpy_lint, handle, chart)

    @contextmanager
    def _configuration(self, namespace: str) -> Iterator[ctypes.c_ulonglong]:
        handle = ctypes.c_ulonglong()
        self._check(
            self._library.helm_sdkpy_config_create(
                namespace.encode(), self._kubeconfig.encode(), None, b"{}", ctypes.byref(handle)
            )
        )
        try:
            yield handle
        finally:
            self._library.helm_sdkpy_config_destroy(handle)

    def _call(self, function: Any, handle: ctypes.c_ulonglong, *texts: str) -> dict[str, Any]:
        answer = ctypes.c_void_p()
        self._check(function(handle, *map(str.encode, texts), ctypes.byref(answer)))
        try:
            result: dict[str, Any] = json.loads(ctypes.string_at(answer))
            return result
        finally:
            self._library.helm_sdkpy_free(answer)

    def _check(self, status: int) -> None:
        if status:
            # The library's own text, which it frees at the next call.
            raise HelmError(ctypes.string_at(self._library.helm_sdkpy_last_error()).decode())


def main() -> None:
    """Answer until the input ends."""
    helm = Helm(*sys.argv[1:])
    actions: dict[str, Callable[..., object]] = {"upgrade": helm.upgrade, "lint": helm.lint}
    for line in sys.stdin:
        action, arguments = json.loads(line)
        try:
            answer = {"result": actions[action](**arguments)}
        except HelmError as error:
            answer = {"error": str(error)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
