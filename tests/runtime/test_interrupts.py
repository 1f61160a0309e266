"""The first line of a command, and its last when Ctrl-C ends it."""

import hashlib
import os
import re
import signal
import threading

import pytest

from cyclip_jax.runtime import command
from cyclip_jax.runtime.clock import Clock
from cyclip_jax.runtime.distributed_flags import (
    _NUMBERS,
    define_distributed_flags,
)
from cyclip_jax.runtime.interrupts import heard_at_once
from cyclip_jax.runtime.loop import StopOnSignal
from tests.runs import status_of
from tests.terminals import Terminal

CONTINUES = "interrupted; the same command continues"
# {command: (its flags, what it says that it begins, its last line)}
COMMANDS = {
    "main": (["--config=tests/tiny.py"], "tests/tiny.py in runs/tiny", CONTINUES),
    "evaluate": (
        ["--checkpoint=run", "--config=tests/tiny.py"],
        "evaluation of run",
        "interrupted",
    ),
    "embed": (
        ["--checkpoint=run", "--data=x.csv", "--output=y"],
        "embedding of x.csv by run",
        CONTINUES,
    ),
    "export": (
        ["--checkpoint=run", "--format=onnx", "--output=y"],
        "export of run as onnx",
        "interrupted",
    ),
    "average": (["a", "b", "--output=y"], "the average of a and b for y", "interrupted"),
    "classify": (["run", "photos", "--classes=a,b"], "labels by run for photos", "interrupted"),
    "search": (["folder", "--static=x.html"], "search in folder", "interrupted"),
    "finetune": (["run", "x", "--workdir=y"], "fine-tuning of run to x in y", CONTINUES),
    "sweep": (
        ["--sweep=configs/sweeps/objectives.py"],
        "the runs of configs/sweeps/objectives.py in runs/objectives",
        CONTINUES,
    ),
    "data.inspect": (["--data=x.csv", "--output=y"], "inspection of x.csv", CONTINUES),
    "data.prepare": (["--input=x.csv", "--output=y"], "the data x.csv for y", CONTINUES),
}


@pytest.fixture(scope="module")
def slow_imports(tmp_path_factory):
    """An environment in which whatever takes seconds to import takes a minute, and says so."""
    folder = tmp_path_factory.mktemp("slow")
    for name in ("jax", "tensorflow", "orbax", "scipy", "pandas", "pyarrow"):
        (folder / name).mkdir()
        slow = f"import time\nprint('importing {name}', flush=True)\ntime.sleep(60)\n"
        (folder / name / "__init__.py").write_text(slow)
    return os.environ | {"PYTHONPATH": str(folder)}


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_the_first_line_comes_before_slow_imports_and_ctrl_c_during_them_is_one_line(
    name, slow_imports
):
    flags, begun, last = COMMANDS[name]
    terminal = Terminal(slow_imports, name, *flags)
    terminal.wait_for("importing ")
    terminal.press_ctrl_c()
    assert terminal.end() == 130
    first, imported, *rest = terminal.lines()
    assert first == f"starting: {begun}"
    assert imported.startswith("importing ") and rest == [last]


@pytest.mark.slow
def test_a_run_in_a_terminal_speaks_from_its_start_to_its_end_at_any_moment(
    environment, pairs, tmp_path
):
    data = [f"--config.data.{name}={pairs}" for name in ("train", "validation")]
    flags = ["--config=tests/tiny.py", f"--workdir={tmp_path}", *data]

    def interrupted(*moments):
        terminal = Terminal(environment, "main", *flags)
        for moment in moments:
            terminal.wait_for(moment)
        terminal.press_ctrl_c()
        status, lines = terminal.end(), terminal.lines()
        assert lines[0] == f"starting: tests/tiny.py in {tmp_path}"
        assert "Traceback" not in terminal.shown
        return status, lines

    compiling = "compiling the train step (about a minute; large models take several)"
    status, lines = interrupted(compiling)
    assert (status, lines[-1]) == (130, CONTINUES)
    assert not list((tmp_path / "checkpoints").iterdir())

    status, lines = interrupted(compiling, "at this speed for the remaining")
    (stopping,) = [line for line in lines if "stopping: saving step" in line]
    step = int(re.search(r"saving step (\d+);", stopping)[1])
    assert status == 0 and [path.name for path in (tmp_path / "checkpoints").iterdir()] == [
        str(step)
    ]
    assert any(f"asked to stop at step {step}; the same command continues" in x for x in lines)

    status, lines = interrupted("as at the last start)")
    assert (status, lines[-1]) == (130, CONTINUES)
    assert f"continuing from step {step}" in lines


def first_line(flags):
    """What a command says first whose flags are those of several processes."""
    argv = ["command", *flags]
    return command._start_in_words(lambda values: "it", define_distributed_flags, argv, None)


@pytest.mark.parametrize(
    ("flags", "is_first"),
    [
        ([], True),
        (["--distributed", "--process_id=0"], True),
        (["--distributed", "--process_id=1"], False),
        (["--distributed"], False),  # which only the cluster's metadata know
    ],
)
def test_of_several_processes_the_first_alone_speaks(flags, is_first, monkeypatch):
    for name in _NUMBERS:
        monkeypatch.delenv(name, raising=False)
    assert first_line(flags) == ("starting: it" if is_first else None)


def test_a_cluster_tells_which_process_is_the_first(monkeypatch):
    for number, line in (("0", "starting: it"), ("3", None)):
        monkeypatch.setenv("SLURM_PROCID", number)
        assert first_line(["--distributed"]) == line


@pytest.mark.parametrize("flags", [["--help"], ["--distribted"], ["--num_processes=x"], ["word"]])
def test_nothing_is_begun_where_a_command_is_refused_or_explained(flags):
    assert first_line(flags) is None


def test_a_command_within_a_process_says_the_same_of_ctrl_c(capsys):
    def interrupted(values):
        raise KeyboardInterrupt

    for continues, line in ((True, CONTINUES), (False, "interrupted")):

        def main(arguments, continues=continues):
            command.run(
                interrupted,
                lambda values: None,
                doc="It.",
                arguments=arguments,
                continues=continues,
            )

        assert status_of(main, []) == 130
        assert capsys.readouterr().err == f"{line}\n"


def in_the_middle_of_c_code(number, seconds=0.1):
    """Sends this process a signal while the main thread is in code that runs no Python."""
    timer = threading.Timer(seconds, os.kill, [os.getpid(), number])
    timer.start()
    hashlib.pbkdf2_hmac("sha256", b"", b"", 3_000_000)
    timer.join()


def test_a_run_says_which_step_it_saves_while_the_main_thread_waits_for_a_device():
    clock, said, in_step = Clock(), [], [True]
    clock.begin_training(40)
    clock.step_done(41)
    with StopOnSignal(clock, lambda text: said.append((text, in_step[0]))) as stop:
        stop.begin(40)
        assert not stop.requested()
        in_the_middle_of_c_code(signal.SIGINT)
        in_step[0] = False
        assert stop.requested() and stop.requested()
    # Step 42 has begun.
    assert said == [("stopping: saving step 42; once more ends the run at once, unsaved", True)]


def test_before_a_new_step_is_done_a_run_says_that_there_is_nothing_to_save():
    clock, said = Clock(), []
    with StopOnSignal(clock, said.append) as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested()
    assert said == ["stopping: there is nothing new to save"]
    clock, said = Clock(), []
    clock.begin_training(40)
    with StopOnSignal(clock, said.append) as stop, clock.phase("evaluation"):
        stop.begin(40)  # which owes an evaluation
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested()
    assert said == ["stopping: there is nothing new to save"]


def test_until_there_is_something_to_save_ctrl_c_is_left_to_the_command():
    with StopOnSignal(Clock(), pytest.fail) as stop:
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            threading.Event().wait(10)
        assert not stop.requested()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_what_does_not_concern_a_context_is_heard_around_it():
    heard, all_heard = [], threading.Event()

    def outer(number):
        heard.append(number)
        all_heard.set()
        return True

    handler = signal.signal(signal.SIGUSR2, lambda *_: None)
    with heard_at_once(outer), heard_at_once(lambda number: False):
        os.kill(os.getpid(), signal.SIGUSR2)
        assert all_heard.wait(10)
    signal.signal(signal.SIGUSR2, handler)
    assert heard == [signal.SIGUSR2]
    assert signal.set_wakeup_fd(-1) == -1  # nothing is left behind
