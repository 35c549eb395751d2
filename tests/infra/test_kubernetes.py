"""infra/kubernetes: valid by its schemas, builds with kubectl, and restricts access."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.infra.files import INFRA, SECRET, documents, faults, leaves, run, validator

FOLDER = INFRA / "kubernetes"
DEFINITIONS = {
    "Deployment": "io.k8s.api.apps.v1.Deployment",
    "Namespace": "io.k8s.api.core.v1.Namespace",
    "NetworkPolicy": "io.k8s.api.networking.v1.NetworkPolicy",
    "PersistentVolumeClaim": "io.k8s.api.core.v1.PersistentVolumeClaim",
    "Service": "io.k8s.api.core.v1.Service",
    "ServiceAccount": "io.k8s.api.core.v1.ServiceAccount",
}
PART = {"app.kubernetes.io/part-of": "colorcore"}
MANIFESTS = [
    (path, document)
    for path in sorted(FOLDER.rglob("*.yaml"))
    if path.name != "kustomization.yaml"
    for document in documents(path)
]


def check(document: dict[str, Any]) -> list[str]:
    kind = document["kind"]
    if document["apiVersion"] == "ray.io/v1":
        return faults(validator("kuberay.json", kind), document)
    return faults(validator("kubernetes-1.35.json", DEFINITIONS[kind]), document)


def one(kind: str, name: str = "") -> dict[str, Any]:
    (found,) = (
        document
        for _, document in MANIFESTS
        if document["kind"] == kind and name in document["metadata"].get("name", "")
    )
    return found


def pods(node: Any) -> Iterator[dict[str, Any]]:
    """Every pod template (anything with containers) below a node, including its labels."""
    if isinstance(node, dict):
        if "containers" in node.get("spec", {}):
            yield node
        for value in node.values():
            yield from pods(value)
    elif isinstance(node, list):
        for value in node:
            yield from pods(value)


PODS = [(path.name, pod) for path, document in MANIFESTS for pod in pods(document)]


@pytest.mark.parametrize(
    ("path", "document"), MANIFESTS, ids=[f"{p.name}-{d['kind']}" for p, d in MANIFESTS]
)
def test_it_is_valid_by_its_schema(path: Path, document: dict[str, Any]) -> None:
    assert check(document) == []


@pytest.mark.parametrize(
    "change",
    [
        lambda it: it["spec"].update(rayversion="2.60.0"),
        lambda it: it["spec"]["authOptions"].update(mode="tokens"),
        lambda it: it["spec"]["headGroupSpec"]["rayStartParams"].update({"num-cpus": 0}),
        lambda it: it["spec"]["workerGroupSpecs"][0]["template"]["spec"].update(container=[]),
        lambda it: it["spec"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0][
            "volumeMounts"
        ][0].update(path="/x"),
    ],
)
def test_the_check_sees_what_is_misspelt(change: Any) -> None:
    document = yaml.safe_load(yaml.safe_dump(one("RayCluster")))
    change(document)
    assert check(document)


def test_all_manifests_of_the_base_are_in_its_kustomization_and_none_else() -> None:
    (kustomization,) = documents(FOLDER / "base" / "kustomization.yaml")
    there = {path.name for path in (FOLDER / "base").glob("*.yaml")} - {"kustomization.yaml"}
    assert set(kustomization["resources"]) == there
    used = {container["image"] for name, pod in PODS for container in pod["spec"]["containers"]
            if name != "rayjob.yaml"}  # fmt: skip
    assert used == {image["name"] for image in kustomization["images"]}


@pytest.mark.parametrize("overlay", ["base", "gpu"])
def test_kubectl_puts_it_together(overlay: str) -> None:
    if shutil.which("kubectl") is None:
        # PyPI has no kubectl, and Debian 12's (1.20) cannot read the gpu overlay's patch, so
        # .ci/run does not install it.
        pytest.skip("kubectl is not installed")
    answer = run("kubectl", "kustomize", FOLDER / overlay)
    assert answer.returncode == 0, answer.stderr
    together = [document for document in yaml.safe_load_all(answer.stdout) if document]
    assert [fault for document in together for fault in check(document)] == []
    (cluster,) = (each for each in together if each["kind"] == "RayCluster")
    cpu, gpu = cluster["spec"]["workerGroupSpecs"]
    assert (cpu["minReplicas"], gpu["minReplicas"]) == ((2, 0) if overlay == "base" else (0, 2))
    images = re.findall(r"image: (\S+)", answer.stdout)
    assert images
    assert all(image.startswith("registry.example.com/colorcore:") for image in images)


def test_the_gpu_overlay_changes_the_groups_it_means() -> None:
    """The same check without kubectl: the `test` steps of the patch hold for the base."""
    (kustomization,) = documents(FOLDER / "gpu" / "kustomization.yaml")
    groups = one("RayCluster")["spec"]["workerGroupSpecs"]
    (patch,) = kustomization["patches"]
    for step in yaml.safe_load(patch["patch"]):
        index, field = step["path"].removeprefix("/spec/workerGroupSpecs/").split("/")
        assert field in groups[int(index)]
        if step["op"] == "test":
            assert groups[int(index)][field] == step["value"]


def test_clusters_ask_for_a_token_which_nobody_wrote_down() -> None:
    clusters = [one("RayCluster")["spec"], one("RayJob")["spec"]["rayClusterSpec"]]
    for cluster in clusters:
        assert cluster["authOptions"] == {"mode": "token"}
        assert tuple(map(int, cluster["rayVersion"].split("."))) >= (2, 52, 0)
    assert not [document for _, document in MANIFESTS if document["kind"] == "Secret"]
    for _, document in MANIFESTS:
        for path, value in leaves(document):
            assert not re.search(r"[0-9a-f]{24,}|://[^/@]*:[^/@]+@", str(value)), path
    for _, pod in PODS:
        for container in pod["spec"]["containers"]:
            for variable in container.get("env", ()):
                if SECRET.search(variable["name"]):
                    assert variable["value"].startswith("/run/secrets/"), variable


def test_heads_serve_clients_of_ray_without_grpcs_acts_on_forks() -> None:
    """Else the process that serves ray:// crashes when it starts a client's process."""
    heads = [pod for _, pod in PODS if pod["spec"]["containers"][0]["name"] == "ray-head"]
    assert len(heads) == 2
    for pod in heads:
        variables = {each["name"]: each["value"] for each in pod["spec"]["containers"][0]["env"]}
        assert variables["GRPC_ENABLE_FORK_SUPPORT"] == "0"


def test_pods_are_no_root_and_have_no_rights_to_spare() -> None:
    assert len(PODS) == 7
    for name, pod in PODS:
        spec = pod["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True, name
        assert spec["securityContext"]["runAsUser"] == 1000
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
        for container in spec["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    enforced = one("Namespace")["metadata"]["labels"]["pod-security.kubernetes.io/enforce"]
    assert enforced == "restricted"


def test_only_the_head_that_scales_may_ask_kubernetes() -> None:
    assert one("ServiceAccount")["automountServiceAccountToken"] is False
    allowed = [
        pod["spec"]["containers"][0]["name"]
        for _, pod in PODS
        if pod["spec"].get("automountServiceAccountToken") is not False
    ]
    assert allowed == ["ray-head"]
    head = one("RayCluster")["spec"]["headGroupSpec"]["template"]["spec"]
    assert head["automountServiceAccountToken"] is True


def test_every_container_says_what_it_needs() -> None:
    for name, pod in PODS:
        for container in pod["spec"]["containers"]:
            resources = container["resources"]
            assert {"cpu", "memory"} <= resources["requests"].keys(), name
            assert "memory" in resources["limits"]
            gpu = resources["requests"].get("nvidia.com/gpu")
            assert gpu == resources["limits"].get("nvidia.com/gpu")
            assert (gpu is not None) == container["image"].endswith("-cuda")
            if gpu:
                assert pod["spec"]["tolerations"][0]["key"] == "nvidia.com/gpu"


def test_nothing_reaches_the_pods_but_each_other_and_the_operator() -> None:
    inside = one("NetworkPolicy", "inside")["spec"]
    assert inside["podSelector"] == {}
    assert inside["policyTypes"] == ["Ingress"]
    assert inside["ingress"] == [{"from": [{"podSelector": {"matchLabels": PART}}]}]
    (rule,) = one("NetworkPolicy", "operator")["spec"]["ingress"]
    assert rule["ports"] == [{"protocol": "TCP", "port": 8265}]
    for name, pod in PODS:  # otherwise the policy would cut off our own pods
        assert PART.items() <= pod["metadata"]["labels"].items(), name
    services = [document for _, document in MANIFESTS if document["kind"] == "Service"]
    assert {service["spec"]["type"] for service in services} == {"ClusterIP"}
    assert one("RayCluster")["spec"]["headGroupSpec"]["serviceType"] == "ClusterIP"


def test_volumes_are_declared_and_mounted_by_their_names() -> None:
    claims = {one("PersistentVolumeClaim")["metadata"]["name"]}
    for name, pod in PODS:
        volumes = {volume["name"]: volume for volume in pod["spec"].get("volumes", ())}
        mounted = {
            mount["name"]
            for container in pod["spec"]["containers"]
            for mount in container.get("volumeMounts", ())
        }
        assert mounted == volumes.keys(), name
        for volume in volumes.values():
            if claim := volume.get("persistentVolumeClaim"):
                assert claim["claimName"] in claims


def test_mlflows_service_reaches_its_pods() -> None:
    service, deployment = one("Service")["spec"], one("Deployment")["spec"]
    labels = deployment["template"]["metadata"]["labels"]
    assert service["selector"].items() <= labels.items()
    assert deployment["selector"]["matchLabels"] == service["selector"]
    (container,) = deployment["template"]["spec"]["containers"]
    assert container["ports"][0]["name"] == service["ports"][0]["targetPort"]
    address = next(
        variable["value"]
        for variable in one("RayCluster")["spec"]["headGroupSpec"]["template"]["spec"][
            "containers"
        ][0]["env"]
        if variable["name"] == "MLFLOW_TRACKING_URI"
    )
    assert address == f"http://{one('Service')['metadata']['name']}:{service['ports'][0]['port']}"


def test_the_job_goes_on_after_a_failure_and_takes_its_cluster_along() -> None:
    spec = one("RayJob")["spec"]
    assert shlex.split(spec["entrypoint"])[:3] == ["go-on", "cc", "train"]
    assert spec["backoffLimit"] > 0
    assert spec["shutdownAfterJobFinishes"] is True
    assert "name" not in one("RayJob")["metadata"]  # so that each `kubectl create` starts a new job
