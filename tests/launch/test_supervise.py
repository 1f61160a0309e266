"""The supervisor with small programs in the place of a run."""

import signal
import subprocess
import sys
import time

import pytest

from tests.runs import ROOT, finish

SCRIPT = ROOT / "launch" / "supervise.py"


def supervise(script, *flags):
    """Starts the supervisor of a shell script."""
    return subprocess.Popen(
        [sys.executable, SCRIPT, *flags, "--", "sh", "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ending_with(tmp_path, *statuses):
    """A script that ends with one status after the other."""
    count = tmp_path / "count"
    count.write_text("0")
    cases = " ".join(f"{number}) exit {status};;" for number, status in enumerate(statuses))
    return f"n=$(cat {count}); echo $((n + 1)) > {count}; echo start $n; case $n in {cases} esac"


def test_what_has_finished_is_not_started_again(tmp_path):
    assert finish(supervise(ending_with(tmp_path, 0))) == "start 0\n"


def test_what_crashed_or_was_stopped_is_started_again(tmp_path):
    output = finish(supervise(ending_with(tmp_path, 75, 1, 0), f"--log={tmp_path / 'log'}"))
    assert output.splitlines() == [
        "start 0",
        "supervisor: the command was stopped before its end; restart 1 follows in 1 s",
        "start 1",
        "supervisor: the command failed with exit status 1; restart 2 follows in 2 s",
        "start 2",
    ]
    assert (tmp_path / "log").read_text() == output


def test_what_fails_quickly_three_times_is_given_up(tmp_path):
    output = finish(supervise(ending_with(tmp_path, 9, 9, 9, 0)), code=9)
    assert output.endswith(
        "supervisor: the command failed with exit status 9, 3 times in a row within 60 s; "
        "correct what its output tells, and start it again\n"
    )


def test_restarts_are_counted(tmp_path):
    output = finish(supervise(ending_with(tmp_path, 75, 75), "--restarts=1"), code=75)
    assert output.endswith("the command was stopped before its end; no restart is left of 1\n")


def test_a_killed_command_is_named_by_its_signal(tmp_path):
    output = finish(supervise("kill -9 $$", "--restarts=0"), code=137)
    assert "supervisor: the command was killed by SIGKILL" in output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_its_own_end_is_handed_on_and_nothing_is_started_again(number):
    process = supervise("trap 'echo saved; exit 75' TERM; echo begun; while :; do sleep 0.1; done")
    assert process.stdout.readline() == "begun\n"
    process.send_signal(number)
    assert finish(process, code=75) == "saved\n"


def test_a_dry_run_only_prints(tmp_path):
    output = finish(supervise(f"touch {tmp_path / 'made'}", "--dry-run"))
    assert output == f"sh -c 'touch {tmp_path / 'made'}'\n"
    assert not (tmp_path / "made").exists()


def test_the_others_of_a_failed_process_get_their_time_and_are_then_ended(tmp_path):
    others = tmp_path / "others.py"
    others.write_text(
        "import signal, sys, time\n"
        f"sys.path.insert(0, {str(SCRIPT.parent)!r})\n"
        "import supervise\n"
        "stubborn = 'trap \"\" TERM; echo waits; sleep 60'\n"
        "commands = [('0', ['sh', '-c', stubborn], None), ('1', ['sh', '-c', 'exit 3'], None)]\n"
        "made = supervise.Supervisor(lambda attempt: commands, restarts=0, grace=0.5)\n"
        "sys.exit(made.run())\n"
    )
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, others], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    lines = finish(process, code=3).splitlines()
    assert "[0] waits" in lines
    said = [line.removeprefix("supervisor: ") for line in lines if line.startswith("supervisor")]
    assert said == [
        "process 1 failed with exit status 3; waiting for the others",
        "process 0 still runs and gets SIGTERM",
        "process 0 still runs and gets SIGKILL",
        "the command failed with exit status 3; no restart is left of 0",
    ]
    assert time.monotonic() - began < 30


def test_local_prints_the_command_of_each_process():
    command = [sys.executable, ROOT / "launch" / "local.py", "--dry-run", "--processes=2"]
    command += ["--devices=3", "--", "--config=configs/quickstart.py"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(lines) == 2
    for index, line in enumerate(lines):
        assert line.startswith("JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=3 ")
        assert "cyclip_jax.main --config=configs/quickstart.py --distributed" in line
        assert line.endswith(f"--num_processes=2 --process_id={index}")
