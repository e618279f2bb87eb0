"""Dockerfile, compose file, Helm chart and systemd unit: what the tools say of them, and what they must never lose."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import helm_python
import helm_python.chart
import kubernetes_validate
import pytest
import yaml

from remote_vae.deploy.ray_serve import DEPLOYMENT
from remote_vae.server.settings import Settings, read_settings

DEPLOY = Path(__file__).parent.parent.parent / "deploy"
CHART = DEPLOY / "helm" / "remote-vae"
KUBERNETES = "1.33"
IMAGE = {"image": {"repository": "registry.example/remote-vae", "tag": "cuda"}}
PLAIN: dict[str, Any] = {**IMAGE, "allowAnonymous": True}
GUARDED: dict[str, Any] = {
    **IMAGE,
    "keysSecret": "keys",
    "cacheClaim": "weights",
    "offline": True,
    "settings": {"max_body_bytes": 33554432},
    "serviceMonitor": {"enabled": True},
}
ON_RAY: dict[str, Any] = {
    **IMAGE,
    "mode": "rayservice",
    "keysSecret": "keys",
    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
    "network": {"egress": [{"to": [{"ipBlock": {"cidr": "0.0.0.0/0"}}], "ports": [{"port": 443, "protocol": "TCP"}]}]},
}
VARIANTS = pytest.mark.parametrize("values", [PLAIN, GUARDED, ON_RAY], ids=["plain", "guarded", "on ray"])


def render(values: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The objects of the chart by kind."""
    with helm_python.chart.Chart.load(CHART) as chart:
        files = chart.render(values=values, name="demo", namespace="vae")
    texts = [text for name, text in files.items() if name.endswith(".yaml")]
    return {found["kind"]: found for text in texts for found in yaml.safe_load_all(text) if found}


def pods(objects: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    if "Deployment" in objects:
        return [objects["Deployment"]["spec"]["template"]["spec"]]
    cluster = objects["RayService"]["spec"]["rayClusterConfig"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups]


def test_hadolint() -> None:
    """hadolint finds nothing in the Dockerfile."""
    command = [str(Path(sys.executable).with_name("hadolint")), str(DEPLOY / "docker" / "Dockerfile")]
    checked = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (checked.returncode, checked.stdout) == (0, "")


def test_the_image() -> None:
    """Every image runs as a user who is not root, and every package that is installed is checked against its hash."""
    lines = (DEPLOY / "docker" / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    installs = [line for line in lines if "pip install" in line]
    assert all("--require-hashes" in line or "--no-deps --no-index" in line for line in installs)
    runtime = lines.index("FROM ${PYTHON_IMAGE} AS runtime")
    assert "USER 10001:10001" in lines[runtime:]
    stages = "\n".join(lines[runtime:]).split("\nFROM ")
    assert [stage.split()[0] for stage in stages[1:]] == [
        "runtime",
        "runtime",
        "runtime-cuda",
        "runtime",
        "runtime-cuda",
    ]
    for stage in stages:
        users = [line for line in stage.splitlines() if line.startswith("USER")]
        assert users[-1:] in ([], ["USER 10001:10001"])
    for line in lines:
        if line.startswith("COPY deploy/requirements/"):
            assert (DEPLOY.parent / line.split()[1]).is_file()


def test_triton_has_what_it_needs() -> None:
    """Images for GPUs have a C compiler, and a place from which the kernels that Triton compiles can be loaded."""
    cuda = (DEPLOY / "docker" / "Dockerfile").read_text().split(" AS runtime-cuda\n")[1].split("\nFROM ")[0]
    assert "gcc libc6-dev" in cuda
    assert "TRITON_CACHE_DIR=/cache/" in cuda
    compose = yaml.safe_load((DEPLOY / "docker" / "compose.yaml").read_text())["services"]["cuda"]
    assert "cache:/cache" in compose["volumes"]
    assert "TRITON_CACHE_DIR=%C/remote-vae/" in (DEPLOY / "systemd" / "remote-vae.service").read_text()


def test_compose() -> None:
    """Every service is read-only, without capabilities or new privileges, bounded, on loopback and behind keys."""
    found = yaml.safe_load((DEPLOY / "docker" / "compose.yaml").read_text())
    targets = (DEPLOY / "docker" / "Dockerfile").read_text()
    for service in found["services"].values():
        assert service["read_only"] is True
        assert (service["cap_drop"], service["security_opt"]) == (["ALL"], ["no-new-privileges:true"])
        assert service["user"] == "10001:10001"
        assert service["mem_limit"]
        assert service["pids_limit"]
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        assert service["environment"]["REMOTE_VAE_KEYS_FILE"].startswith("/run/secrets/")
        assert f" AS {service['build']['target']}\n" in targets
        settings = [name for name in service["environment"] if name.startswith("REMOTE_VAE_")]
        assert {name.removeprefix("REMOTE_VAE_").lower() for name in settings} <= set(Settings.model_fields)


@VARIANTS
def test_helm_finds_no_fault(values: dict[str, Any]) -> None:
    """Helm's own linter is content, warnings included, but for the icon that the chart does without."""
    report = helm_python.chart.lint(CHART, values=values, strict=True)
    assert report["errors"] == []
    assert [item["error"] for item in report["messages"]] == ["icon is recommended"]


@VARIANTS
def test_kubernetes_takes_the_objects(values: dict[str, Any]) -> None:
    """Every object of Kubernetes' own kinds meets its schema, with no field that the schema does not know."""
    objects = render(values)
    known = {kind: found for kind, found in objects.items() if kind not in ("RayService", "ServiceMonitor")}
    assert {"Service", "ServiceAccount", "NetworkPolicy", "PodDisruptionBudget"} <= set(known)
    for found in known.values():
        kubernetes_validate.validate(found, KUBERNETES, strict=True)
    for pod in pods(objects):  # inside a RayService too
        template = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "demo"}, "spec": pod}
        kubernetes_validate.validate(template, KUBERNETES, strict=True)


@VARIANTS
def test_every_pod_is_confined(values: dict[str, Any]) -> None:
    """No pod runs as root, writes to its root filesystem, keeps a capability or has no memory limit; all are probed."""
    for pod in pods(render(values)):
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"] is True
            assert context["allowPrivilegeEscalation"] is False
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["limits"]["memory"]
            assert container["readinessProbe"]
            assert container["livenessProbe"]
            assert "/tmp" in [mount["mountPath"] for mount in container["volumeMounts"]]


@VARIANTS
def test_nothing_goes_out(values: dict[str, Any]) -> None:
    """Both directions are closed but for the service, name service, Ray among itself, and what the operator opened."""
    policy = render(values)["NetworkPolicy"]["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    opened = values.get("network", {}).get("egress", [])
    away = [rule for rule in policy["egress"] if any("ipBlock" in peer for peer in rule["to"])]
    assert away == opened
    assert all(rule.get("from") for rule in policy["ingress"])


def test_a_pod_leaves_in_order() -> None:
    """A pod's address goes before its server stops, and the server has its time before it is killed."""
    pod = pods(render(PLAIN))[0]
    drain = int(pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][1])
    environment = {item["name"]: item["value"] for item in pod["containers"][0]["env"]}
    assert drain > 0
    assert pod["terminationGracePeriodSeconds"] >= drain + int(environment["REMOTE_VAE_SHUTDOWN_SECONDS"])


@VARIANTS
def test_every_setting_exists(values: dict[str, Any]) -> None:
    """What the chart sets is a setting of the server."""
    for pod in pods(render(values)):
        names = [item["name"] for item in pod["containers"][0]["env"] if item["name"].startswith("REMOTE_VAE_")]
        assert {name.removeprefix("REMOTE_VAE_").lower() for name in names} <= set(Settings.model_fields)


def test_what_ray_is_given() -> None:
    """The Serve configuration names our application and deployment, and Ray's own API asks for a token."""
    spec = render(ON_RAY)["RayService"]["spec"]
    serve = yaml.safe_load(spec["serveConfigV2"])
    application = serve["applications"][0]
    module, _, name = application["import_path"].partition(":")
    assert callable(getattr(__import__(module, fromlist=[name]), name))
    assert application["deployments"][0]["name"] == DEPLOYMENT
    assert set(application["args"]) <= set(Settings.model_fields)
    assert spec["rayClusterConfig"]["authOptions"] == {"mode": "token"}


@pytest.mark.parametrize(
    ("values", "origins"),
    [
        (PLAIN, "http://demo.vae http://demo.vae.svc"),
        (
            {**PLAIN, "settings": {"cors_origins": "https://a.example"}},
            "http://demo.vae http://demo.vae.svc https://a.example",
        ),
        (GUARDED, None),
        ({**GUARDED, "settings": {"cors_origins": "https://a.example"}}, "https://a.example"),
    ],
)
def test_the_names_of_the_service(values: dict[str, Any], origins: str | None) -> None:
    """Without keys the server knows the names that clients in the cluster ask it by, besides what the settings name."""
    [container] = pods(render(values))[0]["containers"]
    found = [item["value"] for item in container["env"] if item["name"] == "REMOTE_VAE_CORS_ORIGINS"]
    assert found == ([origins] if origins else [])
    assert read_settings({"cors_origins": origins or ""}).cors_origins == tuple((origins or "").split())


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({}, "say allowAnonymous: true"),
        ({**PLAIN, "image": {"repository": "remote-vae"}}, "give image.repository"),
        ({**PLAIN, "colour": "red"}, "additional properties 'colour' not allowed"),
        ({**PLAIN, "offline": True}, "offline: true needs cacheClaim"),
        ({**PLAIN, "mode": "swarm"}, "must be one of 'deployment', 'rayservice'"),
        ({**PLAIN, "replicas": 0}, "minimum"),
    ],
)
def test_values_that_cannot_be(values: dict[str, Any], text: str) -> None:
    """Values that cannot be are refused when the chart is rendered."""
    with pytest.raises(helm_python.HelmError, match=text):
        render(values)


def test_the_unit() -> None:
    """The systemd unit confines the server, gives it its keys as a credential, and waits for accepted work."""
    lines = (DEPLOY / "systemd" / "remote-vae.service").read_text().splitlines()
    for line in ("DynamicUser=yes", "ProtectSystem=strict", "NoNewPrivileges=yes", "CapabilityBoundingSet="):
        assert line in lines
    assert "LoadCredential=keys:/etc/remote-vae/keys" in lines
    assert "Environment=REMOTE_VAE_KEYS_FILE=%d/keys" in lines
    stop = next(int(line.partition("=")[2]) for line in lines if line.startswith("TimeoutStopSec="))
    assert stop > Settings.model_fields["shutdown_seconds"].default
