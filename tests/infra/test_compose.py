"""The compose files: valid by the specification's schema, with safe ports and secrets."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from tests.infra.files import (
    INFRA,
    NAMES_A_FILE,
    ROOT,
    SECRET,
    documents,
    faults,
    leaves,
    ray_start_options,
    run,
    validator,
)

FOLDER = INFRA / "compose"
VARIABLE = re.compile(r"\$\{(\w+)(?::?-([^}]*))?\}")
ROLES = {"head", "worker", "mlflow", "buckets", "job"}


def settings() -> dict[str, str]:
    lines = (FOLDER / ".env.example").read_text().splitlines()
    pairs = (line.partition("=") for line in lines if line and not line.startswith("#"))
    return {name: value for name, _, value in pairs}


def filled_in(node: Any, values: dict[str, str]) -> Any:
    """The document with ``${NAME:-default}`` substituted as compose does."""
    if isinstance(node, dict):
        return {key: filled_in(value, values) for key, value in node.items()}
    if isinstance(node, list):
        return [filled_in(each, values) for each in node]
    if isinstance(node, str):
        return VARIABLE.sub(lambda match: values.get(match[1], match[2] or ""), node)
    return node


(RAW,) = documents(FOLDER / "compose.yaml")
COMPOSE = filled_in(RAW, {})
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {name: each for name, each in SERVICES.items() if each["image"].startswith("colorcore")}


@pytest.mark.parametrize("name", ["compose.yaml", "compose.gpu.yaml"])
def test_it_is_valid_by_the_specification(name: str) -> None:
    (document,) = documents(FOLDER / name)
    assert faults(validator("compose-spec.json"), document) == []
    assert faults(validator("compose-spec.json"), filled_in(document, settings())) == []


def test_the_check_sees_a_misspelt_key() -> None:
    document = {"services": {"one": {"image": "a:1", "prots": ["1:1"]}}}
    assert faults(validator("compose-spec.json"), document)


def test_the_pieces_that_were_asked_for_are_there() -> None:
    assert {"head", "worker", "mlflow", "postgres", "s3", "buckets", "job"} == set(SERVICES)


def test_everything_published_is_published_on_loopback() -> None:
    ports = [port for each in SERVICES.values() for port in each.get("ports", ())]
    assert len(ports) == 4
    assert all(re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port) for port in ports)
    assert not [name for name, each in SERVICES.items() if each.get("network_mode")]


def test_settings_and_variables_are_the_same_and_defaults_too() -> None:
    used = VARIABLE.findall((FOLDER / "compose.yaml").read_text())
    used += VARIABLE.findall((FOLDER / "compose.gpu.yaml").read_text())
    assert {name for name, _ in used} == set(settings())
    assert {(name, default) for name, default in used} == set(settings().items())


def test_no_secret_is_in_an_environment_or_a_file_that_is_tracked() -> None:
    seen = 0
    for name, service in SERVICES.items():
        for variable, value in service.get("environment", {}).items():
            seen += 1
            if SECRET.search(variable):
                assert NAMES_A_FILE.search(variable) or variable == "AWS_SHARED_CREDENTIALS_FILE"
                assert str(value).startswith("/run/secrets/"), (name, variable)
            assert not re.search(r"://[^/@]*:[^/@]*@", str(value)), (name, variable)
    assert seen > 20
    for path, value in leaves(RAW):
        assert not re.search(r"[0-9a-f]{20,}", str(value)), path
    assert not [value for name, value in settings().items() if SECRET.search(name)]


def test_every_secret_is_a_file_that_the_script_makes(tmp_path: Path) -> None:
    assert run(INFRA / "make-secrets.sh", tmp_path).returncode == 0
    made = {path.name for path in tmp_path.iterdir()}
    declared = {name: each["file"] for name, each in COMPOSE["secrets"].items()}
    assert all(file == f"./secrets/{name}" for name, file in declared.items())
    assert set(declared) == made


def names_of(secrets: list[Any]) -> set[str]:
    return {each if isinstance(each, str) else each["source"] for each in secrets}


def test_secrets_go_to_those_who_need_them_alone() -> None:
    holders = {name: names_of(each.get("secrets", [])) for name, each in SERVICES.items()}
    declared = set(COMPOSE["secrets"])
    assert set().union(*holders.values()) == declared
    for service, held in holders.items():
        named = {Path(str(value)).name for path, value in leaves(SERVICES[service])
                 if str(value).rpartition("=")[2].startswith("/run/secrets/")}  # fmt: skip
        assert named <= held, service
        assert held - named <= {"mlflow-credentials"}, service
    assert [name for name, held in holders.items() if "ray-token" in held] == [
        "head",
        "worker",
        "job",
    ]
    assert [name for name, held in holders.items() if "pgpass" in held] == ["mlflow"]


def test_postgresql_is_reached_by_mlflow_alone() -> None:
    assert COMPOSE["networks"]["store"]["internal"] is True
    on_store = {name for name, each in SERVICES.items() if "store" in each["networks"]}
    assert on_store == {"postgres", "s3", "buckets", "mlflow"}
    assert SERVICES["postgres"]["networks"] == ["store"]
    assert "ports" not in SERVICES["postgres"]


def test_the_s3_stores_own_parts_stay_on_its_loopback() -> None:
    """Its master, volume and filer servers require no password."""
    command = SERVICES["s3"]["command"]
    assert {"-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3.ip.bind=0.0.0.0"} <= set(command)
    assert "-s3.config=/run/secrets/s3.json" in command


def test_our_containers_have_no_rights_to_spare() -> None:
    assert set(OURS) == ROLES
    for name, service in OURS.items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert re.fullmatch(r"[1-9]\d*:0", service["user"]), name
        assert not service.get("privileged")


def test_every_service_has_a_health_check_and_waits_for_healthy_ones() -> None:
    image_has_one = "HEALTHCHECK" in (INFRA / "docker" / "Dockerfile").read_text()
    for name, service in SERVICES.items():
        ends = name in ("buckets", "job")  # these run once and exit
        assert ends == bool(service.get("healthcheck", {}).get("disable"))
        assert ends or service.get("healthcheck") or (image_has_one and name in OURS)
        for other, how in service.get("depends_on", {}).items():
            once = other == "buckets"
            wanted = "service_completed_successfully" if once else "service_healthy"
            assert how["condition"] == wanted, (name, other)


def test_named_volumes_hold_what_must_stay() -> None:
    mounted = {
        volume.partition(":")[0]
        for service in SERVICES.values()
        for volume in service.get("volumes", ())
    }
    assert set(COMPOSE["volumes"]) == {"postgres", "s3", "models"} == mounted - {"./photos"}
    # Since PostgreSQL 18, the image keeps its data below this folder.
    assert SERVICES["postgres"]["volumes"] == ["postgres:/var/lib/postgresql"]


@pytest.mark.parametrize("name", sorted(ROLES))
def test_the_entry_point_takes_each_command_with_its_environment(name: str) -> None:
    service = OURS[name]
    command = service.get("command") or ["job", "cc", "recipes"]
    env = {key: str(value) for key, value in service["environment"].items()}
    answer = run(
        INFRA / "docker" / "entrypoint.sh", "--dry-run", *command,
        env={"PATH": os.environ["PATH"], "RAY_AUTH_MODE": "token", **env},
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    words = shlex.split(answer.stdout)
    if name in ("head", "worker"):
        options = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert options <= ray_start_options()
    assert {"job": "submit", "mlflow": "server", "buckets": "python"}.get(name, "start") in words


def test_the_image_is_built_from_the_dockerfile_that_is_there() -> None:
    for service in OURS.values():
        build = service["build"]
        context = (FOLDER / build["context"]).resolve()
        assert context == ROOT
        assert (context / build["dockerfile"]).is_file()
        assert service["image"].endswith("-" + build["args"]["DEVICE"])


def test_with_gpus_one_worker_has_them_all() -> None:
    (gpu,) = documents(FOLDER / "compose.gpu.yaml")
    gpu = filled_in(gpu, {})
    assert set(gpu["services"]) <= set(SERVICES)
    worker = gpu["services"]["worker"]
    assert worker["deploy"]["replicas"] == 1
    (device,) = worker["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}
    for service in gpu["services"].values():
        assert service["image"].endswith("-cuda")
        assert service["build"]["args"]["DEVICE"] == "cuda"
