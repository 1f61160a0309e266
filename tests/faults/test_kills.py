"""A process that is killed while it writes a file, at every such moment."""

import os
import pathlib
import shutil
import signal
import subprocess
import sys

import pytest

from cyclip_jax.workdir.checkpoints import verify
from cyclip_jax.workdir.config_json import read_config
from cyclip_jax.workdir.metrics import read_metrics
from tests.faults.conftest import contents
from tests.runs import ROOT
from tests.test_train import mathematics

WRITER = """
import os, sys
from cyclip_jax.files import write_atomically
moment = int(sys.argv[2])

def kill_at_the_moment(event, args):
    global moment
    if event in ("open", "os.rename", "os.remove") and str(args[0]).startswith(sys.argv[1]):
        moment -= 1
        if moment == 0:
            os._exit(9)

sys.addaudithook(kill_at_the_moment)
write_atomically(sys.argv[1] + "/file", "new")
"""


def test_a_file_is_old_or_new_at_every_moment_of_its_writing(tmp_path):
    seen = []
    for moment in range(1, 10):
        (tmp_path / "file").write_text("old")
        code = subprocess.run([sys.executable, "-c", WRITER, tmp_path, str(moment)], cwd=ROOT)
        seen.append((tmp_path / "file").read_text())
        if code.returncode == 0:
            break
        assert code.returncode == 9
    assert seen[0] == "old" and seen[-1] == "new" and set(seen) == {"old", "new"}
    assert len(seen) >= 4  # open, rename, remove, and none


def states_of(process, workdir, copies):
    """Copies the workdir whenever the process stops, but for states that differ by a step alone."""
    seen = {}
    while True:
        _, status = os.waitpid(process.pid, os.WUNTRACED)
        if not os.WIFSTOPPED(status):
            assert status == 0
            return list(seen.values())
        shape = {
            (path.parent.name, path.name, content is None, bool(content))
            for path, content in contents(workdir).items()
            if not {"tensorboard", "figures", "d"} & set(path.parts)
        }
        key = frozenset(shape)
        if key not in seen:
            seen[key] = shutil.copytree(workdir, copies / f"{len(seen):03}")
        process.send_signal(signal.SIGCONT)


def assert_whole(workdir):
    """What a killed run left can be read, and every checkpoint with a name is a whole one."""
    read_metrics(workdir)
    if (workdir / "config.json").exists():
        read_config(workdir)
    steps = [p for p in (workdir / "checkpoints").glob("*") if p.name.isdigit()]
    for directory in sorted(steps, key=lambda path: int(path.name)):
        verify(directory, may_lack_checksums=True)
        assert (directory / "model" / "manifest.ocdbt").stat().st_size


@pytest.mark.slow
def test_killed_before_any_change_of_any_file_a_run_continues_as_if_never_stopped(
    environment, pairs, small_run, undisturbed, tmp_path
):
    workdir = tmp_path / "run"
    small = tmp_path / "small.py"
    small.write_text(
        "from tests.faults.conftest import small_config\n"
        f"def get_config():\n    return small_config({str(pairs)!r})\n"
    )
    script = pathlib.Path(__file__).with_name("stopping.py")
    flags = [f"--config={small}", f"--workdir={workdir}"]
    workdir.mkdir()
    with (tmp_path / "output").open("w") as output:
        process = subprocess.Popen(
            [sys.executable, script, workdir, "cyclip_jax.main", *flags],
            cwd=ROOT,
            env=environment | {"JAX_NUM_CPU_DEVICES": "8", "PYTHONPATH": str(ROOT)},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            states = states_of(process, workdir, tmp_path / "states")
        finally:
            process.kill()
    assert len(states) > 30
    for state in states:
        assert_whole(state)
    for state in states[:: len(states) // 8]:
        small_run(state)
        assert mathematics(state) == mathematics(undisturbed)
        assert not list(state.glob("*.tmp")) and not list(state.glob("checkpoints/*tmp"))
