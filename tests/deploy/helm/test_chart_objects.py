"""What holds for every set of values: objects that Kubernetes takes, and that fit together."""

import functools
import json
from collections.abc import Iterator

import kubernetes_validate  # type: ignore[import-untyped]
import pytest

from deploy.helm.helm_engine import Release, Render
from deploy.helm.helm_library import DOWNLOAD_SECONDS
from immich_bridge import __version__
from immich_bridge.config import Config

# Helm may have to be fetched first.
pytestmark = pytest.mark.timeout(DOWNLOAD_SECONDS + 60)

# The oldest that Chart.yaml allows, and the newest that the schemas know.
KUBERNETES = ("1.25", kubernetes_validate.latest_version())
# Defined by extensions, so without a schema among Kubernetes' own.
EXTENSIONS = {"HTTPRoute", "ServiceMonitor"}


@pytest.mark.parametrize("version", KUBERNETES)
def test_every_object_is_one_that_kubernetes_knows(release: Release, version: str) -> None:
    for manifest in release.objects + release.hooks:
        if manifest["kind"] not in EXTENSIONS:
            _validate(json.dumps(manifest), version)


# Much is the same in many releases.
@functools.cache
def _validate(manifest: str, version: str) -> None:
    kubernetes_validate.validate(json.loads(manifest), version, strict=True)


def test_names_are_unique_and_fit_a_dns_label(release: Release) -> None:
    names = [(each["kind"], each["metadata"]["name"]) for each in release.objects]
    assert len(names) == len(set(names))
    for _, name in names:
        assert len(name) <= 63
        assert not name.endswith("-")


def test_every_object_says_whose_it_is(release: Release) -> None:
    for manifest in release.objects + release.hooks:
        labels = manifest["metadata"]["labels"]
        assert labels["app.kubernetes.io/instance"] == "immich-bridge"
        assert labels["app.kubernetes.io/managed-by"] == "Helm"
        assert labels["app.kubernetes.io/version"] == __version__
        assert labels["helm.sh/chart"].startswith("immich-bridge-")
        assert all(len(value) <= 63 for value in labels.values())


def test_selectors_choose_the_server_and_not_the_test_pod(release: Release) -> None:
    server = release.find("Deployment")["spec"]["template"]["metadata"]["labels"]
    (test_pod,) = release.hooks
    selectors = list(_pod_selectors(release))
    assert len(selectors) >= 2
    for selector in selectors:
        assert selector.items() <= server.items()
        assert not selector.items() <= test_pod["metadata"]["labels"].items()
        # Else two releases in one namespace would serve for each other.
        assert {"app.kubernetes.io/name", "app.kubernetes.io/instance"} <= set(selector)
        # A new version of the chart could not change a Deployment's selector.
        assert "helm.sh/chart" not in selector
        assert "app.kubernetes.io/version" not in selector


def _pod_selectors(release: Release) -> Iterator[dict[str, str]]:
    for each in release.objects:
        spec = each.get("spec", {})
        match each["kind"]:
            case "Service":
                yield spec["selector"]
            case "Deployment" | "PodDisruptionBudget":
                yield spec["selector"]["matchLabels"]
            case "NetworkPolicy":
                yield spec["podSelector"]["matchLabels"]


def test_services_lead_to_ports_of_the_container(release: Release) -> None:
    ports = {port["name"] for port in release.container["ports"]}
    services = [each for each in release.objects if each["kind"] == "Service"]
    targets = {port["targetPort"] for each in services for port in each["spec"]["ports"]}
    assert targets == ports
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        if "httpGet" in release.container.get(probe, {}):
            assert release.container[probe]["httpGet"]["port"] == "http"


def test_every_mount_has_its_volume_and_every_claim_is_there(release: Release) -> None:
    volumes = {volume["name"]: volume for volume in release.pod["volumes"]}
    mounts = [mount["name"] for mount in release.container["volumeMounts"]]
    assert len(volumes) == len(release.pod["volumes"])
    assert sorted(mounts) == sorted(volumes)
    made = {
        each["metadata"]["name"]
        for each in release.objects
        if each["kind"] == "PersistentVolumeClaim"
    }
    claimed = {
        volume["persistentVolumeClaim"]["claimName"]
        for volume in volumes.values()
        if "persistentVolumeClaim" in volume
    }
    assert claimed - {"bridge-data", "photos"} == made


def test_the_server_starts_with_this_environment(release: Release) -> None:
    config = _config(release)
    (port,) = [each for each in release.container["ports"] if each["name"] == "http"]
    assert config.listen_addr == ("", port["containerPort"])
    if config.backup_enabled:
        mounted = [mount["mountPath"] for mount in release.container["volumeMounts"]]
        assert f"/{config.db_path.parts[1]}" in mounted
        assert f"/{config.jwt_secret_path.parts[1]}" in mounted
        assert f"/{config.storage_dir.parts[1]}" in mounted
    else:
        assert "PersistentVolumeClaim" not in release.kinds
        assert [mount["mountPath"] for mount in release.container["volumeMounts"]] == ["/tmp"]


def test_the_pod_lives_longer_than_the_grace_of_its_uploads(release: Release) -> None:
    before = 0
    if "lifecycle" in release.container:
        before = int(release.container["lifecycle"]["preStop"]["exec"]["command"][-1])
    grace = _config(release).shutdown_grace
    assert release.pod["terminationGracePeriodSeconds"] >= before + grace + 10


def test_a_change_of_settings_replaces_the_pods(release: Release, render: Render) -> None:
    def checksum(of: Release) -> str:
        template = of.find("Deployment")["spec"]["template"]["metadata"]
        return str(template["annotations"]["checksum/config"])

    default = render("default")
    same = release.environment == default.environment
    assert (checksum(release) == checksum(default)) == same


def test_pods_have_no_rights_to_lose(release: Release) -> None:
    for pod in (release.pod, *(hook["spec"] for hook in release.hooks)):
        assert pod["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        (container,) = pod["containers"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }


def _config(release: Release) -> Config:
    """The settings as the server reads them."""
    return Config.from_mapping(release.environment)
