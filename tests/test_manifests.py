"""The launch material of docs/cluster: valid for Ray, and in agreement with the package's versions and command line."""

import copy
import json
import shlex
import subprocess
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

import jsonschema
import pytest
import typer
import yaml
from kuberay import rayjob

from nas_attn.cli import app

ROOT = Path(__file__).parents[1]
CLUSTER = ROOT / "docs" / "cluster"
IMAGE = f"nas-attn:{version('nas-attn')}"


def job():
    return yaml.safe_load((CLUSTER / "rayjob.yaml").read_text())["spec"]


def groups():
    cluster = job()["rayClusterSpec"]
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def launcher():
    return yaml.safe_load((CLUSTER / "launcher.yaml").read_text())


def rays_schema():
    return json.loads(files("ray.autoscaler").joinpath("ray-schema.json").read_text())


def tables(document, path=()):
    """Every mapping of a document, by its path."""
    if isinstance(document, dict):
        yield path
    parts = document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    for key, part in parts:
        yield from tables(part, (*path, key))


def misspelt(document, free=()):
    """The document with one key misspelt, for each key of each mapping but of those in `free`."""
    for path in [path for path in tables(document) if path not in free]:
        mapping = document
        for step in path:
            mapping = mapping[step]
        for key in mapping:
            spoilt = copy.deepcopy(document)
            place = spoilt
            for step in path:
                place = place[step]
            place[f"{key}s"] = place.pop(key)
            yield (*path, key), spoilt


def is_valid(document, schema):
    """Whether a document holds to a schema."""
    return jsonschema.Draft202012Validator(schema).is_valid(document)


def slurm():
    """The search in the Slurm script, as words."""
    text = (CLUSTER / "slurm.sh").read_text().replace("\\\n", " ")
    (line,) = [line for line in text.splitlines() if line.startswith("nas-attn ")]
    return shlex.split(line.removesuffix("&"))


def search_options():
    command = typer.main.get_command(app).commands["search"]
    return {name for parameter in command.params for name in parameter.opts}


@pytest.mark.parametrize("words", [shlex.split(job()["entrypoint"]), slurm()], ids=["rayjob", "slurm"])
def test_entry_points_are_commands_that_there_are(words):
    assert words[:2] == ["nas-attn", "search"]
    assert (ROOT / "search_spaces" / f"{words[2]}.yaml").is_file()
    assert {word for word in words if word.startswith("--")} <= search_options()
    assert words[words.index("--address") + 1] in ("auto", "${nodes[0]}:$port")


def test_the_launcher_holds_to_rays_schema():
    config = launcher()
    jsonschema.validate(config, rays_schema())
    assert config["docker"]["image"] == IMAGE
    for commands in ("head_start_ray_commands", "worker_start_ray_commands"):
        (start,) = [command for command in config[commands] if "ray start" in command]
        assert "RAY_AUTH_TOKEN_PATH=/root/.ray/auth_token" in start
        assert "--disable-usage-stats" in start
    assert "/root/.ray/auth_token" in config["file_mounts"]


def test_a_misspelt_key_of_the_launcher_is_refused():
    # Files are named by whoever writes them, and a provider's own keys are the provider's: Ray's schema says nothing of either.
    spoilt = dict(misspelt(launcher(), free={("file_mounts",), ("provider",)}))
    assert {("docker", "worker_run_options"), ("auth", "ssh_user"), ("idle_timeout_minutes",)} <= set(spoilt)
    assert [path for path, config in spoilt.items() if is_valid(config, rays_schema())] == []


def test_the_launcher_asks_for_gpus_where_workers_run_and_not_on_a_head_that_may_have_none():
    docker = launcher()["docker"]
    head, worker = (" ".join([*docker["run_options"], *docker.get(f"{kind}_run_options", [])]) for kind in ("head", "worker"))
    assert "--gpus" not in head
    assert "--gpus all" in worker
    assert "/data:/data:ro" in head, "the driver reads the data set too"
    assert "/data:/data:ro" in worker


def test_the_job_holds_to_what_kuberay_takes():
    jsonschema.validate(yaml.safe_load((CLUSTER / "rayjob.yaml").read_text()), rayjob(), cls=jsonschema.Draft202012Validator)


def test_a_misspelt_key_of_the_job_is_refused_at_every_level():
    schema, document = rayjob(), yaml.safe_load((CLUSTER / "rayjob.yaml").read_text())
    spoilt = dict(misspelt(document))
    levels = [("spec", "entrypointNumCpus"), ("spec", "rayClusterSpec", "autoscalerOptions", "idleTimeoutSeconds"), ("metadata", "name")]
    assert set(levels) <= set(spoilt)
    assert [path for path, job in spoilt.items() if is_valid(job, schema)] == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "backoffLimit"), "5"),
        (("spec", "entrypointNumCpus"), "1"),
        (("spec", "rayClusterSpec", "authOptions", "mode"), "tokens"),
        (("spec", "rayClusterSpec", "rayVersion"), 2.6),
        (("spec", "rayClusterSpec", "headGroupSpec", "rayStartParams", "num-cpus"), 1),
        (("spec", "rayClusterSpec", "workerGroupSpecs", 0, "maxReplicas"), 8.5),
        (("spec", "rayClusterSpec", "workerGroupSpecs", 0, "template", "spec", "containers"), []),
        (("spec", "rayClusterSpec", "headGroupSpec", "template", "spec", "containers", 0, "resources", "limits", "memory"), "8 GB"),
    ],
)
def test_a_value_of_another_kind_is_refused_in_the_job(path, value):
    document = yaml.safe_load((CLUSTER / "rayjob.yaml").read_text())
    place = document
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    assert not is_valid(document, rayjob())


def test_the_job_names_the_pinned_ray_the_image_and_a_token():
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    cluster = job()["rayClusterSpec"]
    assert cluster["rayVersion"] == pins["ray"] == version("ray")
    assert cluster["authOptions"] == {"mode": "token"}
    assert job()["backoffLimit"] > 0
    assert job()["shutdownAfterJobFinishes"] is True
    assert {container["image"] for group in groups() for container in group["template"]["spec"]["containers"]} == {IMAGE}


@pytest.mark.parametrize("group", groups(), ids=["head", "gpu"])
def test_every_pod_asks_for_what_it_may_use_and_mounts_what_the_command_reads(group):
    (container,) = group["template"]["spec"]["containers"]
    assert container["resources"]["requests"] == container["resources"]["limits"]
    volumes = {volume["name"] for volume in group["template"]["spec"]["volumes"]}
    mounts = {mount["name"]: mount for mount in container["volumeMounts"]}
    assert set(mounts) == volumes
    assert mounts["data"]["readOnly"] is True
    words = shlex.split(job()["entrypoint"])
    assert words[words.index("--data") + 1].startswith(mounts["data"]["mountPath"])
    if "studies" in mounts:  # the head: the driver runs there, and the study outlives it
        assert words[words.index("--out") + 1].startswith(mounts["studies"]["mountPath"])
    else:
        assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
        assert group["minReplicas"] == group["replicas"] == 0 < group["maxReplicas"]


def test_the_job_asks_for_workers_that_its_nodes_hold_and_its_head_does_not():
    cluster = job()["rayClusterSpec"]
    assert cluster["enableInTreeAutoscaling"] is True
    words = shlex.split(job()["entrypoint"])
    most, cpus, gpus = (float(words[words.index(name) + 1]) for name in ("--max-workers", "--cpus-per-worker", "--gpus-per-worker"))
    (group,) = cluster["workerGroupSpecs"]
    has = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    a_node = min(float(has["cpu"]) // cpus, float(has["nvidia.com/gpu"]) // gpus)
    assert most == a_node * group["maxReplicas"]
    assert float(cluster["headGroupSpec"]["rayStartParams"]["num-cpus"]) < cpus


def test_the_slurm_script_is_a_script_and_makes_its_token_private():
    script = CLUSTER / "slurm.sh"
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0
    text = script.read_text()
    assert text.startswith("#!/bin/bash\n")
    assert "umask 077" in text
    assert "RAY_AUTH_MODE=token" in text
    assert "--signal=B:TERM@" in text, "a search of the script's own must be told by the script"


def test_the_image_takes_the_pinned_versions_and_is_tagged_as_the_package():
    text = (CLUSTER / "Dockerfile").read_text()
    assert IMAGE in text
    assert "--constraints constraints.txt --overrides overrides.txt" in text
    copied = {word for line in text.splitlines() if line.startswith("COPY") for word in line.split()[1:-1]}
    assert all((ROOT / name).exists() for name in copied)
    assert {"pyproject.toml", "nas_attn", "search_spaces", "README.md", "LICENSE"} <= copied
