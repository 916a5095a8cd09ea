"""Values as operators would write them, each set for one way to run the chart."""

from typing import Any, Final

PEER: Final = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "ingress"}}}
SPREAD: Final = {
    "maxSkew": 1,
    "topologyKey": "kubernetes.io/hostname",
    "whenUnsatisfiable": "ScheduleAnyway",
    "labelSelector": {"matchLabels": {"app.kubernetes.io/component": "server"}},
}

BRIDGE_ALONE: Final = {"backupEnabled": False}

VALUE_SETS: Final[dict[str, dict[str, Any]]] = {
    "default": {},
    "bridge alone": {"config": BRIDGE_ALONE},
    "backup alone": {
        "config": {"immichServerURL": ""},
        "jwtSecret": {"value": "a key of the operator's own, in his values"},
        "persistence": {
            "data": {"storageClass": "fast", "size": "2Gi"},
            "storage": {
                "storageClass": "-",
                "volumeName": "photos",
                "accessModes": ["ReadWriteMany"],
                "size": "1.5Ti",
                "annotations": {"backup": "nightly"},
            },
        },
    },
    "three replicas": {
        "replicaCount": 3,
        "config": BRIDGE_ALONE,
        "podDisruptionBudget": {"enabled": True, "minAvailable": "50%"},
        "topologySpreadConstraints": [SPREAD],
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "100%"}},
    },
    "autoscaled": {
        "config": {**BRIDGE_ALONE, "rateLimitStorage": "redis://redis:6379"},
        "autoscaling": {
            "enabled": True,
            "minReplicas": 3,
            "maxReplicas": 20,
            "targetMemoryUtilizationPercentage": 70,
            "behavior": {"scaleDown": {"stabilizationWindowSeconds": 600}},
        },
        "podDisruptionBudget": {"enabled": True},
    },
    "what exists": {
        "jwtSecret": {"existingSecret": "tokens", "existingSecretKey": "key"},
        "persistence": {
            "data": {"existingClaim": "bridge-data"},
            "storage": {"existingClaim": "photos"},
        },
        "serviceAccount": {"create": False, "name": "photos"},
        "fullnameOverride": "photo-bridge",
    },
    "nothing kept": {"persistence": {"data": {"enabled": False}, "storage": {"enabled": False}}},
    "ingress": {
        "config": {"trustedProxies": ["10.0.0.0/8", "fd00::/8"]},
        "ingress": {
            "enabled": True,
            "className": "nginx",
            "annotations": {"cert-manager.io/cluster-issuer": "letsencrypt"},
            "hosts": [
                {"host": "photos.example.com", "paths": [{"path": "/", "pathType": "Prefix"}]},
                {"host": "other.example.com", "paths": [{"path": "/api"}, {"path": "/health"}]},
            ],
            "tls": [{"secretName": "photos-tls", "hosts": ["photos.example.com"]}],
        },
    },
    "gateway": {
        "httpRoute": {
            "enabled": True,
            "annotations": {"owner": "photos"},
            "parentRefs": [{"name": "gateway", "namespace": "infra", "sectionName": "https"}],
            "hostnames": ["photos.example.com"],
            "rules": [
                {
                    "matches": [{"path": {"type": "PathPrefix", "value": "/"}}],
                    "timeouts": {"request": "0s"},
                },
                {
                    "matches": [{"path": {"type": "Exact", "value": "/old"}}],
                    "filters": [
                        {"type": "RequestRedirect", "requestRedirect": {"statusCode": 301}}
                    ],
                    "backendRefs": [],
                },
            ],
        },
    },
    "load balancer": {
        "service": {
            "type": "LoadBalancer",
            "port": 443,
            "externalTrafficPolicy": "Local",
            "loadBalancerClass": "example.com/metal",
            "loadBalancerSourceRanges": ["192.0.2.0/24"],
            "annotations": {"pool": "public"},
        },
        "config": {"port": 8443},
        "tls": {"existingSecret": "bridge-tls"},
        "metrics": {"enabled": True},
    },
    "node port": {"service": {"type": "NodePort", "nodePort": 30080}},
    "monitored": {
        "metrics": {
            "enabled": True,
            "port": 9100,
            "serviceMonitor": {
                "enabled": True,
                "labels": {"release": "prometheus"},
                "interval": "15s",
                "relabelings": [{"action": "labeldrop", "regex": "pod"}],
                "metricRelabelings": [{"action": "keep", "regex": "immich_.*"}],
            },
        },
        "networkPolicy": {"enabled": True},
    },
    "walled in": {
        "metrics": {"enabled": True},
        "networkPolicy": {
            "enabled": True,
            "from": [PEER],
            "metricsFrom": [{"podSelector": {"matchLabels": {"app": "prometheus"}}}],
            "egress": [
                {
                    "to": [{"podSelector": {"matchLabels": {"app": "immich"}}}],
                    "ports": [{"port": 2283, "protocol": "TCP"}],
                }
            ],
        },
    },
    "everything of the pod": {
        "image": {"repository": "registry.example.com/bridge", "digest": f"sha256:{'0f' * 32}"},
        "imagePullSecrets": [{"name": "registry"}],
        "nameOverride": "bridge",
        "commonLabels": {"team": "photos"},
        "config": {"immichCAFile": "/ca/ca.crt", "immichServerURL": "https://immich/prefix"},
        "extraEnv": [
            {
                "name": "RATE_LIMIT_STORAGE",
                "valueFrom": {"secretKeyRef": {"name": "redis", "key": "url"}},
            }
        ],
        "extraEnvFrom": [{"secretRef": {"name": "more", "optional": True}}],
        "serviceAccount": {"annotations": {"role": "photos"}},
        "deploymentAnnotations": {"reloader": "true"},
        "podAnnotations": {"sidecar": "false"},
        # The chart's own labels are what its selectors live by.
        "podLabels": {"tier": "edge", "app.kubernetes.io/component": "not this"},
        "resources": {"limits": {"cpu": 2, "memory": "1Gi"}},
        "startupProbe": None,
        "livenessProbe": {"exec": {"command": ["true"]}, "httpGet": None},
        "preStopSeconds": 0,
        "revisionHistoryLimit": 2,
        "volumes": [{"name": "ca", "configMap": {"name": "internal-ca"}}],
        "volumeMounts": [{"name": "ca", "mountPath": "/ca", "readOnly": True}],
        "nodeSelector": {"disk": "large"},
        "tolerations": [{"key": "photos", "operator": "Exists"}],
        "affinity": {
            "nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {
                    "nodeSelectorTerms": [
                        {"matchExpressions": [{"key": "disk", "operator": "Exists"}]}
                    ]
                }
            }
        },
        "priorityClassName": "important",
    },
    "foreign user ids": {
        "podSecurityContext": {"runAsUser": None, "runAsGroup": None, "fsGroup": 1000680000},
        "config": {"tokenTTL": None, "shutdownGrace": None, "listenAddr": None},
    },
    "long name": {"fullnameOverride": "a-name-" + "that-goes-on-" * 5, "nameOverride": "n" * 70},
}
