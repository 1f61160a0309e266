"""Chosen steps are traced, whole and by name, on request too; nothing of it can end a run."""

import gzip
import json
import os
import signal

import jax
import jax.numpy as jnp
import pytest

from cyclip_jax.errors import UserError
from cyclip_jax.runtime.clock import Clock
from cyclip_jax.runtime.profiling import Profiler, check_profile_steps


@pytest.fixture
def profile(tmp_path):
    """Function (steps, first=…, last=…, signals=…) that runs a loop; returns {first: steps}."""
    step_fn = jax.jit(lambda state: jnp.tanh(state @ state))

    def profile(steps, *, first=1, last=8, signals=(), workdir=tmp_path):
        state, said = jnp.eye(8), []
        with Profiler(workdir, steps, clock=Clock(), say=said.append) as profiler:
            for step in range(first, last + 1):
                with profiler.step(step, state):
                    state = step_fn(state)
                    if step in signals:
                        os.kill(os.getpid(), signal.SIGUSR1)
                profiler.step_done(step, state)
        return said

    return profile


def steps_in(workdir):
    """{name of a trace: numbers of the steps in it}."""
    traces = {}
    for folder in sorted((workdir / "profile" / "plugins" / "profile").iterdir()):
        data = jax.profiler.ProfileData.from_file(str(folder / "process_0.xplane.pb"))
        events = [event for plane in data.planes for line in plane.lines for event in line.events]
        numbers = {dict(event.stats).get("step_num") for event in events if event.name == "train"}
        traces[folder.name] = sorted(int(number) for number in numbers)
    return traces


def test_the_chosen_steps_are_traced_and_no_others(profile, tmp_path):
    said = profile((3, 5))
    assert steps_in(tmp_path) == {"step_3": [3, 4, 5]}
    assert len(said) == 1 and said[0].startswith(f"profile: {tmp_path}/profile/plugins")
    events = tmp_path / "profile/plugins/profile/step_3/process_0.trace.json.gz"
    assert json.loads(gzip.decompress(events.read_bytes()))["traceEvents"]


def test_a_run_that_goes_on_in_the_middle_traces_what_is_left(profile, tmp_path):
    profile((3, 5), first=5, last=8)
    assert steps_in(tmp_path) == {"step_5": [5]}


def test_a_trace_ends_with_the_run_and_what_is_over_is_not_traced(profile, tmp_path):
    profile((3, 5), first=6, last=7)
    assert not (tmp_path / "profile").exists()
    profile((7, 100), first=6, last=8)
    assert steps_in(tmp_path) == {"step_7": [7, 8]}


def test_a_signal_traces_the_next_ten_steps_and_another_ten_more(profile, tmp_path):
    before = signal.getsignal(signal.SIGUSR1)
    profile(None, last=30, signals=(2, 7))
    assert steps_in(tmp_path) == {"step_3": [*range(3, 13)], "step_13": [*range(13, 23)]}
    assert signal.getsignal(signal.SIGUSR1) == before


def test_a_signal_before_the_first_step_is_kept(tmp_path):
    with Profiler(tmp_path, None, clock=Clock(), say=print) as profiler:
        os.kill(os.getpid(), signal.SIGUSR1)  # while the step is compiled, say
        with profiler.step(1, None):
            pass
    assert steps_in(tmp_path) == {"step_1": [1]}


def test_a_profile_that_cannot_be_written_is_told_and_the_steps_go_on(profile, tmp_path):
    (tmp_path / "file").touch()
    said = profile((1, 2), workdir=tmp_path / "file")
    assert len(said) == 1 and "the profile from step 1 on was not written" in said[0]
    profile((1, 2))
    assert steps_in(tmp_path) == {"step_1": [1, 2]}  # the profiler is free again


def test_another_trace_that_is_being_taken_is_left_alone(profile, tmp_path):
    with jax.profiler.trace(str(tmp_path / "other")):
        said = profile((1, 2))
    assert len(said) == 1 and said[0].startswith("step 1 is not profiled")
    assert list((tmp_path / "other").rglob("*.xplane.pb"))
    assert not (tmp_path / "profile").exists()


@pytest.mark.parametrize("steps", [10, (10,), (5, 4), (0, 3), (1.0, 2), ("1", "2"), (1, 2, 3)])
def test_steps_that_are_no_range_are_refused(steps):
    with pytest.raises(UserError, match=r"config\.profile_steps .* is not \(first, last\)"):
        check_profile_steps(steps)


def test_a_range_or_nothing_is_taken():
    check_profile_steps((1, 1))
    check_profile_steps((10, 19))
    check_profile_steps(None)
