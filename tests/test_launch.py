"""The launch scripts, run for real with stand-ins for python and for the cluster's programs.

A stand-in notes with which words it was called and in which environment. What a cluster does is
taken from its documentation; no real one is asked.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from lira_jax.run import shards
from lira_jax.run.shards import Shard

LAUNCH = Path(__file__).resolve().parents[1] / "launch"
SECONDS = 30

# Notes its call; waits for a signal if CALLS/wait exists, and answers SIGTERM as train.py does.
PYTHON = """#!{python} -S
import json, os, signal, sys, time
calls = {calls!r}
def stop(*_):
    open(os.path.join(calls, f"stopped-{{os.getpid()}}"), "w").close()
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
note = {{"words": sys.argv[1:], "environment": dict(os.environ), "pid": os.getpid()}}
path = os.path.join(calls, f"{{time.monotonic_ns()}}-{{os.getpid()}}")
with open(path + ".new", "w") as file:
    json.dump(note, file)
os.rename(path + ".new", path + ".json")
while os.path.exists(os.path.join(calls, "wait")):
    time.sleep(0.01)
"""

# Starts the tasks of a step, each with its variables; the highest exit code of all.
SRUN = """#!{python} -S
import os, subprocess, sys
words = sys.argv[1:]
flags = words[: words.index(".venv/bin/python")]
tasks = next(int(flag.split("=")[1]) for flag in flags if flag.startswith("--ntasks="))
step = os.environ | {{"SLURM_STEP_NUM_TASKS": str(tasks), "SRUN_FLAGS": " ".join(flags)}}
running = [
    subprocess.Popen(words[len(flags):], env=step | {{"SLURM_PROCID": str(number)}})
    for number in range(tasks)
]
sys.exit(max(process.wait() for process in running))
"""

# Every host of the slice is a home folder.
GCLOUD = """#!/bin/sh
for word; do case $word in --command=*) command=${{word#--command=}} ;; esac; done
echo "$*" >> {calls}/gcloud
for host in {homes}/*; do (HOME=$host; cd "$host"; exec bash -c "$command") || code=$?; done
exit ${{code:-0}}
"""


class Cluster:
    """A folder with stand-ins, and what was called in it."""

    def __init__(self, root: Path):
        self.root, self.calls_folder = root, root / "calls"
        self.calls_folder.mkdir()
        (root / "bin").mkdir()
        self.environment = {"PATH": f"{root / 'bin'}:{os.environ['PATH']}", "HOME": str(root)}

    def stand_in(self, path: str, text: str) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        names = {"python": sys.executable, "calls": str(self.calls_folder)}
        file.write_text(text.format(**names, homes=self.root / "hosts"))
        file.chmod(0o755)

    def start(self, *words: str | Path, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            list(map(str, words)),
            cwd=self.root,
            env=self.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *words: str | Path, **environment: str) -> None:
        process = self.start(*words, **environment)
        out, err = process.communicate(timeout=SECONDS)
        assert process.returncode == 0, out + err

    def calls(self, count: int | None = None) -> list[dict[str, Any]]:
        """What python was called with, in order; waits for so many calls."""
        limit = time.monotonic() + SECONDS
        while True:
            paths = sorted(self.calls_folder.glob("*.json"))
            if count is None or len(paths) >= count:
                return [json.loads(path.read_text()) for path in paths]
            assert time.monotonic() < limit, paths
            time.sleep(0.01)

    def wait_for(self, name: str) -> None:
        """Wait for a file that python leaves."""
        limit = time.monotonic() + SECONDS
        while not (self.calls_folder / name).exists():
            assert time.monotonic() < limit, name
            time.sleep(0.01)

    def hold(self) -> None:
        """Let python wait for a signal from now on."""
        (self.calls_folder / "wait").touch()

    def let_go(self) -> None:
        (self.calls_folder / "wait").unlink(missing_ok=True)


@pytest.fixture
def cluster(tmp_path):
    made = Cluster(tmp_path)
    yield made
    made.let_go()


def sbatch_options(script: Path) -> dict[str, str]:
    """The #SBATCH lines of a script."""
    return dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(.*))?$", script.read_text(), re.MULTILINE))


def array_variables() -> list[dict[str, str]]:
    """The environment of every task of the array script, as Slurm documents it."""
    first, last = map(int, sbatch_options(LAUNCH / "slurm_array.sh")["array"].split("-"))
    return [
        {
            "SLURM_ARRAY_TASK_ID": str(index),
            "SLURM_ARRAY_TASK_COUNT": str(last - first + 1),
            "SLURM_ARRAY_TASK_MIN": str(first),
            "SLURM_ARRAY_TASK_MAX": str(last),
            "SLURM_ARRAY_TASK_STEP": "1",
            "SLURM_CPUS_PER_TASK": "4",
        }
        for index in range(first, last + 1)
    ]


def node_variables() -> dict[str, str]:
    """The environment of the multi-node script, as Slurm documents it."""
    options = sbatch_options(LAUNCH / "slurm_multi_node.sh")
    return {
        "SLURM_JOB_NUM_NODES": options["nodes"],
        "SLURM_CPUS_PER_TASK": options["cpus-per-task"],
        "SLURM_NTASKS": options["nodes"],
        "SLURM_PROCID": "0",
    }


def slurm(cluster: Cluster) -> None:
    cluster.stand_in(".venv/bin/python", PYTHON)
    cluster.stand_in("bin/srun", SRUN)


def shard_of(call: dict[str, Any]) -> Shard:
    words = call["words"]
    return shards.parse(words[words.index("--shard") + 1], call["environment"])


@pytest.mark.parametrize("script", sorted(LAUNCH.glob("*.sh")), ids=lambda path: path.name)
def test_a_script_is_valid_executable_and_says_how_to_use_it(script):
    subprocess.run(["bash", "-n", script], check=True)
    assert os.access(script, os.X_OK)
    text = script.read_text()
    assert "set -euo pipefail" in text
    for topic in ("edit", "submit", "progress", "continue", "attack"):
        assert re.search(rf"^#   {topic} ", text, re.MULTILINE), topic


def test_options_of_sbatch_come_before_the_first_command():
    for script in LAUNCH.glob("slurm_*.sh"):
        head, _, rest = script.read_text().partition("\nset -euo pipefail\n")
        assert "#SBATCH" in head
        assert "#SBATCH" not in rest
        assert all(line.startswith("#") or not line for line in head.splitlines())
        assert sbatch_options(script)["signal"] == "TERM@60"


def test_every_task_of_the_array_trains_and_scores_its_own_share(cluster):
    slurm(cluster)
    tasks = array_variables()
    for variables in tasks:
        words = ("my configs/some.toml", "runs/a run", "--train.models", "16")
        cluster.run(LAUNCH / "slurm_array.sh", *words, **variables)
    calls = cluster.calls()
    run = ["--run", "runs/a run", "--shard", "auto"]
    assert [call["words"] for call in calls] == [
        ["train.py", "my configs/some.toml", *run, "--train.models", "16"],
        ["score.py", *run],
    ] * len(tasks)
    shares = [shard_of(call) for call in calls]
    assert shares[::2] == shares[1::2] == [Shard(index, len(tasks)) for index in range(len(tasks))]
    assert all("--cpus-per-task=4" in call["environment"]["SRUN_FLAGS"] for call in calls)


def test_every_node_trains_its_own_share_before_any_scores(cluster):
    slurm(cluster)
    variables = node_variables()
    nodes = int(variables["SLURM_JOB_NUM_NODES"])
    cluster.run(LAUNCH / "slurm_multi_node.sh", "configs/some.toml", "runs/some", **variables)
    calls = cluster.calls()
    assert [call["words"][0] for call in calls] == ["train.py"] * nodes + ["score.py"] * nodes
    for half in (calls[:nodes], calls[nodes:]):
        found = sorted((shard_of(call) for call in half), key=lambda shard: shard.index)
        assert found == [Shard(index, nodes) for index in range(nodes)]


@pytest.mark.parametrize("name", ["slurm_array", "slurm_multi_node"])
def test_a_slurm_script_without_its_words_says_what_it_wants(cluster, name):
    process = cluster.start(LAUNCH / f"{name}.sh", "configs/some.toml")
    _, err = process.communicate(timeout=SECONDS)
    assert process.returncode != 0
    assert f"usage: sbatch launch/{name}.sh CONFIG.toml RUN" in err


@pytest.mark.parametrize("name", ["slurm_array", "slurm_multi_node"])
def test_preemption_in_slurm_reaches_python_once_and_no_stage_follows(cluster, name):
    """Slurm signals the processes of a step, and perhaps the script, which must outlive them."""
    slurm(cluster)
    cluster.hold()
    variables = array_variables()[0] if name == "slurm_array" else node_variables()
    tasks = 1 if name == "slurm_array" else int(variables["SLURM_JOB_NUM_NODES"])
    process = cluster.start(LAUNCH / f"{name}.sh", "configs/some.toml", "runs/some", **variables)
    calls = cluster.calls(tasks)
    process.terminate()
    time.sleep(0.1)
    assert process.poll() is None
    for call in calls:
        os.kill(call["pid"], signal.SIGTERM)
    _, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 143, err
    assert [call["words"][0] for call in cluster.calls()] == ["train.py"] * tasks


def test_a_stage_that_fails_in_slurm_ends_the_task_with_its_code(cluster):
    cluster.stand_in("bin/srun", SRUN)
    cluster.stand_in(".venv/bin/python", "#!/bin/sh\nexit 2\n")
    process = cluster.start(LAUNCH / "slurm_array.sh", "a.toml", "run", **array_variables()[0])
    process.communicate(timeout=SECONDS)
    assert process.returncode == 2


@pytest.fixture(scope="module")
def job() -> dict[str, Any]:
    """The specification of the Kubernetes Job."""
    manifest = yaml.safe_load((LAUNCH / "kubernetes.yaml").read_text())
    assert (manifest["apiVersion"], manifest["kind"]) == ("batch/v1", "Job")
    return manifest["spec"]


def containers(job: dict[str, Any]) -> list[dict[str, Any]]:
    """Those of a pod, in the order in which they run."""
    pod = job["template"]["spec"]
    return pod["initContainers"] + pod["containers"]


def test_every_pod_of_the_job_trains_and_scores_its_own_share(cluster, job):
    cluster.stand_in("bin/python", PYTHON)
    for index in range(job["completions"]):
        for container in containers(job):
            variables = {item["name"]: item["value"] for item in container["env"]}
            cluster.run(*container["command"], **variables, JOB_COMPLETION_INDEX=str(index))
    calls = cluster.calls()
    train, score = (container["command"][1:] for container in containers(job))
    assert [call["words"] for call in calls] == [train, score] * job["completions"]
    assert (train[0], score[0]) == ("train.py", "score.py")
    assert train[train.index("--run") + 1] == score[score.index("--run") + 1]
    shares = [Shard(index, job["completions"]) for index in range(job["completions"])]
    assert [shard_of(call) for call in calls[::2]] == shares
    assert [shard_of(call) for call in calls[1::2]] == shares


def test_the_process_that_kubernetes_signals_is_python(cluster, job):
    cluster.stand_in("bin/python", PYTHON)
    cluster.hold()
    process = cluster.start(*containers(job)[0]["command"])
    [call] = cluster.calls(1)
    assert call["pid"] == process.pid
    process.terminate()
    process.communicate(timeout=SECONDS)
    assert process.returncode == 143


def test_the_job_has_what_its_fields_demand_of_each_other(job):
    """By the reference of batch/v1 Job; no cluster has checked it."""
    pod = job["template"]["spec"]
    assert job["completionMode"] == "Indexed"  # for backoffLimitPerIndex
    assert pod["restartPolicy"] == "Never"  # for podFailurePolicy
    rules = job["podFailurePolicy"]["rules"]
    assert all(("onExitCodes" in rule) != ("onPodConditions" in rule) for rule in rules)
    ignored = [rule["onExitCodes"] for rule in rules if "onExitCodes" in rule]
    assert ignored == [{"operator": "In", "values": [143]}]
    volumes = {volume["name"] for volume in pod["volumes"]}
    for container in containers(job):
        assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
        assert all(isinstance(item["value"], str) for item in container["env"])


def test_a_tpu_slice_starts_stops_and_starts_again_on_every_host(cluster):
    hosts = 2
    cluster.stand_in("bin/gcloud", GCLOUD)
    for host in range(hosts):
        cluster.stand_in(f"hosts/{host}/lira_jax/.venv/bin/python", PYTHON)
    pod = LAUNCH / "tpu_pod.sh"
    cluster.hold()
    cluster.run(pod, "train")
    calls = cluster.calls(hosts)
    for call in calls:
        assert call["words"][0] == "train.py"
        assert call["words"][-2:] == ["--shard", "distributed"]
    second = cluster.start(pod, "score")
    _, err = second.communicate(timeout=SECONDS)
    assert second.returncode == 1
    assert err.count("at work already") == hosts
    cluster.run(pod, "stop")
    for host, call in enumerate(calls):
        cluster.wait_for(f"stopped-{call['pid']}")
        # Gone, unless whoever adopted it here has not noticed: so do not rely on its number.
        (cluster.root / f"hosts/{host}/lira_jax/lira_jax.pid").unlink()
    cluster.let_go()
    cluster.run(pod, "score")
    calls = cluster.calls(2 * hosts)
    assert [call["words"][0] for call in calls] == ["train.py"] * hosts + ["score.py"] * hosts
    cluster.run(pod, "progress")
    for line in (cluster.calls_folder / "gcloud").read_text().splitlines():
        if line.startswith("compute"):
            assert line.startswith("compute tpus tpu-vm ssh my-tpu --zone=")
            assert " --worker=all " in line


def test_a_tpu_script_without_a_word_says_what_it_wants(cluster):
    process = cluster.start(LAUNCH / "tpu_pod.sh")
    _, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 2
    assert err == "usage: launch/tpu_pod.sh train | score | progress | stop\n"
