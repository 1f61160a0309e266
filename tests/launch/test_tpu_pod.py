import os
import pathlib
import re
import runpy
import shutil
import subprocess
import tarfile
import time

import pytest
import setuptools
from packaging.requirements import Requirement

from tests.launch.fakes import LAUNCH, Fakes, shellcheck
from tests.runs import unpack

ROOT = LAUNCH.parent
PLACE = ("--name=pod", "--zone=europe-west4-b", "--project=mine")
WORKDIR = "--workdir=gs://bucket/run"
TRAINING = ("--", "--config=configs/cc12m.py", "--config.data.train=it's {0..3}.tar")
KEEP = ("run", "--keep", *PLACE, WORKDIR, "--type=v5litepod-16", "--spot", "--sync", "--poll=0")
QUEUED, NODE, STATE = "queued-resources describe", "tpu-vm describe", "worker-0.state"
NOT_FOUND = "ERROR: (gcloud.compute.tpus) NOT_FOUND: Resource was not found"
THERE = {QUEUED: ["ACTIVE"], NODE: ["READY"]}
GIT = ("git", "-c", "user.name=a", "-c", "user.email=a@b.c")


@pytest.fixture
def fakes(tmp_path):
    return Fakes(tmp_path)


@pytest.fixture
def repository(tmp_path):
    """A repository of the launch scripts and one module, in a commit."""
    root = tmp_path / "it's here"
    shutil.copytree(LAUNCH, root / "launch", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("kept.py", "removed.py", "a name.py"):
        (root / name).write_text("first")
    (root / ".gitignore").write_text("runs/\n")
    for command in (("init", "--quiet"), ("add", "."), ("commit", "--quiet", "--message=a")):
        subprocess.run([*GIT, *command], cwd=root, check=True)
    return root


def run(fakes, repository, *options, **variables):
    return fakes.run("bash", repository / "launch" / "tpu_pod.sh", *options, **variables)


def change(repository):
    """One file changed, one removed, one added, one that git ignores."""
    (repository / "kept.py").write_text("second")
    (repository / "removed.py").unlink()
    (repository / "added.py").write_text("new")
    (repository / "runs").mkdir()
    (repository / "runs" / "large").write_text("ignored")


def verbs(fakes):
    """What was asked of the slice, in order: one word for each call that is no question."""
    words = []
    for call in fakes.calls():
        line = " ".join(call)
        for part in ("create", "delete", "scp", "install", "start", "stop"):
            if f" {part} " in f"{line} " and "describe" not in line:
                words.append(part)
    return words


@pytest.mark.parametrize("name", ["tpu_pod.sh", "tpu_worker.sh"])
def test_shellcheck_has_no_complaint(name):
    assert shellcheck(LAUNCH / name) == ""


@pytest.mark.parametrize("name", ["tpu_pod.sh", "tpu_worker.sh"])
def test_help_tells_every_command(fakes, name):
    result = fakes.run("bash", LAUNCH / name, "--help")
    assert result.returncode == 0
    commands = ("create", "setup", "run", "logs", "status", "stop", "delete")
    commands = commands if name == "tpu_pod.sh" else ("idle", "install", "start", "stop")
    assert all(re.search(rf"\b{command} ", result.stdout) for command in commands)


COMMANDS = {
    "create": ("create", "--type=v6e-8"),
    "create_spot": ("create", "--type=v5litepod-16", "--spot", "--runtime=special"),
    "setup_ref": ("setup", "--ref=HEAD"),
    "setup_sync": ("setup", "--sync"),
    "run": ("run", WORKDIR, "--restarts=5", *TRAINING),
    "logs": ("logs", "--worker=3"),
    "logs_copy": ("logs", WORKDIR),
    "status": ("status", WORKDIR),
    "stop": ("stop", "--wait=60"),
    "delete": ("delete", "--yes"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_what_a_dry_run_prints_is_what_a_run_calls(fakes, repository, name):
    command, *options = COMMANDS[name]
    fakes.answer(THERE)
    printed = run(fakes, repository, command, *PLACE, "--dry-run", *options)
    assert printed.returncode == 0, printed.stderr
    assert fakes.calls() == [] and list(fakes.home.iterdir()) == []
    assert run(fakes, repository, command, *PLACE, *options).returncode == 0
    called, sent = fakes.calls(), members(fakes)
    fakes.answer(THERE)
    assert fakes.run("bash", stdin=printed.stdout).returncode == 0
    assert called and fakes.calls() == called and members(fakes) == sent


def members(fakes):
    """The files of the code that was sent, less git's own: {name: content}."""
    if not (fakes.bucket / "code.tar.gz").exists():
        return {}
    with tarfile.open(fakes.bucket / "code.tar.gz") as tar:
        files = {member.name: tar.extractfile(member) for member in tar if member.isfile()}
        return {
            pathlib.PurePath(name).relative_to("cyclip_jax").as_posix(): file.read()
            for name, file in files.items()
            if "/.git/" not in name
        }


def test_each_generation_has_its_runtime(fakes, repository):
    for kind, runtime in {
        "v5litepod-16": "v2-alpha-tpuv5-lite",
        "v4-8": "tpu-ubuntu2204-base",
    }.items():
        result = run(fakes, repository, "create", *PLACE, f"--type={kind}", "--dry-run")
        assert f"--runtime-version={runtime}" in result.stdout


def test_a_commit_is_sent_as_it_is(fakes, repository):
    first = git(repository, "rev-parse", "HEAD")
    (repository / "kept.py").write_text("second")
    subprocess.run([*GIT, "commit", "--quiet", "--all", "--message=b"], cwd=repository, check=True)
    assert run(fakes, repository, "setup", *PLACE, f"--ref={first}").returncode == 0
    assert members(fakes)["kept.py"] == b"first"
    assert described(fakes) == first


def test_the_tree_is_sent_as_it_is(fakes, repository):
    change(repository)
    assert run(fakes, repository, "setup", *PLACE, "--sync").returncode == 0
    sent = members(fakes)
    assert sent["kept.py"] == b"second" and sent["added.py"] == b"new"
    assert "a name.py" in sent and "removed.py" not in sent and "runs/large" not in sent
    assert described(fakes) == git(repository, "rev-parse", "HEAD") + "-dirty"


def described(fakes):
    """What config.json will tell of the code that was sent."""
    with tarfile.open(fakes.bucket / "code.tar.gz") as tar:
        unpack(tar, fakes.home)
    return git(fakes.home / "cyclip_jax", "describe", "--always", "--dirty", "--abbrev=40")


def git(root, *command):
    return subprocess.run(
        ["git", *command], cwd=root, check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("train", *PLACE), "unknown command train"),
        (("create", *PLACE, "--size=8"), "unknown option --size=8"),
        (("create", "--zone=z", "--type=v4-8"), "create needs --name"),
        (("create", "--name=Pod", "--zone=z", "--type=v4-8"), "dashes, not Pod"),
        (("create", "--name=pod", "--type=v4-8"), "create needs --zone"),
        (("create", *PLACE), "create needs --type"),
        (("setup", *PLACE), "needs --ref=REF (a commit) or --sync"),
        (("setup", *PLACE, "--ref=HEAD", "--sync"), "not both"),
        (("setup", *PLACE, "--ref=nowhere"), "has no commit nowhere"),
        (("run", *PLACE, *TRAINING), "run needs --workdir=gs://"),
        (("run", *PLACE, "--workdir=/tmp/run", *TRAINING), "is not on Cloud Storage"),
        (("status", *PLACE, "--workdir=gs://"), "is not on Cloud Storage"),
        (("run", *PLACE, WORKDIR), "-- --config="),
        (("run", *PLACE, WORKDIR, "--", "--config=a", WORKDIR), "--workdir stands before --"),
        (("run", "--keep", *PLACE, WORKDIR, "--sync", *TRAINING), "run --keep needs --type"),
        (("run", "--keep", *PLACE, WORKDIR, "--type=v4-8", *TRAINING), "needs --ref=REF"),
        (("stop", *PLACE, "--wait=long"), "--wait=long is not a whole number"),
    ],
)
def test_bad_input_is_told_before_any_call(fakes, repository, options, message):
    result = run(fakes, repository, *options)
    assert result.returncode == 2 and message in result.stderr
    assert fakes.calls() == []


def test_a_commit_is_not_sent_from_a_changed_tree(fakes, repository):
    change(repository)
    result = run(fakes, repository, "setup", *PLACE, "--ref=HEAD")
    assert result.returncode == 2 and "has changes that HEAD does not hold" in result.stderr
    assert fakes.calls() == []


def test_nothing_is_deleted_without_a_yes(fakes, repository):
    script = repository / "launch" / "tpu_pod.sh"
    assert fakes.run("bash", script, "delete", *PLACE, stdin="n\n").returncode == 2
    assert fakes.run("bash", script, "delete", *PLACE).returncode == 2
    assert fakes.calls() == []
    assert fakes.run("bash", script, "delete", *PLACE, stdin="y\n").returncode == 0
    assert verbs(fakes) == ["delete"]


def test_create_waits_for_the_slice(fakes, repository):
    fakes.answer({QUEUED: ["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"], NODE: ["READY"]})
    result = run(fakes, repository, "create", *PLACE, "--type=v4-8", "--poll=0")
    assert result.returncode == 0 and "pod is PROVISIONING" in result.stdout


def test_create_tells_of_a_slice_that_failed(fakes, repository):
    fakes.answer({QUEUED: ["FAILED"]})
    result = run(fakes, repository, "create", *PLACE, "--type=v4-8", "--poll=0")
    assert result.returncode == 2 and "failed or was taken" in result.stderr


def keep(fakes, repository, answers):
    """(result, verbs) of a kept run, where gcloud gives these answers."""
    fakes.answer(answers)
    result = run(fakes, repository, *KEEP, *TRAINING)
    return result, verbs(fakes)


def running():
    return f"running {int(time.time())}"


SET_UP = ["scp", "install", "start"]


def test_a_slice_that_was_taken_is_made_again_and_the_run_goes_on(fakes, repository):
    states = [NOT_FOUND, "PROVISIONING", "ACTIVE", "ACTIVE", "SUSPENDED", NOT_FOUND, "ACTIVE"]
    answers = {QUEUED: states, NODE: ["READY"], STATE: ["exit 75", running(), running(), "exit 0"]}
    result, done = keep(fakes, repository, answers)
    assert result.returncode == 0 and "the run has finished" in result.stdout
    assert done == ["create", *SET_UP, "delete", "create", *SET_UP]
    starts = [call for call in fakes.calls() if "tpu_worker.sh start" in call[-1]]
    assert starts[0] == starts[1], "the same command, so that it continues"


@pytest.mark.parametrize("node", ["PREEMPTED", NOT_FOUND], ids=["preempted", "deleted"])
def test_a_node_that_was_taken_counts_though_its_resource_is_active(fakes, repository, node):
    answers = {QUEUED: ["ACTIVE"], NODE: [node, "READY"], STATE: ["exit 75", "exit 0"]}
    assert keep(fakes, repository, answers)[1] == ["delete", *SET_UP]


def test_a_gcloud_that_fails_does_not_delete_a_slice(fakes, repository):
    states = ["ACTIVE", "ERROR: network is unreachable", "ACTIVE"]
    answers = {QUEUED: states, NODE: ["READY", "ERROR: 503", "READY"]}
    answers[STATE] = [running(), 1, "exit 0"]
    result, done = keep(fakes, repository, answers)
    assert result.returncode == 0 and done == []


def test_a_run_that_is_going_on_is_only_watched(fakes, repository):
    answers = THERE | {STATE: [running(), running(), "exit 0"]}
    result, done = keep(fakes, repository, answers)
    assert result.returncode == 0 and done == []


@pytest.mark.parametrize("state", ["exit 0", "exit 1", "stopped", 1], ids=str)
def test_how_an_earlier_run_ended_does_not_count(fakes, repository, state):
    answers = THERE | {STATE: [state, running(), "exit 0"]}
    result, done = keep(fakes, repository, answers)
    assert result.returncode == 0 and done == SET_UP


@pytest.mark.parametrize("state", ["exit 75", "exit 143", "running 1000"])
def test_a_run_that_was_interrupted_is_started_again(fakes, repository, state):
    answers = THERE | {STATE: [running(), state, running(), "exit 0"]}
    result, done = keep(fakes, repository, answers)
    assert result.returncode == 0 and done == ["stop", *SET_UP]


def test_a_run_that_was_stopped_by_hand_is_left_alone(fakes, repository):
    result, done = keep(fakes, repository, THERE | {STATE: [running(), "stopped"]})
    assert result.returncode == 0 and "was stopped" in result.stdout and done == []


def test_a_run_that_has_failed_is_not_started_again(fakes, repository):
    result, done = keep(fakes, repository, THERE | {STATE: [running(), "exit 1"]})
    assert result.returncode == 2 and "has failed (exit 1)" in result.stderr and done == []


def test_a_setup_that_keeps_failing_is_given_up(fakes, repository):
    result, done = keep(fakes, repository, THERE | {"scp": [1], STATE: ["stopped"]})
    assert result.returncode == 2 and "five failures" in result.stderr
    assert done == ["scp"] * 5


def test_a_dry_run_of_a_kept_run_shows_every_step(fakes, repository):
    printed = run(fakes, repository, *KEEP, "--dry-run", *TRAINING)
    assert printed.returncode == 0 and fakes.calls() == []
    fakes.run("bash", stdin=printed.stdout)
    assert verbs(fakes) == ["create", *SET_UP, "delete"]


class Worker:
    """A worker whose training waits for a file `finish`, or saves on SIGTERM."""

    def __init__(self, fakes, repository):
        self.fakes, self.script = fakes, repository / "launch" / "tpu_worker.sh"
        fakes.answer({"agent-worker-number": ["3"]})
        python = fakes.home / "cyclip_venv" / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.write_text(
            '#!/bin/bash\n[[ $1 == launch/supervise.py ]] && exec python3 "$@"\n'
            'trap "echo saved; exit 75" TERM\necho "training $*"\n'
            "until [[ -e ~/finish ]]; do sleep 0.05; done\nexit $(<~/finish)\n"
        )
        python.chmod(0o755)

    def act(self, *arguments):
        return self.fakes.run("bash", self.script, *arguments, CYCLIP_COPY_SECONDS="1")

    def start(self):
        log = self.fakes.home / "cyclip_run" / "log"
        before = log.read_text() if log.exists() else ""
        started = self.act("start", "gs://bucket/run", "0", "--config=a b.py")
        self.await_file("log", before + "training" if before else "training")
        self.await_file("pid", " ")
        return started

    def await_file(self, name, text):
        """Waits until a file of the worker or of the bucket holds a text, and returns it all."""
        is_local = name in ("log", "pid")
        folder = self.fakes.home / "cyclip_run" if is_local else self.fakes.bucket
        for _ in range(1200):
            if (folder / name).exists() and text in (folder / name).read_text():
                return (folder / name).read_text()
            time.sleep(0.05)
        raise AssertionError(f"{name} never held {text!r}")

    def shut_down(self):
        """Sends SIGTERM to every process, as a machine does that is taken."""
        numbers = self.await_file("pid", " ").split()
        subprocess.run(["kill", "-TERM", *numbers], check=True)


@pytest.fixture
def worker(fakes, repository):
    made = Worker(fakes, repository)
    yield made
    made.act("stop", "50")


def test_a_worker_trains_detached_and_copies_its_log(worker):
    assert worker.start().returncode == 0
    wrapper = int(worker.await_file("pid", " ").split()[0])
    assert os.getsid(wrapper) == wrapper, "the end of the ssh session does not reach it"
    copied = worker.await_file("worker-3.log", "training")
    arguments = "--distributed --stopped_exit_code=75 --workdir=gs://bucket/run --config=a b.py"
    assert f"-m cyclip_jax.main {arguments}" in copied
    worker.await_file("worker-3.state", "running ")
    (worker.fakes.home / "finish").write_text("0")
    assert worker.await_file("worker-3.state", "exit") == "exit 0\n"


def test_a_run_that_fails_tells_its_status(worker):
    worker.start()
    (worker.fakes.home / "finish").write_text("1")
    assert worker.await_file("worker-3.state", "exit") == "exit 1\n"
    worker.await_file("worker-3.log", "no restart is left")


def test_stop_lets_the_run_save(worker):
    worker.start()
    stopped = worker.act("stop", "50")
    assert stopped.returncode == 0 and "has ended: saved" in stopped.stdout
    assert (worker.fakes.bucket / "worker-3.state").read_text() == "stopped\n"
    assert "no run is going on" in worker.act("stop", "50").stdout


def test_a_machine_that_is_taken_tells_so(worker):
    worker.start()
    worker.act("stop", "50")
    worker.start()
    worker.shut_down()
    assert worker.await_file("worker-3.state", "exit") == "exit 75\n"
    assert "saved" in (worker.fakes.bucket / "worker-3.log").read_text()


def test_a_worker_has_one_run_at_a_time(worker):
    assert worker.act("idle").returncode == 0
    worker.start()
    for arguments in (("idle",), ("start", "gs://bucket/other", "0", "--config=a")):
        result = worker.act(*arguments)
        assert result.returncode == 2 and "a run is going on here" in result.stderr


def test_a_new_machine_continues_the_log(worker):
    (worker.fakes.bucket / "worker-3.log").write_text("earlier\n")
    worker.start()
    assert worker.await_file("worker-3.log", "training").startswith("earlier\ntraining")


@pytest.mark.parametrize("accelerator", ["tpu", "cuda"])
def test_the_lock_has_what_setup_requires(monkeypatch, accelerator):
    arguments = {}
    monkeypatch.setattr(setuptools, "setup", arguments.update)
    monkeypatch.chdir(ROOT)
    runpy.run_path("setup.py")
    lines = (LAUNCH / f"requirements-{accelerator}.lock").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    required = arguments["install_requires"] + arguments["extras_require"]["data"]
    linux = {"platform_system": "Linux", "platform_machine": "x86_64", "python_version": "3.11"}
    for requirement in map(Requirement, required):
        if requirement.marker is None or requirement.marker.evaluate(linux):
            name = re.sub(r"[-_.]+", "-", requirement.name).lower()
            assert requirement.specifier.contains(pins[name]), requirement
    assert {"tpu": "libtpu", "cuda": "jax-cuda13-plugin"}[accelerator] in pins
