"""A trained model, whoever wrote it: loaded, started from, evaluated."""

import csv
import json
import shutil
import time

import numpy as np
import pytest
from etils import epath
from PIL import Image

import cyclip_jax
from cyclip_jax.errors import UserError
from cyclip_jax.evals.statistics.ranking import ranks_of_best_partner
from cyclip_jax.evaluate import evaluate_checkpoint
from cyclip_jax.export import export_checkpoint
from cyclip_jax.interop.pretrained import open_checkpoint
from cyclip_jax.interop.weights import weights_of
from cyclip_jax.train import train
from cyclip_jax.training.open_run import open_run
from cyclip_jax.workdir.metrics import metrics_at
from tests import tiny
from tests.interop.models import embed
from tests.pictures import draw
from tests.runs import wait_for_step


@pytest.fixture(scope="module")
def exports(finished, tmp_path_factory):
    """{what: path} of the trained run in every form that is read."""
    folder = tmp_path_factory.mktemp("exports")
    for name in ("open_clip", "cyclip"):
        export_checkpoint(finished[0], export_format=name, output=folder / name)
    return {
        "workdir": finished[0],
        "open_clip": folder / "open_clip",
        "openai.pt": folder / "open_clip" / "openai.pt",
        "safetensors": folder / "open_clip" / "open_clip_model.safetensors",
        "cyclip": folder / "cyclip",
        "cyclip.pt": folder / "cyclip" / "cyclip.pt",
    }


FORMS = ("open_clip", "openai.pt", "safetensors", "cyclip", "cyclip.pt")


@pytest.fixture(scope="module")
def embeddings(finished):
    model, preprocess, tokenize = cyclip_jax.load(finished[0])
    return embed(model, preprocess(draw("ring", "red")), tokenize("a red ring"))


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_loaded_as_the_same_model(exports, embeddings, form):
    model, preprocess, tokenize = cyclip_jax.load(exports[form])
    found = embed(model, preprocess(draw("ring", "red")), tokenize("a red ring"))
    for ours, expected in zip(found, embeddings, strict=True):
        np.testing.assert_array_equal(ours, expected)


def test_three_lines_embed_a_picture_and_a_sentence(exports, pairs):
    model, preprocess, tokenize = cyclip_jax.load(exports["workdir"])
    rows = list(csv.DictReader(pairs.read_text().splitlines()))[:24]
    paths = [pairs.parent / row["image"] for row in rows]
    captions = [row["caption"] for row in rows]
    image_embeds, text_embeds, scale = embed(model, preprocess(paths), tokenize(captions))
    assert image_embeds.shape == text_embeds.shape == (24, 16)
    assert float(scale) > 1
    own = np.arange(24)
    embeds = np.asarray(image_embeds), np.asarray(text_embeds)
    recall = np.mean(ranks_of_best_partner(*embeds, own, own) < 1)
    assert recall == metrics_at(exports["workdir"], 120)["val/image_to_text_recall@1"]


def test_preprocess_takes_a_picture_however_it_comes(exports, tmp_path):
    _, preprocess, tokenize = cyclip_jax.load(exports["open_clip"])
    pixels = draw("cross", "blue")
    Image.fromarray(pixels).save(tmp_path / "a.png")
    encoded = (tmp_path / "a.png").read_bytes()
    forms = [tmp_path / "a.png", str(tmp_path / "a.png"), encoded, Image.open(tmp_path / "a.png")]
    expected = preprocess(pixels)
    assert expected.shape == (1, 32, 32, 3) and expected.dtype == np.float32
    for form in forms:
        np.testing.assert_array_equal(preprocess(form), expected)
    assert preprocess([*forms, pixels]).shape == (5, 32, 32, 3)
    assert tokenize("a blue cross").shape == (1, 8) and tokenize(["a", "b"]).shape == (2, 8)
    for wrong, message in (
        (pixels.astype(np.float32), "uint8"),
        (pixels[..., 0], "uint8"),
        (b"no picture", "cannot be decoded as a picture"),
    ):
        with pytest.raises(UserError, match=message):
            preprocess(wrong)


def test_a_bare_file_is_taken_to_be_openais_and_said_to_be(exports, tmp_path, caplog):
    bare = tmp_path / "weights.pt"
    shutil.copy(exports["cyclip.pt"], bare)
    with pytest.raises(UserError, match="do not divide into 0 heads"):
        cyclip_jax.load(bare)  # 16 channels; OpenAI's heads have 64
    with caplog.at_level("WARNING"):
        model, _, tokenize = cyclip_jax.load(bare, vision_heads=4, text_heads=2)
    assert "does not tell all of its settings; these are assumed: quick_gelu=True." in caplog.text
    assert model.text.transformer.resblocks[0].quick_gelu
    with pytest.raises(UserError, match="has a tokenizer that is not ours"):
        tokenize("a red ring")


@pytest.mark.parametrize(
    "path, message",
    [
        ("/no/such.pt", "there is no file or directory"),
        ("tests", "should hold one file of weights"),
    ],
)
def test_what_is_no_model_is_named(path, message):
    with pytest.raises(UserError, match=message):
        cyclip_jax.load(path)


def test_a_step_is_of_a_workdir_alone(exports):
    model, _, _ = cyclip_jax.load(exports["workdir"], step=100)
    assert model.visual is not None
    with pytest.raises(UserError, match=r"no checkpoint of step 7; choose one of 80, 100, 120"):
        cyclip_jax.load(exports["workdir"], step=7)
    with pytest.raises(UserError, match="has no step 100 to choose"):
        cyclip_jax.load(exports["open_clip"], step=100)


def tiny_config(pairs, **overrides):
    config = tiny.get_config()
    config.data.train = config.data.validation = str(pairs)
    config.update_from_flattened_dict(overrides)
    return config


@pytest.mark.parametrize("form", ["open_clip", "openai.pt"])
def test_evaluate_gives_the_figures_of_the_run_for_an_export(exports, pairs, tmp_path, form):
    results = evaluate_checkpoint(exports[form], config=tiny_config(pairs), output=tmp_path)
    expected = metrics_at(exports["workdir"], 120)
    for name, value in results.items():
        assert value == pytest.approx(expected[name], rel=1e-5), name
    assert len(results) > 10
    assert json.loads((tmp_path / "step_120.json").read_text()) == results


def test_evaluate_wants_data_for_what_is_no_run(exports, pairs, tmp_path):
    with pytest.raises(UserError, match=r"name its data with --zeroshot, --retr.* with --config$"):
        evaluate_checkpoint(exports["open_clip"])
    named = {"pairs": {"type": "retrieval", "pairs": str(pairs)}}
    results = evaluate_checkpoint(exports["open_clip"], evaluations=named, output=tmp_path)
    recall = metrics_at(exports["workdir"], 120)["val/text_to_image_recall@5"]
    assert results["pairs/text_to_image_recall@5"] == recall


@pytest.mark.slow
def test_a_run_with_the_sigmoid_loss_goes_to_open_clip_with_its_bias(pairs, tmp_path):
    config = tiny_config(pairs, **{"loss.contrastive": "sigmoid", "model.logit_bias": True})
    config.total_steps, config.optimizer.warmup_steps, config.log_every_steps = 2, 0, 1
    config.model.vision_tower, config.model.patch_size = "vit", 16
    config.model.vision_layers = 1
    metrics = train(config, tmp_path / "run")
    assert metrics["logit_bias"] != -10
    export_checkpoint(tmp_path / "run", export_format="open_clip", output=tmp_path / "export")
    model, _, _ = cyclip_jax.load(tmp_path / "export")
    assert float(model.logit_bias[...]) == metrics["val/logit_bias"]


def start_state(config, workdir):
    """The state that a run begins with."""
    with open_run(config, epath.Path(workdir), began=time.monotonic()) as (_, start):
        return start.state


def test_a_run_starts_from_the_very_weights_and_vocabulary(exports, pairs, tmp_path):
    state = start_state(tiny_config(pairs, init_from=str(exports["openai.pt"])), tmp_path)
    found = weights_of({"params": state.params, "batch_stats": state.batch_stats})
    for name, array in open_checkpoint(exports["workdir"]).weights.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)
    own, inherited = exports["workdir"] / "tokenizer.model", tmp_path / "tokenizer.model"
    assert inherited.read_bytes() == own.read_bytes()


def test_a_run_without_torch_starts_from_safetensors(exports, start, environment, tmp_path):
    """The environment poisons torch already; safetensors alone is let in."""
    path = environment["PYTHONPATH"]
    shutil.move(f"{path}/safetensors", f"{path}/was_safetensors")
    try:
        process = start(tmp_path, f"--config.init_from={exports['open_clip']}")
        wait_for_step(process, tmp_path, 1)
    finally:
        shutil.move(f"{path}/was_safetensors", f"{path}/safetensors")
    process.kill()
    assert "starting from the parameters of step 120" in process.communicate()[0]
    assert metrics_at(tmp_path, 1)["loss"] < metrics_at(exports["workdir"], 1)["loss"] / 2


@pytest.mark.parametrize(
    "overrides, message",
    [
        (
            {"model.quick_gelu": False},
            "quick_gelu is True in the checkpoint and False in the model",
        ),
        ({"model.text_heads": 4}, "text_heads is 2 in the checkpoint and 4 in the model"),
        ({"model.embed_dim": 32}, r"text_projection \(\[16, 16\] here, \[16, 32\] in the model\)"),
        ({"model.text_layers": 2}, r"missing \(12\)"),
        ({"model.name": "ViT-tiny", "model.vision_width": 64}, r"unexpected \("),
    ],
)
def test_a_start_that_does_not_fit_is_refused_before_anything_is_compiled(
    exports, pairs, tmp_path, monkeypatch, overrides, message
):
    monkeypatch.setattr("cyclip_jax.train.compile_phases", None)
    config = tiny_config(pairs, init_from=str(exports["open_clip"]), **overrides)
    with pytest.raises(UserError, match=message):
        train(config, tmp_path / "run")


def test_a_start_at_another_image_size_interpolates(exports, pairs, tmp_path, caplog):
    config = tiny_config(pairs, init_from=str(exports["workdir"]), **{"model.image_size": 64})
    with caplog.at_level("WARNING"):
        state = start_state(config, tmp_path)
    assert "interpolated to 2×2" in caplog.text
    assert state.params["visual"]["attnpool"]["positional_embedding"].shape == (5, 256)
