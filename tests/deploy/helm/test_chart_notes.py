"""The notes that Helm prints after an installation: the commands of the next steps."""

import pytest

from deploy.helm.helm_engine import HelmEngine, Release, Render
from deploy.helm.helm_library import DOWNLOAD_SECONDS
from immich_bridge import __version__

# Helm may have to be fetched first.
pytestmark = pytest.mark.timeout(DOWNLOAD_SECONDS + 60)

DEFAULT = f"""\
immich-bridge {__version__} is installed as immich-bridge in namespace photos.

  Bridge:  http://immich-server:2283
  Backup:  on

1. Wait until it is ready, and let it be asked from inside the cluster:

     kubectl --namespace photos rollout status deployment/immich-bridge
     helm test immich-bridge --namespace photos

2. Reach it:

     kubectl --namespace photos port-forward service/immich-bridge 8080:8080
     curl http://localhost:8080/ready

3. Make the first user of the photo backup:

     kubectl --namespace photos exec --stdin --tty deployment/immich-bridge -- \
immich-bridge user create --username NAME
"""

# How to reach what each set of values installs.
REACHED = {
    "ingress": ["https://photos.example.com/ready", "https://other.example.com/ready"],
    "gateway": ["https://photos.example.com/ready"],
    "load balancer": [
        "kubectl --namespace photos get service immich-bridge --watch",
        "curl https://EXTERNAL-IP:443/ready",
    ],
    "node port": [
        "kubectl --namespace photos get service immich-bridge"
        " --output jsonpath='{.spec.ports[0].nodePort}'",
        "curl http://ADDRESS-OF-A-NODE:NODE-PORT/ready",
    ],
}


def test_the_next_steps_after_a_plain_installation(render: Render) -> None:
    assert render("default").notes == DEFAULT


@pytest.mark.parametrize("name", REACHED)
def test_how_to_reach_it(render: Render, name: str) -> None:
    section = render(name).notes.partition("2. Reach it:")[2].partition("\n3. ")[0]
    assert section.split("\n") == ["", "", *(f"     {line}" for line in REACHED[name]), ""]


def test_commands_name_what_was_installed(release: Release) -> None:
    name = release.find("Deployment")["metadata"]["name"]
    assert f"rollout status deployment/{name}\n" in release.notes
    backup = release.environment["BACKUP_ENABLED"] == "true"
    assert (f"exec --stdin --tty deployment/{name} --" in release.notes) == backup


def test_which_wings_are_on(render: Render) -> None:
    assert "  Bridge:  off\n  Backup:  on\n" in render("backup alone").notes
    assert "  Backup:  off\n" in render("bridge alone").notes


def test_volumes_that_end_with_the_pod_are_warned_of(render: Render) -> None:
    notes = render("nothing kept").notes
    assert "persistence.data.enabled is false: users and tokens are lost when" in notes
    assert "persistence.storage.enabled is false: photos are lost when" in notes


def test_an_ingress_without_trusted_proxies_is_pointed_out(
    helm: HelmEngine, render: Render
) -> None:
    hint = "config.trustedProxies is empty"
    notes = helm.upgrade({"ingress": {"enabled": True}}).notes
    assert hint in notes
    assert "share the limit of 5/minute logins" in notes
    # There are none that the server should believe, or no logins to count.
    assert hint not in render("ingress").notes
    assert hint not in render("default").notes
    without_backup = {"ingress": {"enabled": True}, "config": {"backupEnabled": False}}
    assert hint not in helm.upgrade(without_backup).notes
