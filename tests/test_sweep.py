import pathlib

import pytest

from configs import drawings, quickstart
from cyclip_jax import sweep
from cyclip_jax.data import emoji
from cyclip_jax.errors import UserError
from cyclip_jax.training.clipping import CLIPS
from cyclip_jax.training.settings import checked
from tests.runs import ROOT

OBJECTIVES = ROOT / "configs" / "sweeps" / "objectives.py"


def test_the_objectives_are_the_papers_four_with_their_seeds_and_nothing_else_differs():
    runs = sweep.read_runs(OBJECTIVES)
    weights = {
        name: (run.loss.inmodal_weight, run.loss.crossmodal_weight) for name, run in runs.items()
    }
    expected = {
        "cyclip": (0.25, 0.25),
        "clip": (0, 0),
        "c_cyclip": (0, 0.25),
        "i_cyclip": (0.25, 0),
    }
    seeds = {"cyclip": 10, "clip": 10, "c_cyclip": 3, "i_cyclip": 3}
    assert weights == {f"{k}_seed{s}": v for k, v in expected.items() for s in range(seeds[k])}
    pairs = [name for name in runs if name[-1] in "3456789"]
    assert pairs[:4] == ["cyclip_seed3", "clip_seed3", "cyclip_seed4", "clip_seed4"]
    base = drawings.get_config(data="{workdir}/../data")
    for name, run in runs.items():
        assert run.seed == int(name[-1])
        run.seed, run.eval_every_steps = base.seed, base.eval_every_steps
        run.loss = base.loss
        assert run.to_dict() == base.to_dict(), name


def test_the_weights_are_compared_whole_and_grown_in_and_nothing_else_differs():
    runs = sweep.read_runs(OBJECTIVES.with_name("weights.py"))
    assert not runs.keys() & sweep.read_runs(OBJECTIVES).keys()  # they may share a folder
    base = drawings.get_config(data="{workdir}/../data")
    found = {}
    for name, run in runs.items():
        arm, _, seed = name.partition("_seed")
        checked(run)
        assert run.loss.inmodal_weight == run.loss.crossmodal_weight
        found.setdefault((run.loss.inmodal_weight, run.loss.cyclic_warmup_steps), []).append(seed)
        assert ("grown" in arm) == bool(run.loss.cyclic_warmup_steps)
        run.seed, run.eval_every_steps = base.seed, base.eval_every_steps
        run.loss = base.loss
        assert run.to_dict() == base.to_dict(), name
    cells = [(0.05, 0), (1.0, 0), (0.05, 380), (0.25, 380), (1.0, 380)]
    assert found == {cell: ["0", "1", "2"] for cell in cells}


def test_recipes_are_judged_by_the_training_part_alone_and_the_chosen_one_is_the_quickstarts():
    runs = sweep.read_runs(OBJECTIVES.with_name("recipes.py"))
    for run in runs.values():
        checked(run)
        tables = [run.data.train, *(evaluation.pairs for evaluation in run.evals.values())]
        assert [pathlib.Path(table).name for table in tables] == [*emoji.TUNING_CSV_NAMES.values()]
    chosen, recipe = runs["quickstart_seed0"], quickstart.get_config()
    for config in (chosen, recipe):
        config.data.train, config.evals = None, {}
        config.eval_every_steps = config.checkpoint_every_steps = 0
    assert chosen.to_dict() == recipe.to_dict()


def test_the_quickstart_has_five_seeds_and_nothing_else_differs():
    runs = sweep.read_runs(OBJECTIVES.with_name("quickstart.py"))
    assert [run.seed for run in runs.values()] == [0, 1, 2, 3, 4]
    base = quickstart.get_config(data="{workdir}/../data")
    for run in runs.values():
        run.seed, run.eval_every_steps = base.seed, base.eval_every_steps
        assert run.to_dict() == base.to_dict()


def test_the_kinds_of_clipping_are_compared_with_three_seeds_and_nothing_else_differs():
    runs = sweep.read_runs(OBJECTIVES.with_name("clipping.py"))
    assert list(runs) == [f"{kind}_seed{seed}" for seed in range(3) for kind in CLIPS]
    base = drawings.get_config(data="{workdir}/../data")
    for name, run in runs.items():
        kind, _, seed = name.partition("_seed")
        assert (run.optimizer.gradient_clip, run.seed) == (kind, int(seed))
        checked(run)
        bound = 1.0 if kind == "norm" else None
        assert run.optimizer.gradient_clip_norm == bound
        run.seed, run.eval_every_steps = base.seed, base.eval_every_steps
        run.optimizer.update({"gradient_clip": "none"})
        run.optimizer.gradient_clip_norm = None
        assert run.to_dict() == base.to_dict(), name


def test_runs_are_trained_in_turn_and_reported_together(monkeypatch, tmp_path):
    trained = []

    def train(config, workdir, allow_changes):
        assert config.is_locked and allow_changes == ["total_steps"]
        trained.append((workdir.name, config.total_steps))
        return {}

    monkeypatch.setattr("cyclip_jax.train.train", train)
    monkeypatch.setattr(
        "cyclip_jax.report.write.write_report", lambda workdirs, output: (workdirs, output)
    )
    runs = sweep.read_runs(OBJECTIVES, only="c*_seed1", total_steps=7)
    workdirs, output = sweep.sweep(runs, tmp_path, allow_changes=["total_steps"])
    assert trained == [("cyclip_seed1", 7), ("clip_seed1", 7), ("c_cyclip_seed1", 7)]
    assert [workdir.name for workdir in workdirs] == [name for name, _ in trained]
    assert pathlib.Path(output) == tmp_path / "report.html"


@pytest.mark.parametrize("steps, warmup", [(1, 0), (60, 20), (760, 100)])
def test_a_run_to_try_a_sweep_out_has_room_for_its_warmup(steps, warmup):
    runs = sweep.read_runs(
        ROOT / "configs" / "sweeps" / "losses.py", only="uniform_seed0", total_steps=steps
    )
    config = runs["uniform_seed0"]
    assert config.total_steps == steps and config.optimizer.warmup_steps == warmup
    assert config.loss.uniformity_warmup_steps == warmup
    checked(config)


def test_a_signal_ends_the_sweep(monkeypatch, tmp_path):
    trained = []
    monkeypatch.setattr(
        "cyclip_jax.train.train", lambda config, workdir, allow_changes: trained.append(workdir)
    )
    assert sweep.sweep(sweep.read_runs(OBJECTIVES), tmp_path) is None
    assert len(trained) == 1


def test_a_run_that_fails_does_not_keep_the_others(monkeypatch, tmp_path):
    def train(config, workdir, allow_changes):
        if workdir.name == "clip_seed0":
            raise UserError("not finite")
        return {}

    reported = []
    monkeypatch.setattr("cyclip_jax.train.train", train)
    monkeypatch.setattr(
        "cyclip_jax.report.write.write_report", lambda workdirs, output: reported.extend(workdirs)
    )
    with pytest.raises(UserError, match="clip_seed0 failed; the others are in"):
        sweep.sweep(sweep.read_runs(OBJECTIVES, only="*_seed0"), tmp_path)
    assert [path.name for path in reported] == ["cyclip_seed0", "c_cyclip_seed0", "i_cyclip_seed0"]


def test_what_is_wrong_with_a_sweep_is_said(tmp_path):
    with pytest.raises(UserError, match="is not a Python file"):
        sweep.read_runs(tmp_path / "missing.py")
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(UserError, match=r"no function get_runs\(\)"):
        sweep.read_runs(tmp_path / "empty.py")
    with pytest.raises(UserError, match="matches none of cyclip_seed0, clip_seed0"):
        sweep.read_runs(OBJECTIVES, only="siglip")
