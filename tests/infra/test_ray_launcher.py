"""infra/ray: valid by Ray's own validator and schema, and restricted in access."""

from __future__ import annotations

import copy
import re
import shlex
from typing import Any

import pytest

from tests.infra.files import INFRA, SECRET, documents, leaves, options_of, ray_start_options

PROVIDERS = ["aws", "gcp"]
TOKEN = "/home/colorcore/.ray/auth_token"  # noqa: S105


def cluster(provider: str) -> dict[str, Any]:
    (document,) = documents(INFRA / "ray" / f"{provider}.yaml")
    return document


@pytest.fixture(params=PROVIDERS)
def config(request: pytest.FixtureRequest) -> dict[str, Any]:
    return cluster(request.param)


def prepared(config: dict[str, Any]) -> dict[str, Any]:
    """The file with the defaults that `ray up` adds, validated as `ray up` does."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    full: dict[str, Any] = prepare_config(copy.deepcopy(config))
    validate_config(full)
    return full


def test_rays_validator_takes_it(config: dict[str, Any]) -> None:
    full = prepared(config)
    assert full["head_node_type"] == "head"
    assert {"head", "gpu", "gpu-spot"} == set(full["available_node_types"])


def test_rays_validator_does_refuse(config: dict[str, Any]) -> None:
    import jsonschema

    with pytest.raises(jsonschema.ValidationError):
        prepared({**config, "max_worker": 3})
    with pytest.raises(ValueError, match="head_node_type"):
        prepared({**config, "head_node_type": "tail"})


def test_defaults_add_no_commands(config: dict[str, Any]) -> None:
    """Ray's default commands would install another Ray and open the dashboard to everyone."""
    full = prepared(config)
    assert full["setup_commands"] == full["head_setup_commands"] == []
    assert full["worker_setup_commands"] == []
    assert full["head_start_ray_commands"] == config["head_start_ray_commands"]
    assert "0.0.0.0" not in str(full)  # noqa: S104


def test_workers_come_and_go_and_there_are_some_at_the_start(config: dict[str, Any]) -> None:
    types = config["available_node_types"]
    assert types["head"]["max_workers"] == 0
    assert 0 < types["gpu-spot"]["min_workers"] < types["gpu-spot"]["max_workers"]
    assert types["gpu-spot"]["max_workers"] <= config["max_workers"]
    assert 1 <= config["idle_timeout_minutes"] <= 30
    assert config["provider"]["cache_stopped_nodes"] is False


def test_spot_workers_are_spot_and_the_others_are_not() -> None:
    aws, gcp = (cluster(provider)["available_node_types"] for provider in PROVIDERS)
    assert aws["gpu-spot"]["node_config"].pop("InstanceMarketOptions") == {"MarketType": "spot"}
    assert aws["gpu-spot"]["node_config"] == aws["gpu"]["node_config"]
    assert gcp["gpu-spot"]["node_config"]["scheduling"]["provisioningModel"] == "SPOT"
    assert "provisioningModel" not in gcp["gpu"]["node_config"]["scheduling"]


def test_the_token_comes_as_a_file_and_is_asked_for_everywhere(config: dict[str, Any]) -> None:
    assert config["file_mounts"] == {TOKEN: "~/.ray/auth_token"}
    options = shlex.split(" ".join(config["docker"]["run_options"]))
    assert "RAY_AUTH_MODE=token" in options
    assert f"RAY_AUTH_TOKEN_PATH={TOKEN}" in options
    assert not [word for word in options if word.startswith("RAY_AUTH_TOKEN=")]


def test_no_key_is_in_it_and_machines_are_known_by_what_they_are() -> None:
    for provider in PROVIDERS:
        for path, value in leaves(cluster(provider)):
            assert not re.search(r"AKIA[0-9A-Z]{16}|-----BEGIN|[0-9a-f]{32,}", str(value)), path
            if SECRET.search(path.rpartition(".")[2]):  # a mounted file, or the metadata policy
                assert value in ("~/.ray/auth_token", "required"), path
    for node in cluster("aws")["available_node_types"].values():
        assert node["node_config"]["IamInstanceProfile"] == {"Name": "colorcore"}
        assert node["node_config"]["MetadataOptions"]["HttpTokens"] == "required"
        assert all(disk["Ebs"]["Encrypted"] for disk in node["node_config"]["BlockDeviceMappings"])
    for node in cluster("gcp")["available_node_types"].values():
        (identity,) = node["node_config"]["serviceAccounts"]
        assert identity["email"].startswith("colorcore@")


def test_ray_knows_the_options_that_it_is_started_with(config: dict[str, Any]) -> None:
    for place in ("head_start_ray_commands", "worker_start_ray_commands"):
        stop, start = config[place]
        assert stop == "ray stop"
        words = shlex.split(start.rpartition("ray start")[2])
        assert options_of(words) <= ray_start_options()
        assert len(options_of(words)) >= 3
    head = config["head_start_ray_commands"][1]
    assert "--dashboard-host=127.0.0.1" in head
    assert "GRPC_ENABLE_FORK_SUPPORT=0 ray start" in head  # or clients are turned away at random
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in head


def test_the_command_that_ray_makes_of_it_holds_no_token(config: dict[str, Any]) -> None:
    from ray.autoscaler._private.docker import docker_start_cmds

    full = prepared(config)
    command = docker_start_cmds(
        full["auth"]["ssh_user"], full["docker"]["image"], full["file_mounts"],
        full["docker"]["container_name"], full["docker"]["run_options"], full["cluster_name"],
        "/home/colorcore", "docker",
    )  # fmt: skip
    words = shlex.split(command)
    assert words[:2] == ["docker", "run"]
    assert any(word.endswith(f":{TOKEN}") for word in words)
    assert words[-2:] == [full["docker"]["image"], "bash"]
    assert words[words.index("--ulimit") + 1] == "nofile=65536:65536"
