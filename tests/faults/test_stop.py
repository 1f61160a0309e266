"""A run that is told to stop: while it compiles, trains, or evaluates."""

import os
import signal
import threading

import pytest

from cyclip_jax import train
from cyclip_jax.evals import Encoders
from cyclip_jax.workdir.metrics import read_metrics
from tests.test_train import mathematics


def test_ctrl_c_between_steps_says_which_one_it_saves_and_the_run_goes_on_from_there(
    small_run, tmp_path, at_step, monkeypatch, capsys
):
    compile_phases = train.compile_phases

    def interrupted(run, state):
        os.kill(os.getpid(), signal.SIGINT)
        threading.Event().wait(10)
        return compile_phases(run, state)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train, "compile_phases", interrupted)
        small_run(tmp_path)
    assert not list((tmp_path / "checkpoints").iterdir())
    capsys.readouterr()

    at_step(5, lambda: os.kill(os.getpid(), signal.SIGINT))
    assert small_run(tmp_path) is None
    told = capsys.readouterr().out.splitlines()
    assert "compiling the train step (about a minute; large models take several)" in told
    assert "stopping: saving step 5; once more ends the run at once, unsaved" in told
    assert told[-1] == "asked to stop at step 5; the same command continues from there"
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"4", "5"}

    assert small_run(tmp_path)["step"] == 12
    told = capsys.readouterr().out
    assert "continuing from step 5\n" in told and ", as at the last start)\n" in told


@pytest.mark.slow
def test_an_evaluation_that_is_stopped_is_done_again_by_the_next_command(
    small_run, pairs, tmp_path, monkeypatch
):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    settings = {"data.validation": str(pairs), "eval_every_steps": 6}
    small_run(whole, **settings)

    def told_to_stop(self, texts):
        os.kill(os.getpid(), signal.SIGTERM)
        return embed(self, texts)

    embed = Encoders.text_embeds
    with monkeypatch.context() as patch:
        patch.setattr(Encoders, "text_embeds", told_to_stop)
        assert small_run(stopped, **settings) is None
        assert {path.name for path in (stopped / "checkpoints").iterdir()} == {"4", "6"}
        assert not any("val/loss" in line for line in read_metrics(stopped))
        patch.setattr(Encoders, "text_embeds", embed)
        assert small_run(stopped, **settings)["val/loss"]
    assert mathematics(stopped) == mathematics(whole)
