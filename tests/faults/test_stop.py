"""A run that is told to stop while it evaluates."""

import os
import signal

import pytest

from cyclip_jax.evals import Encoders
from cyclip_jax.workdir.metrics import read_metrics
from tests.test_train import mathematics


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
