"""Extracts the Kubernetes OpenAPI definitions that infra/kubernetes uses, as JSON.

    python tests/infra/schemas/trim_kubernetes.py _definitions.json > kubernetes.json

``_definitions.json`` is the strict set of one version, as shipped by the package
kubernetes-validate (``kubernetes-json-schema/v1.35.0-local-strict``). Descriptions are dropped.
"""

import json
import sys
from pathlib import Path
from typing import Any

KINDS = (
    "io.k8s.api.apps.v1.Deployment",
    "io.k8s.api.core.v1.Namespace",
    "io.k8s.api.core.v1.PersistentVolumeClaim",
    "io.k8s.api.core.v1.PodTemplateSpec",
    "io.k8s.api.core.v1.Service",
    "io.k8s.api.core.v1.ServiceAccount",
    "io.k8s.api.networking.v1.NetworkPolicy",
)
PREFIX = "#/definitions/"


def _refer(node: Any, found: set[str]) -> Any:
    """The node without descriptions, its references made local; adds their targets to ``found``."""
    if isinstance(node, list):
        return [_refer(each, found) for each in node]
    if not isinstance(node, dict):
        return node
    kept = {}
    for key, value in node.items():
        if key == "description" and isinstance(value, str):
            continue
        if key.startswith("x-kubernetes"):
            continue
        if key == "$ref":
            name = str(value).rpartition("/")[2]
            found.add(name)
            kept[key] = PREFIX + name
        else:
            kept[key] = _refer(value, found)
    return kept


def trim(definitions: dict[str, Any]) -> dict[str, Any]:
    """The definitions of KINDS, and of everything they refer to."""
    kept: dict[str, Any] = {}
    todo = set(KINDS)
    while todo:
        name = todo.pop()
        found: set[str] = set()
        kept[name] = _refer(definitions[name], found)
        todo |= found - kept.keys()
    return {"definitions": dict(sorted(kept.items()))}


if __name__ == "__main__":
    source = json.loads(Path(sys.argv[1]).read_text())
    sys.stdout.write(json.dumps(trim(source["$defs"]), separators=(",", ":")) + "\n")
