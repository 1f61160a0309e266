"""Runs of several processes that lose one, are told to stop, or never come together."""

import signal
import subprocess
import sys
import time

import pytest

from tests.runs import ROOT, finish, free_address, wait_for_step
from tests.test_train import mathematics


def losses(workdir):
    return {line["step"]: line["loss"] for line in mathematics(workdir) if "loss" in line}


def end(process):
    process.kill()
    return process.communicate()[0]


@pytest.mark.parametrize("lost", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_two_train_as_one_and_when_one_is_killed_the_others_name_it(
    start_all, start, tmp_path, lost
):
    # Of a gradient near 0 Adam would take the sign alone, and with it what rounding left.
    flag, alone, together = "--config.optimizer.eps=1e-3", tmp_path / "one", tmp_path / "two"
    process = start(alone, flag)
    wait_for_step(process, alone, 12)
    end(process)
    processes = start_all(together, 2, flag)
    wait_for_step(processes[0], together, 12)
    processes[lost].kill()
    killed = time.monotonic()
    # Without process 0 JAX aborts at once, mostly; else heartbeats are missed for 10 s first.
    output = processes[1 - lost].communicate(timeout=60)[0]
    assert processes[1 - lost].returncode in (1, -signal.SIGABRT), output
    assert f"process {lost} of 2" in output and "is lost: killed" in output
    print(f"ended {time.monotonic() - killed:.0f} s later")
    end(processes[lost])

    two, one = losses(together), losses(alone)
    steps = range(1, 13)
    assert [line["step"] for line in mathematics(together)][:12] == list(steps)  # written once
    # float32, in another order of summation; in float64 processes agree to 1e-10
    # (tests/processes/test_equality.py).
    differences = [abs(two[step] / one[step] - 1) for step in steps]
    assert differences[0] < 1e-5 and max(differences) < 1e-4


def test_who_never_comes_is_waited_for_and_then_missed(start_all, tmp_path):
    (process,) = start_all(tmp_path, 2, "--initialization_timeout=3", started=[0])
    output = finish(process, code=1, seconds=120)
    assert "error: not all 2 processes came within 3 s to localhost:" in output
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_who_comes_late_is_waited_for(start_all, tmp_path):
    flags = ["--config.total_steps=12", "--initialization_timeout=120"]
    address = free_address()
    (first,) = start_all(tmp_path, 2, *flags, started=[0], address=address)
    time.sleep(25)
    (second,) = start_all(tmp_path, 2, *flags, started=[1], address=address)
    for process in (first, second):
        finish(process)
    assert sorted(losses(tmp_path)) == list(range(1, 13))


@pytest.mark.slow
@pytest.mark.parametrize("told", [0, 2])
def test_four_processes_save_at_the_same_step_when_one_is_told_to_stop(start_all, tmp_path, told):
    undisturbed, stopped = tmp_path / "undisturbed", tmp_path / "stopped"
    flags = ["--config.total_steps=60", "--config.mesh.fsdp=2", "--config.mesh.fsdp_min_size=100"]
    for process in start_all(undisturbed, 4, *flags):
        finish(process)
    processes = start_all(stopped, 4, *flags)
    wait_for_step(processes[0], stopped, 25)
    processes[told].send_signal(signal.SIGTERM)
    for process in processes:
        finish(process, code=75)
    steps = sorted(int(path.name) for path in (stopped / "checkpoints").iterdir())
    assert steps[-1] not in (20, 40, 60)  # saved because of the signal
    for process in start_all(stopped, 4, *flags):
        finish(process)
    assert mathematics(stopped) == mathematics(undisturbed)


@pytest.mark.slow
def test_four_processes_are_continued_by_two_by_one_and_by_four(start_all, start, tmp_path):
    mesh = ["--config.mesh.fsdp_min_size=100"]
    whole = tmp_path / "whole"
    for process in start_all(whole, 4, "--config.total_steps=80", *mesh):
        finish(process)
    parts = tmp_path / "parts"
    for steps, count, fsdp in ((20, 4, 8), (40, 2, 4), (50, 1, 2), (80, 4, 2)):
        # A shorter run's schedule would end earlier: it is stopped instead.
        processes = start_all(
            parts, count, "--config.total_steps=80", f"--config.mesh.fsdp={fsdp}", *mesh
        )
        if steps < 80:
            wait_for_step(processes[0], parts, steps)
            processes[-1].send_signal(signal.SIGTERM)
        outputs = [finish(process, code=75 if steps < 80 else 0) for process in processes]
        if count != 4 or fsdp != 8:
            assert "continuing from step" in outputs[0]
    expected = losses(whole)
    assert losses(parts).keys() == expected.keys()
    for step, loss in losses(parts).items():
        assert loss == pytest.approx(expected[step], rel=1e-3), step


@pytest.mark.slow
def test_a_killed_process_is_replaced_by_the_supervisor(environment, pairs, tmp_path):
    workdir = tmp_path / "run"
    command = [
        *(sys.executable, "launch/local.py", "--processes=2", "--devices=2", "--restarts=2", "--"),
        *("--config=tests/tiny.py", f"--config.data.train={pairs}", f"--workdir={workdir}"),
        *(f"--config.data.validation={pairs}", "--heartbeat_timeout=10"),
    ]
    local = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    wait_for_step(local, workdir, 45)
    (second,) = find_processes(f"--workdir={workdir}", "--process_id=1")
    subprocess.run(["kill", "-9", second], check=True)
    output = finish(local)
    assert "supervisor: process 1 was killed by SIGKILL; waiting for the others" in output
    assert "[0] error: process 1 of 2 is lost" in output
    assert "continuing from step 40" in output
    assert "[0] 120 steps done" in output
    assert sorted(losses(workdir)) == list(range(1, 121))


def find_processes(*arguments):
    """Ids of the processes with these arguments."""
    command = ["ps", "-ewwo", "pid=,args="]  # whole lines, however wide the terminal is
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    lines = [line.split(maxsplit=1) for line in found.splitlines()]
    return [pid for pid, args in lines if all(argument in args for argument in arguments)]


@pytest.mark.slow
def test_processes_with_different_configs_say_so(start_all, tmp_path):
    address = free_address()
    processes = [
        start_all(tmp_path, 2, f"--config.seed={i}", started=[i], address=address)[0]
        for i in range(2)
    ]
    first, second = (finish(process, code=1) for process in processes)
    assert "error: process 1 has another config than process 0" in first
    assert "error: config.seed is 1 here and 0 in process 0" in second
    assert not list(tmp_path.iterdir())
