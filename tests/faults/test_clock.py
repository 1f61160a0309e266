"""A clock that jumps: nothing that matters depends on the time of day."""

import itertools
import time

import pytest

from cyclip_jax.workdir.checkpoints import Checkpointer
from tests.faults.test_disk import events, save, steps_on_disk
from tests.test_train import mathematics

HOUR, DAY = 3600, 24 * 3600


@pytest.fixture
def jump(monkeypatch):
    """Function that moves the clock by so many seconds."""
    now = time.time
    return lambda seconds: monkeypatch.setattr(time, "time", lambda: now() + seconds)


@pytest.mark.parametrize("seconds", [-HOUR, DAY])
def test_checkpoints_are_written_kept_and_chosen_by_step(tmp_path, jump, seconds):
    checkpointer = Checkpointer(tmp_path, keep=2)
    save(checkpointer, 1)
    assert checkpointer.wait() is None
    jump(seconds)
    for step in (2, 3):
        save(checkpointer, step)
        assert checkpointer.wait() is None
    checkpointer.close()
    assert steps_on_disk(tmp_path) == [2, 3]


def test_a_clock_that_runs_while_a_checkpoint_is_written_costs_that_one(
    tmp_path, monkeypatch, caplog
):
    now, readings = time.time, itertools.count()
    checkpointer = Checkpointer(tmp_path, keep=3)
    save(checkpointer, 1)
    assert checkpointer.wait() is None
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: now() + HOUR * next(readings))
        save(checkpointer, 2)
        assert "timed out" in str(checkpointer.wait()).lower()
    assert "CHECKPOINT 2 COULD NOT BE WRITTEN" in caplog.text
    save(checkpointer, 3)
    assert checkpointer.wait() is None
    checkpointer.close()
    assert steps_on_disk(tmp_path) == [1, 3]


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [-HOUR, DAY])
def test_a_run_whose_clock_jumps_writes_what_it_would_have(
    small_run, undisturbed, tmp_path, at_step, jump, seconds
):
    at_step(2, lambda: jump(seconds))
    small_run(tmp_path, keep_checkpoints=2)
    assert steps_on_disk(tmp_path) == [8, 12]
    small_run(tmp_path)  # continued from the last step, whatever its time
    assert mathematics(tmp_path) == mathematics(undisturbed)
    assert [step for step, _ in events(tmp_path)["loss"]] == list(range(1, 13))
