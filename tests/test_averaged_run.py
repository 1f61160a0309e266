"""Whole runs with frozen parts, rates and averages: continued, evaluated, exported, averaged."""

import json
import re
import shutil

import jax
import numpy as np
import pytest

from cyclip_jax import defaults
from cyclip_jax.average import average_models, main
from cyclip_jax.data.sources import create_source
from cyclip_jax.errors import UserError
from cyclip_jax.evaluate import evaluate_checkpoint
from cyclip_jax.export import export_checkpoint
from cyclip_jax.interop.pretrained import open_checkpoint
from cyclip_jax.report.write import write_report
from cyclip_jax.train import train
from cyclip_jax.workdir.checkpoints import AVERAGE, restore_model
from cyclip_jax.workdir.metrics import metrics_at
from tests import tiny
from tests.interop.models import RESNET, VIT, drawn_checkpoint
from tests.pages import commands_of, run_command
from tests.runs import status_of
from tests.test_sharded_run import configure

STEPS = 4
COMMANDS = commands_of("starting_from_weights.md")


def averaged(pairs):
    """A ViT with a frozen stem, rates by layer, and an average."""
    config = configure(pairs, fsdp=2).copy_and_resolve_references().unlock()
    config.evals.val = tiny.get_config().evals.val.copy_and_resolve_references()
    config.evals.val.pairs = str(pairs)
    config.tokens.update(defaults.get_config().tokens.to_dict())
    config.model.context_length = 24
    config.total_steps, config.checkpoint_every_steps = STEPS, 2
    config.optimizer.freeze = ("visual/conv1/.*", "visual/.*_embedding")
    config.optimizer.layer_decay, config.optimizer.tower_rates.visual = 0.8, 0.5
    config.average.kind, config.average.decay = "ema", 0.5
    return config


@pytest.fixture(scope="module")
def run(pairs, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("averaged") / "run"
    train(averaged(pairs), workdir)
    return workdir


def restored(workdir, item):
    return restore_model(workdir, None, item=item)[1]


def test_a_run_goes_on_with_the_average_that_it_had(run, pairs, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "checkpoints" / str(STEPS))
    train(averaged(pairs), tmp_path / "again")
    assert "continuing from step 2" in capsys.readouterr().out
    for item in ("model", "training", AVERAGE):
        first, second = (restored(path, item) for path in (run, tmp_path / "again"))
        assert jax.tree.structure(first) == jax.tree.structure(second)
        for one, other in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
            if not jax.dtypes.issubdtype(one.dtype, jax.dtypes.prng_key):
                np.testing.assert_array_equal(one, other)


def test_the_run_scores_its_average_beside_its_weights(run):
    metrics = metrics_at(run, STEPS)
    own = {name for name in metrics if name.startswith("val/")}
    assert own and {name.replace("val/", "val_of_average/") for name in own} <= metrics.keys()
    assert metrics["val/loss"] != metrics["val_of_average/loss"]
    assert (run / "evals" / "val_of_average" / "metrics.json").exists()
    page = write_report([run]).read_text()
    assert "val_of_average" in page


def test_evaluate_and_export_take_the_average(run, tmp_path):
    metrics = metrics_at(run, STEPS)
    found = evaluate_checkpoint(run, weights="average", output=tmp_path)
    assert found["val_of_average/loss"] == pytest.approx(metrics["val_of_average/loss"], rel=1e-5)
    assert (tmp_path / f"step_{STEPS}_of_average.json").exists()
    arguments = {"export_format": "open_clip", "output": tmp_path / "average"}
    export_checkpoint(run, weights="average", **arguments)
    exported = open_checkpoint(tmp_path / "average").weights
    average = open_checkpoint(run, weights="average")
    raw = open_checkpoint(run)
    for name, array in average.weights.items():
        np.testing.assert_array_equal(exported[name], array)
    same = {n for n, array in average.weights.items() if np.array_equal(array, raw.weights[n])}
    assert same == {
        "visual.conv1.weight",
        "visual.class_embedding",
        "visual.positional_embedding",
    }
    # The card has what the exported weights scored.
    assert average.metrics["val/loss"] == metrics["val_of_average/loss"]
    assert raw.metrics["val/loss"] == metrics["val/loss"]
    assert not any("of_average" in name for name in raw.metrics)


@pytest.mark.parametrize(
    "name, value", [("average.kind", "none"), ("average.kind", "beta"), ("optimizer.freeze", ())]
)
def test_a_run_with_another_state_is_not_continued(run, pairs, tmp_path, name, value):
    shutil.copytree(run, tmp_path / "run")
    config = averaged(pairs)
    config.update_from_flattened_dict({name: value})
    with pytest.raises(UserError, match=rf"another state: {name} .*--config\.init_from=WORKDIR"):
        train(config, tmp_path / "run", allow_changes=["optimizer", "average"])


def test_a_run_without_an_average_has_none_to_give(finished, tmp_path):
    with pytest.raises(UserError, match=r"kept no average .* leave out --weights=average"):
        open_checkpoint(finished[0], weights="average")
    export_checkpoint(finished[0], export_format="open_clip", output=tmp_path / "export")
    with pytest.raises(UserError, match=r"not the workdir of a run, .* leave out --weights"):
        open_checkpoint(tmp_path / "export", weights="average")


def test_patterns_are_compared_with_the_model_before_data_are_opened(pairs, tmp_path):
    config = averaged("/no/such/pairs.csv")
    config.optimizer.freeze = ("visual/con1/.*",)
    with pytest.raises(UserError, match=r"'visual/con1/\.\*', which .* visual/conv1/\.\*"):
        train(config, tmp_path / "run")


@pytest.fixture
def models(monkeypatch):
    """Names of drawn models that are opened as paths are."""
    made = {
        "a": (VIT, 0),
        "b": (VIT, 1),
        "deeper": ({**VIT, "text_layers": 3}, 0),
        "resnet": (RESNET, 0),
        "resnet2": (RESNET, 1),
    }
    from cyclip_jax.interop import interpolation

    def opened(path):
        settings, seed = made[path]
        return drawn_checkpoint(settings, {"tokenizer": "clip_bpe", "vocabulary": None}, seed)

    monkeypatch.setattr(interpolation, "open_checkpoint", opened)
    return interpolation.interpolated


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
def test_the_average_of_a_model_with_itself_is_the_model(models, alpha):
    found = models("a", "a", alpha=alpha).weights
    for name, array in models("a", "b", alpha=0).weights.items():
        np.testing.assert_array_equal(found[name], array)


def test_weights_lie_between_those_of_two_models(models):
    a, b = (models("a", "b", alpha=alpha).weights for alpha in (0, 1))
    for name, array in models("a", "b", alpha=0.25).weights.items():
        np.testing.assert_allclose(array, 0.75 * a[name] + 0.25 * b[name], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    "first, second, alpha, sentence",
    [
        ("a", "b", 1.5, "--alpha=1.5 must be from 0, which is a, to 1, b"),
        (
            "a",
            "deeper",
            0.5,
            r"differ in text_layers \(2 and 3\), so that there is nothing",
        ),
        ("resnet", "resnet2", 0.5, "have BatchNorm, .* name pictures .* with --data=PAIRS"),
    ],
)
def test_what_has_nothing_between_is_refused(models, first, second, alpha, sentence):
    with pytest.raises(UserError, match=sentence):
        models(first, second, alpha=alpha)


def test_statistics_are_taken_anew_on_pictures(models, pairs_csv):
    """Of one batch they are those by which training normalises it."""
    found = models("resnet", "resnet2", alpha=0.5, data=str(pairs_csv)).weights
    between = models("resnet", "resnet2", alpha=0.5, data=str(pairs_csv)).weights
    assert np.isfinite(found["visual.bn1.running_var"]).all()
    from cyclip_jax.interop import interpolation

    pictures = create_source("auto", str(pairs_csv), config_key="--data")
    (images,) = interpolation._batches(pictures, RESNET["image_size"], "shortest")
    assert images.shape == (24, 64, 64, 3)
    from cyclip_jax.models.clip import normalise_images
    from tests.pytorch import torch

    kernel = torch.tensor(found["visual.conv1.weight"])
    inputs = torch.tensor(np.array(normalise_images(images))).permute(0, 3, 1, 2)
    out = torch.nn.functional.conv2d(inputs, kernel, stride=2, padding=1)
    for name, expected in (("mean", out.mean((0, 2, 3))), ("var", out.var((0, 2, 3)))):
        np.testing.assert_allclose(
            found[f"visual.bn1.running_{name}"], expected, rtol=1e-4, atol=1e-5
        )
    a, b = (models("resnet", "resnet2", alpha=alpha).weights for alpha in (0, 1))
    np.testing.assert_allclose(
        between["visual.bn1.weight"], (a["visual.bn1.weight"] + b["visual.bn1.weight"]) / 2
    )


def test_the_command_writes_an_export_that_is_opened_again(run, tmp_path, capsys):
    first, second = (f"{run}/checkpoints/{step}" for step in (2, STEPS))
    output = tmp_path / "between"
    assert status_of(main, [first, second, "--alpha=0.5", f"--output={output}"]) == 0
    assert "open_clip_model.safetensors" in capsys.readouterr().out
    between, a, b = (open_checkpoint(path).weights for path in (output, first, second))
    for name, array in between.items():
        np.testing.assert_array_equal(array, ((a[name] + b[name].astype(float)) / 2).astype("f"))
    assert json.loads((output / "cyclip_jax.json").read_text())["format"] == "open_clip"
    assert status_of(main, [first, f"--output={output}"]) == 1
    assert "there are 1 models; name two, BEFORE and AFTER" in capsys.readouterr().err
    with pytest.raises(UserError, match="holds the model to be exported"):
        average_models(first, second, alpha=0.5, output=run)


@pytest.mark.slow
def test_every_command_of_the_page_runs(run, pairs, tmp_path, environment_with_torch):
    """In their order, on a small model and small pairs."""
    model = averaged(pairs).model.to_dict()
    small = [f"--config.model.{name}={value}" for name, value in model.items() if value is not None]
    small = ["--config.total_steps=2", *small, "--config.optimizer.warmup_steps=1"]
    small += ["--config.batch_size=16", "--config.data.tokenizer=sentencepiece"]
    small += ["--config.data.max_bad_share=0.1"]
    export_checkpoint(run, export_format="open_clip", output=tmp_path / "models" / "vit")
    assert len(COMMANDS) == 10
    for command in COMMANDS:
        own = small
        if "long_clip.py" in command:
            own = [*small[1:], "--config.model.context_length=36"]
        command = re.sub(r"(models|runs|exports)/", rf"{tmp_path}/\1/", command)
        command = command.replace("pairs.csv", str(pairs))
        run_command(environment_with_torch, command, *own)
    assert {path.name for path in (tmp_path / "exports").iterdir()} == {"average", "between"}
