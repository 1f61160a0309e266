"""The alarm of a run whose embeddings are all equal."""

import math
import shutil
import types

import jax
import numpy as np
import pytest

from cyclip_jax import defaults, train
from cyclip_jax.data.order import Position
from cyclip_jax.losses.terms import Term
from cyclip_jax.training import open_run
from cyclip_jax.training.clipping import ClipAlarm
from cyclip_jax.training.collapse import CollapseAlarm, collapsed_steps
from cyclip_jax.training.objective import Objective
from cyclip_jax.workdir.console import Console
from cyclip_jax.workdir.metrics import MetricWriter, read_metrics
from tests import tiny
from tests.conftest import unit_rows

HEALTHY = {"contrastive_loss": 3.0, "embedding_rank": 9.0}


def alarm(warmup_steps=0, *, is_told=False, batch_size=128):
    return CollapseAlarm(
        Objective(), batch_size=batch_size, warmup_steps=warmup_steps, is_told=is_told
    )


def test_pairs_after_sentences_begin_as_a_new_run_does():
    """Counted from the beginning of the run, the first steps of pairs would give an alarm."""
    section = defaults.get_config().sentences.to_dict()
    section |= {"train": "captions", "only_steps": 3800}
    watched = CollapseAlarm(
        Objective(sentences=section), batch_size=128, warmup_steps=200, is_told=False
    )
    young = HEALTHY | {"contrastive_loss": math.log(128)}
    assert watched.check(3800, HEALTHY) == ({"collapsed": 0}, None)
    assert watched.check(3820, young) == ({}, None)
    assert watched.check(3950, young) == ({"collapsed": 0}, None)  # the rate still rises
    added, told = watched.check(4000, young)
    assert added == {"collapsed": 1} and "step 4000" in told


@pytest.mark.parametrize("scale", [1.0, 14.0, 100.0])
def test_a_term_knows_its_value_for_equal_embeddings(scale):
    objective, n = Objective(), 24
    equal = np.tile(unit_rows(0, 1, 16, np.float32), (n, 1))
    other = np.tile(unit_rows(1, 1, 16, np.float32), (n, 1))
    for texts in (equal, other):
        embeds = {"images": equal, "texts": texts}
        _, metrics = jax.jit(objective)(embeds, {}, {"logit_scale": scale})
        for name, value in objective.of_equal_embeds.items():
            assert float(metrics[name]) == pytest.approx(value(n), rel=1e-5)
    assert list(objective.of_equal_embeds) == ["contrastive_loss"]


@pytest.mark.parametrize(
    ("metrics", "collapsed"),
    [
        ({}, 0),
        ({"contrastive_loss": math.log(128)}, 1),
        ({"contrastive_loss": 1.009 * math.log(128)}, 1),
        ({"contrastive_loss": 0.991 * math.log(128)}, 1),
        ({"contrastive_loss": 0.985 * math.log(128)}, 0),
        ({"contrastive_loss": 1.02 * math.log(128)}, 0),
        ({"embedding_rank": 1.0}, 1),
        ({"embedding_rank": 1.2}, 0),
        ({"contrastive_loss": math.nan, "embedding_rank": math.nan}, 0),
    ],
)
def test_it_is_given_for_equal_embeddings_and_for_nothing_else(metrics, collapsed):
    added, told = alarm().check(100, HEALTHY | metrics)
    assert added == {"collapsed": collapsed}
    assert (told is not None) == bool(collapsed)


def test_it_is_given_once_and_counted_at_every_step():
    watch = alarm()
    found = [watch.check(step, HEALTHY | {"embedding_rank": 1.001}) for step in (150, 200)]
    assert [added for added, _ in found] == [{"collapsed": 1}] * 2
    assert "embedding_rank is 1.001" in found[0][1] and "cyclic_warmup_steps" in found[0][1]
    assert found[1][1] is None
    # Neither is it after the run was continued.
    lines = [{"step": step, **added} for step, (added, _) in zip((150, 200), found, strict=True)]
    assert collapsed_steps([{"step": 100, "collapsed": 0.0}, *lines, {"step": 9}]) == [150, 200]
    assert alarm(is_told=True).check(250, HEALTHY | {"embedding_rank": 1.0})[1] is None


def test_a_young_model_is_not_judged():
    equal = {"contrastive_loss": math.log(128), "embedding_rank": 1.0}
    assert alarm().check(99, equal) == ({}, None)
    # In the warm-up of the learning rate a term may stand still, but embeddings differ.
    late = alarm(warmup_steps=500)
    assert late.check(499, equal | {"embedding_rank": 5.0})[0] == {"collapsed": 0}
    assert late.check(500, equal | {"embedding_rank": 5.0})[0] == {"collapsed": 1}
    assert late.check(499, equal)[0] == {"collapsed": 1}


def test_another_loss_says_its_own_value():
    objective = Objective()
    objective.terms["other"] = Term(
        measure=lambda *_: ((), {}),
        weights={},
        reports={},
        of_equal_embeds={"other_loss": lambda n: n / 2},
    )
    watch = CollapseAlarm(objective, batch_size=8, warmup_steps=0, is_told=False)
    added, told = watch.check(100, HEALTHY | {"other_loss": 4.01})
    assert added == {"collapsed": 1}
    assert "other_loss is 4.01, and equal embeddings have 4" in told


def log_steps(workdir, steps, *, first_step):
    """Logs steps of a run whose embeddings are equal, as a run does that begins at first_step."""
    config = tiny.get_config()
    alarm = open_run._alarm(config, workdir)
    run = types.SimpleNamespace(
        alarm=alarm,
        clip_alarm=ClipAlarm(None),
        config=config,
        bad_examples=types.SimpleNamespace(count=0),
        source=None,
        total_steps=400,
        writer=MetricWriter(workdir, first_step=first_step, enabled=True),
        console=Console(workdir, enabled=True),
    )
    stage = types.SimpleNamespace(has_pairs=True)
    equal = {"contrastive_loss": math.log(8), "embedding_rank": 1.0, "loss": math.log(8)}
    for step in steps:
        metrics = equal | {"most_skipped_in_a_row": 0, "grad_norm": 1.0}
        train._log(run, step, Position(epoch=0, examples=0, seed=0), metrics, {}, 1.0, stage)
    run.writer.close()
    run.console.close()


def test_a_run_that_is_continued_gives_its_alarm_once(tmp_path, capsys):
    log_steps(tmp_path, (50, 100, 150), first_step=0)
    log_steps(tmp_path, (100, 150, 200), first_step=60)  # from a checkpoint before the alarm
    log_steps(tmp_path, (250, 300), first_step=200)
    for text in (capsys.readouterr().out, (tmp_path / "train.log").read_text()):
        assert text.count("ALARM: at step 100") == text.count("ALARM") == 1
    assert collapsed_steps(read_metrics(tmp_path)) == [100, 150, 200, 250, 300]


@pytest.mark.slow
def test_a_run_that_collapses_says_so(tmp_path):
    """CyCLIP as published, with a small ViT on drawings; it needs the extra `quickstart`."""
    small_data = pytest.importorskip("benchmarks.small_data")
    small_data.build(tmp_path / "drawings", small_data.drawings())
    config = small_data.runs(tmp_path / "drawings", others=True)["cc3m, ViT-tiny"]
    config.total_steps, config.log_every_steps, config.checkpoint_every_steps = 140, 10, 60
    config.eval_every_steps = 0
    train.train(config.lock(), tmp_path / "run")
    before = read_metrics(tmp_path / "run")
    assert collapsed_steps(before)[0] == 100
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "140")
    train.train(config.lock(), tmp_path / "run")  # from step 120
    assert collapsed_steps(read_metrics(tmp_path / "run")) == collapsed_steps(before)
    assert (tmp_path / "run" / "train.log").read_text().count("ALARM") == 1
    assert 'class="alarm"' in (tmp_path / "run" / "report.html").read_text()
