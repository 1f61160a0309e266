import re
import signal
import subprocess
import time

import pytest
from jax._src.clusters import ClusterEnv

from tests.launch.fakes import LAUNCH, Fakes, shellcheck

SCRIPT = LAUNCH / "slurm.sbatch"
FLAGS = ("--config=configs/cc12m.py", "--workdir=/shared/runs/a b")
JOB = {"SLURM_JOB_ID": "123", "SLURM_NTASKS_PER_NODE": "8", "SLURM_GPUS_ON_NODE": "8"}
TRAINING = ["-m", "cyclip_jax.main", "--distributed", "--stopped_exit_code=75", *FLAGS]


@pytest.fixture
def fakes(tmp_path):
    return Fakes(tmp_path)


def run(fakes, *flags, **variables):
    return fakes.run("bash", SCRIPT, *flags, **variables)


def test_shellcheck_has_no_complaint():
    assert shellcheck(SCRIPT) == ""


def test_slurm_warns_the_steps_and_may_queue_the_job_again():
    directives = re.findall(r"^#SBATCH --(\S+)$", SCRIPT.read_text(), re.MULTILINE)
    assert {"requeue", "signal=TERM@120", "open-mode=append"} <= set(directives)


def test_help_tells_how_to_submit(fakes):
    result = run(fakes, "--help")
    assert result.returncode == 0
    assert "sbatch --nodes=4 --gpus-per-node=8 --ntasks-per-node=8" in result.stdout
    assert fakes.calls() == []


def test_a_finished_run_is_one_step(fakes):
    assert run(fakes, *FLAGS, **JOB, PYTHON="/venv/bin/python").returncode == 0
    (call,) = fakes.calls()
    assert call[0] == "srun" and call[call.index("/venv/bin/python") + 1 :] == TRAINING


def test_a_run_stopped_before_its_end_is_queued_again(fakes):
    fakes.answer({"srun": [75]})
    assert run(fakes, *FLAGS, **JOB).returncode == 0
    assert [call[0] for call in fakes.calls()] == ["srun", "scontrol"]
    assert fakes.calls()[1] == ["scontrol", "requeue", "123"]


def test_a_crash_is_tried_again_and_then_given_up(fakes):
    fakes.answer({"srun": [1, 134]})
    result = run(fakes, *FLAGS, **JOB, RESTARTS="2")
    assert result.returncode == 134
    assert [call[0] for call in fakes.calls()] == ["srun"] * 3


def test_a_signal_to_the_script_lets_the_step_save_first(fakes, tmp_path):
    srun = tmp_path / "bin" / "srun"
    srun.write_text(f"#!/bin/bash\ntouch {tmp_path}/began\nsleep 1\nexit 75\n")
    command = ["bash", SCRIPT, *FLAGS]
    with subprocess.Popen(command, env=fakes.environment(**JOB), text=True) as script:
        while not (tmp_path / "began").exists():
            time.sleep(0.01)
        script.send_signal(signal.SIGTERM)
    assert script.returncode == 0
    assert fakes.calls() == [["scontrol", "requeue", "123"]]


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"CONTAINER": "pyxis", "IMAGE": "/shared/a.sqsh", "MOUNTS": "/data,/in:/out"},
        {"CONTAINER": "apptainer", "IMAGE": "/shared/a.sif"},
    ],
    ids=["bare", "pyxis", "apptainer"],
)
def test_what_a_dry_run_prints_is_what_a_job_calls(fakes, variables):
    variables = JOB | variables | {"SLURM_CPUS_PER_TASK": "8"}
    printed = run(fakes, *FLAGS, "--dry-run", **variables)
    assert printed.returncode == 0 and fakes.calls() == []
    fakes.answer({"srun": [75]})
    run(fakes, *FLAGS, **variables)
    called = fakes.calls()
    fakes.answer({})
    fakes.run("bash", stdin=printed.stdout, **variables)
    assert len(called) == 2 and fakes.calls() == called


def test_a_dry_run_needs_no_slurm(fakes):
    result = run(fakes, *FLAGS, "--dry-run")
    assert result.returncode == 0 and "srun" in result.stdout


def test_pyxis_gets_each_mount_with_its_target(fakes):
    result = run(fakes, *FLAGS, "--dry-run", CONTAINER="pyxis", IMAGE="i", MOUNTS="/data,/in:/out")
    assert ",/data:/data,/in:/out" in result.stdout.replace("\\", "")


@pytest.mark.parametrize(
    ("flags", "variables", "message"),
    [
        (FLAGS[:1], {}, "needs --workdir"),
        (FLAGS[1:], {}, "needs --config"),
        (FLAGS, {"SLURM_JOB_ID": ""}, "submit it with sbatch"),
        (FLAGS, {"SLURM_NTASKS_PER_NODE": "1"}, "--ntasks-per-node is 1 and there are 8 GPUs"),
        (FLAGS, {"SLURM_GPUS_ON_NODE": ""}, "there are no GPUs on a node"),
        (
            FLAGS,
            {"CONTAINER": "docker"},
            "CONTAINER=docker is unknown; choose none, pyxis or apptainer",
        ),
        (FLAGS, {"CONTAINER": "pyxis"}, "CONTAINER=pyxis needs IMAGE"),
        (FLAGS, {"IMAGE": "a.sif"}, "also needs CONTAINER"),
        (FLAGS, {"RESTARTS": "-1"}, "RESTARTS=-1 is not a whole number"),
    ],
)
def test_bad_input_is_told_before_any_step(fakes, flags, variables, message):
    result = run(fakes, *flags, **(JOB | variables))
    assert result.returncode == 2 and message in result.stderr
    assert fakes.calls() == []


def test_jax_gives_each_of_a_nodes_tasks_the_gpu_of_its_local_number(monkeypatch):
    step = {"SLURM_STEP_NODELIST": "node[007-008]", "SLURM_NTASKS": "16", "SLURM_PROCID": "9"}
    for name, value in (JOB | step | {"SLURM_LOCALID": "1"}).items():
        monkeypatch.setenv(name, value)
    detected = ClusterEnv.auto_detect_unset_distributed_params(None, None, None, None, None, None)
    address, processes, process, devices = detected
    assert address.startswith("node007:")
    assert (processes, process, devices) == (16, 9, [1])
