import json
import math

import pytest

from cyclip_jax.evals.metric import Metric
from cyclip_jax.evals.output import Output
from cyclip_jax.train import train
from cyclip_jax.workdir.best import BestSoFar
from cyclip_jax.workdir.saved import saved_steps
from tests import tiny

NAME = "val/score"


def evaluated(value, better="more", name="score"):
    return {"val": {name: Metric(value, better=better)}}


def left_behind(workdir, values, better="more"):
    """A workdir of a run with these values by step."""
    lines = [{"step": step, NAME: value} for step, value in values.items()]
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    Output(workdir / "evals" / "val").about(evaluated(1.0, better)["val"])
    return workdir


@pytest.mark.parametrize("better, expected", [("more", 4), ("less", 2)])
def test_the_metric_itself_says_what_is_better(tmp_path, better, expected):
    best = BestSoFar(NAME, tmp_path, until=0)
    for step, value in ((2, 0.5), (4, 0.9), (6, 0.7)):
        assert best.add(step, evaluated(value, better)) is None
    assert [step for step in (2, 4, 6) if best.is_at(step)] == [expected]
    assert best.among([6]) == 6 and best.among([3]) is None
    assert best.summary([2, 4, 6]).endswith(f"is that of checkpoint {expected}")


@pytest.mark.parametrize("better, expected", [("more", 4), ("less", 2)])
def test_a_run_that_goes_on_knows_before_its_next_evaluation(tmp_path, better, expected):
    left_behind(tmp_path, {2: 0.5, 4: 0.9, 6: None, 8: 0.7, 10: 0.99, 12: 0.01}, better)
    best = BestSoFar(NAME, tmp_path, until=8)  # what was after that is trained anew
    assert best.among([2, 4, 6, 8, 10, 12]) == expected


def test_the_first_of_equal_values_stays(tmp_path):
    best = BestSoFar(NAME, tmp_path, until=0)
    for step in (2, 4):
        best.add(step, evaluated(0.5))
    assert best.among([4, 2]) == 2 and not best.is_at(4)


def test_a_value_that_is_not_finite_is_none(tmp_path):
    best = BestSoFar(NAME, tmp_path, until=0)
    best.add(2, evaluated(math.nan))
    assert best.among([2]) is None and not best.is_at(2)


def test_a_metric_that_an_evaluation_does_not_have_is_said_with_those_that_it_has(tmp_path):
    best = BestSoFar(NAME, tmp_path, until=0)
    told = best.add(2, evaluated(0.5, name="recall"))
    assert told.startswith("no checkpoint is kept for config.keep_best 'val/score': the evaluation")
    assert "'val' measures recall. Set it to one of these" in told
    told = best.add(2, evaluated(0.5, better=None))
    assert "neither more nor less of it is better" in told
    assert best.add(2, {}) is None  # the evaluation has failed, and has said so itself
    assert best.among([2]) is None


def test_no_metric_keeps_nothing(tmp_path):
    left_behind(tmp_path, {2: 0.5})
    best = BestSoFar(None, tmp_path, until=9)
    assert best.add(4, evaluated(0.9)) is None
    assert best.among([2, 4]) is None and not best.is_at(4) and best.summary([2]) is None


def test_a_run_keeps_its_best_checkpoint_beside_the_newest(
    pairs_csv, tmp_path, monkeypatch, capsys
):
    scores = {2: 0.2, 4: 0.9, 6: 0.3}
    config = tiny.get_config()
    own = {"model.name": "ViT-tiny", "model.vision_width": 16, "model.vision_layers": 1}
    own |= {"data.train": str(pairs_csv), "data.validation": str(pairs_csv), "keep_best": NAME}
    own |= {"total_steps": 6, "eval_every_steps": 2, "checkpoint_every_steps": 5}
    own |= {"keep_checkpoints": 1, "optimizer.warmup_steps": 1, "data.augmentation": "none"}
    config.update_from_flattened_dict(own)
    step = 0

    def evaluate(evaluators, *_, directory, **__):
        nonlocal step
        step += 2
        found = evaluated(scores[step])
        Output(directory / "val").about(found["val"])
        return found

    monkeypatch.setattr("cyclip_jax.evals.evaluate", evaluate)
    train(config, tmp_path)
    assert saved_steps(tmp_path) == [4, 6]  # neither 2, the best for a while, nor 5, which was due
    assert "the best val/score, 0.9, is that of checkpoint 4" in capsys.readouterr().out
