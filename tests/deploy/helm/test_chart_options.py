"""What single values do."""

from typing import Any

import pytest

from deploy.helm.helm_engine import HelmEngine, RefusedError, Render
from deploy.helm.helm_library import DOWNLOAD_SECONDS
from deploy.helm.value_sets import PEER, SPREAD, VALUE_SETS
from immich_bridge import __version__

# Helm may have to be fetched first.
pytestmark = pytest.mark.timeout(DOWNLOAD_SECONDS + 60)

BRIDGE_ALONE = {"backupEnabled": False}


@pytest.mark.parametrize(
    "scaled", [{"replicaCount": 2}, {"autoscaling": {"enabled": True, "maxReplicas": 2}}]
)
def test_two_pods_on_one_database_are_refused(helm: HelmEngine, scaled: dict[str, Any]) -> None:
    with pytest.raises(RefusedError, match=r"one pod owns.*\n.*config\.backupEnabled=false"):
        helm.upgrade(scaled)
    assert "Deployment" in helm.upgrade({**scaled, "config": BRIDGE_ALONE}).kinds


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"strategy": {"type": "RollingUpdate"}}, "strategy.type must be Recreate"),
        ({"config": {**BRIDGE_ALONE, "immichServerURL": ""}}, "Nothing is left to serve"),
        ({"config": {"workers": 2}}, r"config\.workers above 1.*\n.*config\.backupEnabled=false"),
        ({"config": {"workers": "2"}}, r"config\.workers above 1"),
        (
            {"jwtSecret": {"existingSecret": "tokens", "value": "k" * 32}},
            "jwtSecret.existingSecret or jwtSecret.value, not both",
        ),
        (
            {
                "config": BRIDGE_ALONE,
                "autoscaling": {"enabled": True, "minReplicas": 3, "maxReplicas": 2},
            },
            "minReplicas is above",
        ),
        ({"metrics": {"serviceMonitor": {"enabled": True}}}, "needs metrics.enabled=true"),
        ({"metrics": {"enabled": True, "port": 8080}}, "metrics.port and the port of the server"),
    ],
)
def test_mistakes_are_refused_with_a_reason(
    helm: HelmEngine, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(RefusedError, match=message):
        helm.upgrade(values)


def test_the_default_is_one_pod_with_two_kept_volumes_and_no_way_in(render: Render) -> None:
    release = render("default")
    assert release.kinds == {
        *("ConfigMap", "Deployment", "PersistentVolumeClaim", "Service", "ServiceAccount")
    }
    deployment = release.find("Deployment")["spec"]
    assert deployment["replicas"] == 1
    assert deployment["strategy"] == {"type": "Recreate"}
    assert release.pod["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": 10001,
        "runAsGroup": 10001,
        "fsGroup": 10001,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    for name, size in (("immich-bridge-data", "1Gi"), ("immich-bridge-storage", "100Gi")):
        claim = release.find("PersistentVolumeClaim", name)
        assert claim["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
        assert claim["spec"] == {
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": size}},
        }
    assert release.find("Service")["spec"]["type"] == "ClusterIP"
    assert release.find("ServiceAccount")["automountServiceAccountToken"] is False
    container = release.container
    assert container["startupProbe"]["httpGet"] == {"path": "/health", "port": "http"}
    assert container["livenessProbe"]["httpGet"] == {"path": "/health", "port": "http"}
    assert container["readinessProbe"]["httpGet"] == {"path": "/ready", "port": "http"}


def test_the_bridge_alone_scales_without_a_gap(render: Render) -> None:
    release = render("autoscaled")
    deployment = release.find("Deployment")["spec"]
    # Else every upgrade would undo what the autoscaler chose.
    assert "replicas" not in deployment
    assert deployment["strategy"] == {
        "type": "RollingUpdate",
        "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0},
    }
    assert release.find("HorizontalPodAutoscaler")["spec"] == {
        "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "immich-bridge"},
        "minReplicas": 3,
        "maxReplicas": 20,
        "metrics": [
            {
                "type": "Resource",
                "resource": {
                    "name": name,
                    "target": {"type": "Utilization", "averageUtilization": percent},
                },
            }
            for name, percent in (("cpu", 80), ("memory", 70))
        ],
        "behavior": {"scaleDown": {"stabilizationWindowSeconds": 600}},
    }
    assert release.find("PodDisruptionBudget")["spec"]["maxUnavailable"] == 1


def test_replicas_with_a_budget_and_a_strategy_of_ones_own(render: Render) -> None:
    release = render("three replicas")
    assert release.find("Deployment")["spec"]["replicas"] == 3
    assert release.find("Deployment")["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": "100%"}
    assert release.pod["topologySpreadConstraints"] == [SPREAD]
    budget = release.find("PodDisruptionBudget")["spec"]
    assert budget["minAvailable"] == "50%"
    assert "maxUnavailable" not in budget


def test_claims_of_the_operators_design(render: Render) -> None:
    release = render("backup alone")
    data = release.find("PersistentVolumeClaim", "immich-bridge-data")["spec"]
    assert data["storageClassName"] == "fast"
    storage = release.find("PersistentVolumeClaim", "immich-bridge-storage")
    assert storage["metadata"]["annotations"]["backup"] == "nightly"
    assert storage["spec"] == {
        "accessModes": ["ReadWriteMany"],
        "resources": {"requests": {"storage": "1.5Ti"}},
        "storageClassName": "",
        "volumeName": "photos",
    }
    assert release.environment["IMMICH_SERVER_URL"] == ""


def test_what_exists_is_used_and_not_made(render: Render) -> None:
    release = render("what exists")
    assert release.kinds == {"ConfigMap", "Deployment", "Service"}
    assert release.find("Deployment")["metadata"]["name"] == "photo-bridge"
    assert release.pod["serviceAccountName"] == "photos"
    claims = {
        each["name"]: each["persistentVolumeClaim"]["claimName"]
        for each in release.pod["volumes"]
        if each["name"] != "tmp"
    }
    assert claims == {"data": "bridge-data", "storage": "photos"}
    (variable,) = release.container["env"]
    assert variable["valueFrom"]["secretKeyRef"] == {"name": "tokens", "key": "key"}


def test_volumes_that_end_with_the_pod(render: Render) -> None:
    release = render("nothing kept")
    assert {each["name"] for each in release.pod["volumes"] if "emptyDir" in each} == {
        *("tmp", "data", "storage")
    }
    assert "PersistentVolumeClaim" not in release.kinds


def test_an_ingress_lets_large_bodies_through(render: Render) -> None:
    ingress = render("ingress").find("Ingress")
    prefix = "nginx.ingress.kubernetes.io/"
    annotations = ingress["metadata"]["annotations"]
    assert annotations[f"{prefix}proxy-body-size"] == "0"
    assert annotations[f"{prefix}proxy-request-buffering"] == "off"
    assert float(annotations[f"{prefix}proxy-read-timeout"]) > 300
    assert annotations["cert-manager.io/cluster-issuer"] == "letsencrypt"
    backend = {"service": {"name": "immich-bridge", "port": {"name": "http"}}}

    def rule(host: str, *paths: str) -> dict[str, Any]:
        each = [{"path": path, "pathType": "Prefix", "backend": backend} for path in paths]
        return {"host": host, "http": {"paths": each}}

    assert ingress["spec"] == {
        "ingressClassName": "nginx",
        "rules": [rule("photos.example.com", "/"), rule("other.example.com", "/api", "/health")],
        "tls": [{"secretName": "photos-tls", "hosts": ["photos.example.com"]}],
    }


def test_a_gateway_leads_to_the_service(render: Render) -> None:
    route = render("gateway").find("HTTPRoute")
    wanted = VALUE_SETS["gateway"]["httpRoute"]
    assert route["metadata"]["annotations"] == {"owner": "photos"}
    backends = [{"name": "immich-bridge", "port": 8080}]
    assert route["spec"] == {
        "parentRefs": wanted["parentRefs"],
        "hostnames": ["photos.example.com"],
        "rules": [{**wanted["rules"][0], "backendRefs": backends}, wanted["rules"][1]],
    }


def test_a_load_balancer_shows_the_server_but_never_the_metrics(render: Render) -> None:
    release = render("load balancer")
    service = release.find("Service", "immich-bridge")
    assert service["metadata"]["annotations"] == {"pool": "public"}
    spec = service["spec"]
    assert [port["name"] for port in spec["ports"]] == ["http"]
    assert spec["ports"][0]["port"] == 443
    assert spec["externalTrafficPolicy"] == "Local"
    assert spec["loadBalancerClass"] == "example.com/metal"
    assert spec["loadBalancerSourceRanges"] == ["192.0.2.0/24"]
    assert release.find("Service", "immich-bridge-metrics")["spec"]["type"] == "ClusterIP"


def test_tls_in_the_pod(render: Render) -> None:
    release = render("load balancer")
    assert release.environment["TLS_CERT_FILE"] == "/tls/tls.crt"
    assert release.environment["TLS_KEY_FILE"] == "/tls/tls.key"
    assert {"name": "tls", "secret": {"secretName": "bridge-tls"}} in release.pod["volumes"]
    mount = {"name": "tls", "mountPath": "/tls", "readOnly": True}
    assert mount in release.container["volumeMounts"]
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert release.container[probe]["httpGet"]["scheme"] == "HTTPS"
    (test_pod,) = release.hooks
    (container,) = test_pod["spec"]["containers"]
    assert container["env"] == [{"name": "URL", "value": "https://immich-bridge:443"}]


def test_a_node_port(render: Render) -> None:
    (port,) = render("node port").find("Service")["spec"]["ports"]
    assert port["nodePort"] == 30080


def test_metrics_are_scraped_from_a_service_of_their_own(render: Render) -> None:
    release = render("monitored")
    monitor = release.find("ServiceMonitor")
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    service = release.find("Service", "immich-bridge-metrics")
    selector = monitor["spec"].pop("selector")["matchLabels"]
    assert selector.items() <= service["metadata"]["labels"].items()
    # The public service must not be scraped as well.
    public = release.find("Service", "immich-bridge")["metadata"]["labels"]
    assert not selector.items() <= public.items()
    assert service["spec"]["ports"] == [
        {"name": "metrics", "port": 9100, "targetPort": "metrics", "protocol": "TCP"}
    ]
    assert monitor["spec"] == {
        "endpoints": [
            {
                "port": "metrics",
                "path": "/metrics",
                "interval": "15s",
                "scrapeTimeout": "10s",
                "relabelings": [{"action": "labeldrop", "regex": "pod"}],
                "metricRelabelings": [{"action": "keep", "regex": "immich_.*"}],
            }
        ]
    }


def test_a_network_policy_opens_the_server_to_all_and_the_metrics_to_neighbours(
    render: Render,
) -> None:
    spec = render("monitored").find("NetworkPolicy")["spec"]
    assert spec["policyTypes"] == ["Ingress"]
    assert spec["ingress"] == [
        {"ports": [{"port": "http", "protocol": "TCP"}]},
        {"ports": [{"port": "metrics", "protocol": "TCP"}], "from": [{"podSelector": {}}]},
    ]


def test_a_network_policy_with_named_peers_still_lets_the_test_pod_in(render: Render) -> None:
    release = render("walled in")
    spec = release.find("NetworkPolicy")["spec"]
    assert spec["policyTypes"] == ["Ingress", "Egress"]
    http, metrics = spec["ingress"]
    peer, test_pod = http["from"]
    assert peer == PEER
    labels = release.hooks[0]["metadata"]["labels"]
    assert test_pod["podSelector"]["matchLabels"].items() <= labels.items()
    wanted = VALUE_SETS["walled in"]["networkPolicy"]
    assert metrics["from"] == wanted["metricsFrom"]
    dns, immich = spec["egress"]
    assert {(port["port"], port["protocol"]) for port in dns["ports"]} == {(53, "UDP"), (53, "TCP")}
    assert immich == wanted["egress"][0]


def test_everything_that_can_be_said_of_a_pod_reaches_it(render: Render) -> None:
    release = render("everything of the pod")
    wanted = VALUE_SETS["everything of the pod"]
    deployment = release.find("Deployment")
    assert deployment["metadata"]["annotations"] == wanted["deploymentAnnotations"]
    assert deployment["spec"]["revisionHistoryLimit"] == 2
    template = deployment["spec"]["template"]["metadata"]
    assert template["annotations"]["sidecar"] == "false"
    assert template["labels"]["tier"] == "edge"
    assert template["labels"]["app.kubernetes.io/component"] == "server"
    assert template["labels"]["app.kubernetes.io/name"] == "bridge"
    for each in release.objects + release.hooks:
        assert each["metadata"]["labels"]["team"] == "photos"
    for part in ("imagePullSecrets", "nodeSelector", "tolerations", "affinity"):
        assert release.pod[part] == wanted[part]
    assert release.pod["priorityClassName"] == "important"
    assert wanted["volumes"][0] in release.pod["volumes"]
    assert release.find("ServiceAccount")["metadata"]["annotations"] == {"role": "photos"}
    container = release.container
    assert container["image"] == f"registry.example.com/bridge@sha256:{'0f' * 32}"
    assert wanted["volumeMounts"][0] in container["volumeMounts"]
    assert container["env"] == wanted["extraEnv"]
    assert container["envFrom"][1:] == wanted["extraEnvFrom"]
    assert container["resources"]["limits"] == {"cpu": 2, "memory": "1Gi"}
    assert "startupProbe" not in container
    assert "lifecycle" not in container
    assert container["livenessProbe"]["exec"] == {"command": ["true"]}
    (test_pod,) = release.hooks
    for part in ("imagePullSecrets", "nodeSelector", "tolerations"):
        assert test_pod["spec"][part] == wanted[part]


def test_the_image_is_of_the_charts_version_unless_told(helm: HelmEngine) -> None:
    plain = helm.upgrade({}).container
    assert plain["image"] == f"immich-bridge:{__version__}"
    assert plain["imagePullPolicy"] == "IfNotPresent"
    image = {"repository": "registry.example.com/bridge", "tag": "edge", "pullPolicy": "Always"}
    release = helm.upgrade({"image": image})
    (test_pod,) = release.hooks
    for container in (release.container, *test_pod["spec"]["containers"]):
        assert container["image"] == "registry.example.com/bridge:edge"
        assert container["imagePullPolicy"] == "Always"


def test_user_ids_can_be_left_to_the_cluster(render: Render) -> None:
    context = render("foreign user ids").pod["securityContext"]
    assert "runAsUser" not in context
    assert "runAsGroup" not in context
    assert context["fsGroup"] == 1000680000
