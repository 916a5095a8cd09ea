"""Helm for the tests: values in, the objects that a cluster would be given out."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import yaml

from deploy.helm import helm_process
from deploy.helm.helm_library import helm_library
from deploy.helm.kubernetes_standin import kubernetes_standin

CHART = Path(__file__).parents[3] / "deploy" / "helm" / "immich-bridge"
RELEASE = "immich-bridge"
NAMESPACE = "photos"

# As Helm numbers them.
SEVERITIES = ("unknown", "info", "warning", "error")

Values = Mapping[str, Any]
Manifest = dict[str, Any]


class RefusedError(Exception):
    """Helm refused the values; the message is what its user reads."""


@dataclass(frozen=True)
class Release:
    """An installed release."""

    objects: list[Manifest]
    hooks: list[Manifest]
    notes: str

    def find(self, kind: str, name: str | None = None) -> Manifest:
        """The one object of this kind, and name if given."""
        found = [
            each
            for each in self.objects
            if each["kind"] == kind and name in (None, each["metadata"]["name"])
        ]
        assert len(found) == 1, f"{len(found)} of {kind} {name or ''}: {self.kinds}"
        return found[0]

    @property
    def kinds(self) -> set[str]:
        """The kinds of its objects, hooks apart."""
        return {each["kind"] for each in self.objects}

    @property
    def pod(self) -> Manifest:
        """The `spec` of the server's pods."""
        spec: Manifest = self.find("Deployment")["spec"]["template"]["spec"]
        return spec

    @property
    def container(self) -> Manifest:
        """The server's container."""
        (container,) = self.pod["containers"]
        assert isinstance(container, dict)
        return container

    @property
    def environment(self) -> dict[str, str]:
        """The variables of the server that stand in the ConfigMap."""
        data = self.find("ConfigMap")["data"]
        assert all(isinstance(value, str) for value in data.values())
        return dict(data)


Render = Callable[[str], Release]


class HelmEngine:
    """A running Helm."""

    def __init__(self, requests: IO[str], answers: IO[str]) -> None:
        self._requests = requests
        self._answers = answers

    def upgrade(self, values: Values, *, release: str = RELEASE) -> Release:
        """`helm upgrade --install` with these values, into an empty namespace.

        Raises `RefusedError`.
        """
        result = self._ask("upgrade", release=release, namespace=NAMESPACE, values=values)
        return Release(
            objects=_objects(result["manifest"]),
            hooks=[each for hook in result["hooks"] for each in _objects(hook["manifest"])],
            notes=result["info"]["notes"],
        )

    def lint(self) -> list[tuple[str, str]]:
        """`helm lint`: places in the chart, and how bad it is there."""
        messages = self._ask("lint")["Messages"]
        return [(each["Path"], SEVERITIES[each["Severity"]]) for each in messages]

    def _ask(self, action: str, **arguments: object) -> dict[str, Any]:
        self._requests.write(json.dumps([action, {"chart": str(CHART), **arguments}]) + "\n")
        self._requests.flush()
        answer = json.loads(self._answers.readline())
        if "error" in answer:
            raise RefusedError(answer["error"])
        result: dict[str, Any] = answer["result"]
        return result


@contextmanager
def running_helm(folder: Path) -> Iterator[HelmEngine]:
    """A Helm that keeps its own files in `folder`.

    Raises `LibraryMissingError` when there is none for this machine.
    """
    library = helm_library()
    with kubernetes_standin() as url:
        kubeconfig = folder / "kubeconfig"
        kubeconfig.write_text(json.dumps(_kubeconfig(url)))
        command = [sys.executable, helm_process.__file__, str(library), str(kubeconfig)]
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            # Releases are forgotten with their configuration, so that each is the first.
            "HELM_DRIVER": "memory",
            # The stand-in needs no sparing.
            "HELM_QPS": "1000",
            "HELM_BURST_LIMIT": "1000",
        }
        with subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                yield HelmEngine(process.stdin, process.stdout)
            finally:
                process.stdin.close()


def _objects(manifest: str) -> list[Manifest]:
    return [each for each in yaml.load_all(manifest, _StrictLoader) if each is not None]


class _StrictLoader(yaml.CSafeLoader):
    """Refuses a key that stands twice, of which YAML readers silently drop one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        assert len(keys) == len(set(keys)), f"a key twice in {keys}"
        return super().construct_mapping(node, deep)


def _kubeconfig(url: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "standin", "cluster": {"server": url}}],
        "users": [{"name": "tester", "user": {}}],
        "contexts": [{"name": "standin", "context": {"cluster": "standin", "user": "tester"}}],
        "current-context": "standin",
    }
