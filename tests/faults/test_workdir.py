"""A workdir that cannot be written, and one that another run is in."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest

from cyclip_jax.errors import UserError
from cyclip_jax.files import remove_unfinished
from cyclip_jax.report.runs import Group, read_run
from cyclip_jax.report.sections import changes
from cyclip_jax.workdir import lock
from cyclip_jax.workdir.lock import LOCK, FileLock, Lease, lock_workdir
from cyclip_jax.workdir.metrics import metrics_at
from tests.faults.conftest import contents, unchanged
from tests.runs import ROOT, finish, wait_for_step
from tests.test_train import mathematics


@pytest.mark.parametrize(
    "place",
    ["file", "file/run", "/proc/no_such_mount/run"],
    ids=["a file", "below a file", "where nothing can be made"],
)
def test_a_workdir_that_cannot_be_made_is_refused_first(small_run, tmp_path, monkeypatch, place):
    monkeypatch.setattr("cyclip_jax.training.open_run.open_source", None)
    monkeypatch.setattr("cyclip_jax.training.open_run.check_same_model", None)
    (tmp_path / "file").write_text("no directory")
    workdir = tmp_path / place
    with pytest.raises(UserError, match=f"--workdir={workdir} cannot be written: "):
        small_run(workdir)
    assert (tmp_path / "file").read_text() == "no directory"


# In a file system tree of its own, where an ordinary user, too, may mount.
NAMESPACE = ["unshare", "--map-root-user", "--mount"]
needs_namespaces = pytest.mark.skipif(
    shutil.which("unshare") is None
    or subprocess.run([*NAMESPACE, "true"], capture_output=True).returncode != 0,
    reason="mount namespaces are not allowed here",
)


@needs_namespaces
def test_what_is_mounted_read_only_is_refused_and_left_alone(environment, tmp_path):
    places = [tmp_path / "whole", tmp_path / "part" / "checkpoints"]
    commands = ["set -e", f"cd {ROOT}"]
    for place in places:
        place.mkdir(parents=True)
        commands += [f"mount --bind {place} {place}", f"mount -o remount,ro,bind {place}"]
    attempts = (
        "import sys\n"
        "from cyclip_jax.errors import UserError\n"
        "from cyclip_jax.workdir.lock import lock_workdir\n"
        "for workdir in sys.argv[1:]:\n"
        "    try:\n"
        "        lock_workdir(workdir, enabled=True).__enter__()\n"
        "    except UserError as error:\n"
        "        print(error)\n"
    )
    shell = "\n".join([*commands, 'exec "$@"'])
    python = [sys.executable, "-c", attempts, tmp_path / "whole", tmp_path / "part"]
    with unchanged(tmp_path):
        output = subprocess.run(
            [*NAMESPACE, "sh", "-c", shell, "sh", *python],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    for line, place in zip(output.splitlines(), ("whole", "part"), strict=True):
        assert line.startswith(f"--workdir={tmp_path / place} cannot be written: [Errno 30] Read-")


def test_the_second_of_two_runs_is_refused_and_changes_nothing(small_run, tmp_path, monkeypatch):
    monkeypatch.setattr("cyclip_jax.training.open_run.open_source", None)
    message = rf"{tmp_path} is in use by process {os.getpid()} on \S+, which began 20..-..-.. ..:"
    with lock_workdir(tmp_path, enabled=True):
        (tmp_path / "config.json").write_text("the first one's")
        with unchanged(tmp_path), pytest.raises(UserError, match=message):
            small_run(tmp_path)
    assert contents(tmp_path).keys() == {tmp_path / "config.json"}  # and the lock is gone


def test_the_lock_of_a_killed_process_holds_nobody_up(tmp_path):
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import fcntl, sys, time; file = open(sys.argv[1], 'w'); fcntl.flock(file, 2);"
            "file.write('{}'); file.flush(); print(flush=True); time.sleep(600)",
            tmp_path / LOCK,
        ],
        stdout=subprocess.PIPE,
    )
    holder.stdout.readline()
    with pytest.raises(UserError, match="is in use by another process"):
        FileLock(tmp_path / LOCK)
    holder.kill()
    holder.communicate()
    assert (tmp_path / LOCK).exists()
    FileLock(tmp_path / LOCK).close()
    assert not (tmp_path / LOCK).exists()


def test_other_processes_of_a_run_lock_nothing(tmp_path):
    with lock_workdir(tmp_path / "run", enabled=False):
        assert not (tmp_path / "run").exists()


def lease(path, **seconds):
    return Lease(path, **{"beat_seconds": 0.01, "stale_seconds": 60, "settle_seconds": 0} | seconds)


def holder(**changes):
    """What the lease of a process of another machine holds."""
    return (
        lock.this_process() | {"machine": "another", "host": "far", "pid": 7, "beats": 3} | changes
    )


def test_a_lease_that_its_holder_renews_is_refused(tmp_path, monkeypatch):
    first = lease(tmp_path / LOCK)
    monkeypatch.setattr(lock, "this_machine", lambda: "another")  # so that only the beats tell
    with pytest.raises(UserError, match=f"is in use by process {os.getpid()} on"):
        lease(tmp_path / LOCK)
    first.close()
    assert not contents(tmp_path)
    lease(tmp_path / LOCK).close()


def test_a_lease_that_nobody_renews_is_taken_over_after_a_while(tmp_path):
    (tmp_path / LOCK).write_text(json.dumps(holder()))
    begin = time.monotonic()
    lease(tmp_path / LOCK, stale_seconds=0.3).close()
    assert time.monotonic() - begin > 0.3


def test_a_lease_of_a_dead_process_of_this_machine_is_taken_over_at_once(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    me = lock.this_process()
    for process in ({"pid": dead.pid}, {"pid": me["pid"], "process_start": 1}):  # or a reused pid
        (tmp_path / LOCK).write_text(json.dumps(me | process | {"id": "its"}))
        lease(tmp_path / LOCK, stale_seconds=10_000).close()
    (tmp_path / LOCK).write_text(json.dumps(me | {"id": "its"}))
    with pytest.raises(UserError, match="is in use"):
        lease(tmp_path / LOCK)


def test_of_two_that_take_a_lease_at_the_same_moment_one_is_refused(tmp_path, monkeypatch):
    def other_one_writes(_):
        (tmp_path / LOCK).write_text(json.dumps(holder(id="other")))

    monkeypatch.setattr(lock.time, "sleep", other_one_writes)
    with pytest.raises(UserError, match="is in use by process 7 on far"):
        lease(tmp_path / LOCK)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_run_whose_lease_was_taken_over_ends_itself(tmp_path, monkeypatch, caplog):
    ended = threading.Event()

    def end(code):
        assert code == 1
        ended.set()
        sys.exit()  # of the thread

    monkeypatch.setattr(lock.os, "_exit", end)
    mine = lease(tmp_path / LOCK)
    (tmp_path / LOCK).write_text(json.dumps(holder()))
    assert ended.wait(60)
    mine.close()
    assert "is in use by process 7 on far" in caplog.text
    assert json.loads((tmp_path / LOCK).read_text())["pid"] == 7


def test_what_a_killed_process_left_half_written_is_removed(tmp_path):
    for name in ("config.json.123.tmp", "mine.tmp", "config.json"):
        (tmp_path / name).write_text("")
    remove_unfinished(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"mine.tmp", "config.json"}


@pytest.mark.slow
def test_two_commands_on_one_workdir_and_a_kill_of_the_first(start, finished, tmp_path):
    first = start(tmp_path)
    wait_for_step(first, tmp_path, 25)
    first.send_signal(signal.SIGSTOP)
    with unchanged(tmp_path):
        output = finish(start(tmp_path), code=1)
    assert f"is in use by process {first.pid} on " in output and "Traceback" not in output
    first.kill()  # a stopped process dies of it, too
    first.communicate()
    finish(start(tmp_path))
    assert mathematics(tmp_path) == mathematics(finished[0])


def test_a_run_goes_on_with_other_settings_only_where_that_is_asked_for(
    undisturbed, small_run, tmp_path, capsys
):
    workdir = tmp_path / "run"
    shutil.copytree(undisturbed, workdir)
    with unchanged(workdir / "checkpoints"), pytest.raises(UserError, match=r"=total_steps$"):
        small_run(workdir, total_steps=14)
    assert metrics_at(workdir, 12) and not read_run(workdir).changes

    for _ in range(2):  # a supervisor repeats its command line
        small_run(workdir, allow_changes=["total_steps"], total_steps=14)
    assert metrics_at(workdir, 14)["loss"]
    assert read_run(workdir).changes == [{"step": 12, "settings": {"total_steps": [12, 14]}}]
    assert capsys.readouterr().out.count("from step 12 on with other settings: total_steps") == 1
    assert "total_steps" in str(changes([Group("run", [read_run(workdir)])], None))


def test_new_evaluations_of_a_finished_run_are_run(small_run, undisturbed, pairs, tmp_path, capsys):
    workdir = tmp_path / "run"
    shutil.copytree(undisturbed, workdir)
    settings = {"data.validation": str(pairs)}
    assert small_run(workdir, **settings)["val/pairs"] == 24
    lines = (workdir / "metrics.jsonl").read_text()
    assert lines.startswith((undisturbed / "metrics.jsonl").read_text())
    capsys.readouterr()
    assert small_run(workdir, **settings)["val/pairs"] == 24
    assert (workdir / "metrics.jsonl").read_text() == lines  # they are there
    assert "the numbers of" not in capsys.readouterr().out
    small_run(workdir, **{"data.validation": f"{pairs.parent}/./{pairs.name}"})
    assert (workdir / "metrics.jsonl").read_text() == lines
    said = capsys.readouterr().out
    assert "the numbers of val are those of the settings before" in said
    assert f"`python -m cyclip_jax.evaluate --checkpoint={workdir}`" in said
