"""Just enough of a Kubernetes API for Helm to install into: it knows kinds, and keeps nothing."""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

VERSION = "v1.34.0"

KINDS = {
    "v1": ("ConfigMap", "PersistentVolumeClaim", "Pod", "Secret", "Service", "ServiceAccount"),
    "apps/v1": ("Deployment",),
    "autoscaling/v2": ("HorizontalPodAutoscaler",),
    "gateway.networking.k8s.io/v1": ("HTTPRoute",),
    "monitoring.coreos.com/v1": ("ServiceMonitor",),
    "networking.k8s.io/v1": ("Ingress", "NetworkPolicy"),
    "policy/v1": ("PodDisruptionBudget",),
}


@contextmanager
def kubernetes_standin() -> Iterator[str]:
    """The URL of an API that answers for as long as the context lasts."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Head and body in one packet: in two, the second waits for a delayed acknowledgement.
    wbufsize = -1

    def do_GET(self) -> None:
        found = _discovery().get(self.path.partition("?")[0])
        # Whatever it is, it does not exist yet.
        missing = {"kind": "Status", "status": "Failure", "reason": "NotFound", "code": 404}
        self._answer(200 if found else 404, found or missing)

    def do_POST(self) -> None:
        self._answer(201, json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def _answer(self, status: int, answer: object) -> None:
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _discovery() -> dict[str, Any]:
    major, minor = VERSION[1:].split(".")[:2]
    pages: dict[str, Any] = {
        "/version": {"major": major, "minor": minor, "gitVersion": VERSION},
        "/api": {"kind": "APIVersions", "versions": ["v1"]},
    }
    groups = []
    for group_version, kinds in KINDS.items():
        group, _, version = group_version.rpartition("/")
        pages[f"/apis/{group_version}" if group else "/api/v1"] = {
            "kind": "APIResourceList",
            "groupVersion": group_version,
            "resources": [
                {
                    "name": _plural(kind),
                    "namespaced": True,
                    "kind": kind,
                    "verbs": ["create", "get"],
                }
                for kind in kinds
            ],
        }
        if group:
            name = {"groupVersion": group_version, "version": version}
            groups.append({"name": group, "versions": [name], "preferredVersion": name})
    pages["/apis"] = {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}
    return pages


def _plural(kind: str) -> str:
    return re.sub(r"y$", "ie", re.sub(r"ss$", "sse", kind.lower())) + "s"
