"""What accompanies a long run, in whole runs: profiles, heartbeat, goodput, cache."""

import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from benchmarks import host_memory
from cyclip_jax import defaults
from cyclip_jax import train as training
from cyclip_jax.errors import UserError
from cyclip_jax.runtime import watch
from cyclip_jax.runtime.clock import PHASES
from cyclip_jax.runtime.watch import read_heartbeat
from cyclip_jax.train import train
from cyclip_jax.training import open_run
from cyclip_jax.workdir.metrics import read_metrics
from tests.runs import ROOT
from tests.runtime.test_profiling import steps_in
from tests.test_sharded_run import configure
from tests.test_train import mathematics

STALL = "stalled after step 4: "
HITS = "/jax/compilation_cache/cache_hits"


def configured(pairs):
    """A run of six steps with checkpoints at 3 and 6, that profiles and keeps what it compiles."""
    config = configure(pairs).unlock()
    config.tokens.update(defaults.get_config().tokens.to_dict())  # one step to compile
    config.profile_steps = (2, 3)
    config.compilation_cache = "{workdir}/compiled"
    config.stall_factor = 2.0
    return config.lock()


def held_up(open_batches, log):
    """open_batches, whose sixth batch comes once `log` tells of the stall that this makes."""

    def opened(*arguments, **settings):
        for number, batch in enumerate(open_batches(*arguments, **settings), start=1):
            deadline = time.monotonic() + 120
            while number == 6 and STALL not in log.read_text() and time.monotonic() < deadline:
                time.sleep(0.05)
            yield batch

    return opened


@pytest.fixture(scope="module")
def runs(pairs, tmp_path_factory):
    """(copy of a run's workdir, the same once its last three steps were done again, cache hits).

    The second process is asked for a profile while it compiles.
    """
    workdir = tmp_path_factory.mktemp("run")
    first = tmp_path_factory.mktemp("first")
    hits, compile_ahead = [], training.compile_phases

    def listen(event, **_):
        hits.append(event)

    def compile_and_ask(*arguments):
        os.kill(os.getpid(), signal.SIGUSR1)
        return compile_ahead(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        before = (
            jax.config.jax_compilation_cache_dir,
            (jax.config.jax_persistent_cache_min_compile_time_secs),
        )
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        config = configured(pairs)
        with pytest.MonkeyPatch.context() as stalling:
            stalling.setattr(watch, "LEAST_SECONDS", 0.1)
            stalling.setattr(watch, "LOOK_SECONDS", 0.05)
            opened = held_up(open_run.open_batches, workdir / "train.log")
            stalling.setattr(open_run, "open_batches", opened)
            train(config, workdir)
        shutil.copytree(workdir, first, dirs_exist_ok=True)
        shutil.rmtree(workdir / "checkpoints" / "6")
        jax.clear_caches()
        jax.monitoring.register_event_listener(listen)
        patch.setattr(training, "compile_phases", compile_and_ask)
        train(config, workdir)
        jax.monitoring.unregister_event_listener(listen)
        jax.config.update("jax_compilation_cache_dir", before[0])
        jax.config.update("jax_persistent_cache_min_compile_time_secs", before[1])
        compilation_cache.reset_cache()
    return first, workdir, hits.count(HITS)


def lines_of(workdir):
    return [line for line in read_metrics(workdir) if "loss" in line]


def test_the_second_start_takes_the_step_from_the_cache(runs):
    first, second, hits = runs
    compiled = {path.name for path in (first / "compiled").iterdir()}
    assert any("train_step" in name for name in compiled)
    assert hits >= 1
    added = {path.name for path in (second / "compiled").iterdir()} - compiled
    assert not any("train_step" in name for name in added)  # the restoring compiles a little


def test_the_chosen_steps_are_profiled_and_after_a_signal_the_next(runs):
    first, second, _ = runs
    assert steps_in(first) == {"step_2": [2, 3]}
    assert steps_in(second) == {"step_2": [2, 3], "step_4": [4, 5, 6]}


def test_a_profile_changes_no_number(runs):
    assert mathematics(runs[0]) == mathematics(runs[1])


def test_a_batch_that_does_not_come_is_told_while_the_run_waits(runs):
    *_, told = (runs[0] / "train.log").read_text().partition(STALL)
    first_line, _, stacks = told.partition("\n")
    assert first_line.endswith("the host waits for data")
    assert "thread MainThread:" in stacks and "in opened" in stacks
    assert "the stall after step 4 is over" in stacks


def test_every_training_line_says_where_the_time_went(runs):
    for workdir in runs[:2]:
        for line in lines_of(workdir):
            seconds = {phase: line[f"{phase}_seconds"] for phase in PHASES[:-1]}
            assert all(value >= 0 for value in seconds.values())
            assert line["goodput"] == pytest.approx(
                seconds["training"] / sum(seconds.values()), rel=1e-6
            )
            assert 0 <= line["data_wait_share"] <= 1
    for phase in ("startup", "compile", "training", "checkpoint", "profile"):
        assert lines_of(runs[0])[-1][f"{phase}_seconds"] > 0


def test_goodput_of_all_processes_counts_steps_done_again_as_lost(runs):
    first, second = map(read_heartbeat, runs[:2])
    assert (first["step"], first["phase"]) == (second["step"], second["phase"]) == (6, "end")
    assert first["seconds"]["redone"] == 0
    lost = min(3 * first["seconds_per_step"], first["seconds"]["training"])
    assert second["seconds"]["redone"] == pytest.approx(lost)
    assert sum(second["seconds"].values()) > sum(first["seconds"].values())
    line = lines_of(runs[1])[-1]
    assert 0 < line["goodput_of_all_processes"] < 1
    assert line["goodput_of_all_processes"] != line["goodput"]


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("profile_steps", (5, 4), "config.profile_steps"),
        ("wandb.entity", "me", "config.wandb.project"),
    ],
)
def test_bad_settings_are_refused_before_the_data_is_opened(tmp_path, name, value, message):
    config = configure("/no/such.csv").copy_and_resolve_references()
    config.update_from_flattened_dict({name: value})
    with pytest.raises(UserError, match=message):
        train(config, tmp_path / "run")


def test_a_signal_while_jax_is_imported_ends_nothing(environment, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "cyclip_jax.main", "--config=configs/cc3m.py"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    ignored, bit = 0, 1 << (signal.SIGUSR1 - 1)
    while not ignored & bit:  # Python itself is still starting
        status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
        ignored = int(status.split("SigIgn:")[1].split()[0], 16)
    while process.poll() is None:
        process.send_signal(signal.SIGUSR1)
        time.sleep(0.01)
    assert "error: config.data.train is empty" in process.communicate()[0]
    assert process.returncode == 1


def test_growth_is_the_slope_after_the_caches_are_full():
    rows = [{"step": 100, "mebibytes": 1.0}, {"step": 200, "mebibytes": 60.0}]
    rows += [{"step": step, "mebibytes": 100 + step / 1024} for step in range(300, 1001, 100)]
    assert host_memory.growth(rows) == pytest.approx(1)
