"""A run whose towers come from different places, and LiT."""

import json

import numpy as np
import pytest

from configs import lit
from cyclip_jax.errors import UserError
from cyclip_jax.interop.pretrained import open_checkpoint
from cyclip_jax.interop.weights import fit, weights_of
from cyclip_jax.train import train
from cyclip_jax.training.starting_point import takes_texts
from cyclip_jax.workdir.config_json import read_config
from tests import tiny
from tests.interop.models import RESNET, VIT, abstract, drawn_weights
from tests.interop.test_pretrained import start_state
from tests.pytorch import open_clip, torch


def is_image(name):
    return name.startswith("visual.")


@pytest.mark.parametrize("settings", [RESNET, VIT], ids=["resnet", "vit"])
def test_only_the_parts_that_are_named_are_taken(settings):
    weights = drawn_weights(settings)
    found = weights_of(fit(weights, abstract(settings), source="x", parts=("visual",)))
    assert found.keys() == {name for name in weights if is_image(name)}
    for name, array in found.items():
        np.testing.assert_array_equal(array, weights[name])
    found = weights_of(fit(weights, abstract(settings), source="x", parts=("text", "logit_scale")))
    assert found.keys() == {name for name in weights if not is_image(name)}


def test_the_other_parts_may_be_of_any_size():
    """The text tower of the source has another vocabulary, width and depth."""
    weights = drawn_weights({**VIT, "vocab_size": 99, "text_width": 24, "text_layers": 3})
    found = fit(weights, abstract(VIT), source="x", parts=("visual",))
    assert found["params"].keys() == {"visual"}
    with pytest.raises(UserError, match=r"the weights need config\.model\.vocab_size=99 \(here 40"):
        fit(weights, abstract(VIT), source="x", parts=("text",))


def test_a_part_is_taken_whole_or_not_at_all():
    weights = drawn_weights({**VIT, "vision_layers": 3})
    with pytest.raises(
        UserError, match=r"unexpected \(12\)(.|\n)*need config\.model\.vision_layers=3"
    ):
        fit(weights, abstract(VIT), source="x", parts=("visual",))
    del weights["visual.proj"]
    with pytest.raises(UserError, match=r"missing \(1\):\n +visual\.proj"):
        fit(weights, abstract({**VIT, "vision_layers": 3}), source="x", parts=("visual",))


@pytest.fixture(scope="module")
def of_open_clip(tmp_path_factory):
    """The folder of a small ResNet that open_clip made, and the model."""
    folder = tmp_path_factory.mktemp("open_clip")
    model_cfg = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 64},
        "text_cfg": {
            "context_length": 77,
            "vocab_size": 49408,
            "width": 16,
            "heads": 2,
            "layers": 1,
        },
        "quick_gelu": True,
    }
    torch.manual_seed(0)
    model = open_clip.CLIP(**model_cfg).eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if "running" in name or "bn3.weight" in name:
                tensor.uniform_(0.5, 1.5)
    torch.save(model.state_dict(), folder / "open_clip_pytorch_model.bin")
    described = {"model_cfg": model_cfg, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3}}
    (folder / "open_clip_config.json").write_text(json.dumps(described))
    return folder, {name: tensor.numpy() for name, tensor in model.state_dict().items()}


def locked(folder, pairs, **overrides):
    """configs/lit.py with a small text tower and a vocabulary of these captions."""
    config = lit.get_config(folder)
    config.data.train, config.data.tokenizer = str(pairs), "sentencepiece"
    sizes = tiny.get_config().model
    config.model.vocab_size, config.model.context_length = sizes.vocab_size, sizes.context_length
    config.batch_size, config.total_steps, config.optimizer.warmup_steps = 8, 2, 1
    config.data.max_bad_share = 0.1
    config.update_from_flattened_dict(overrides)
    return config


@pytest.mark.slow
def test_lit_trains_a_text_tower_of_its_own_beside_the_image_tower_of_open_clip(
    of_open_clip, pairs, tmp_path
):
    folder, theirs = of_open_clip
    config = locked(folder, pairs)
    assert config.model.vision_layers == (1, 1, 1, 1) and config.data.image_mean == (0.5,) * 3
    train(config, tmp_path / "run")
    trained = open_checkpoint(tmp_path / "run").weights
    for name in filter(is_image, trained):
        if not name.endswith("num_batches_tracked"):
            np.testing.assert_array_equal(trained[name], theirs[name], err_msg=name)
    assert trained["token_embedding.weight"].shape == (64, 16)
    log = (tmp_path / "run" / "train.log").read_text()
    assert f"starting from the parameters of {folder} (visual alone)" in log
    # The vocabulary is the run's own, of these captions.
    assert (tmp_path / "run" / "tokenizer.model.json").exists()
    # It goes on without the file that it began with.
    again = locked(folder, pairs, total_steps=3)
    again.init_from = "/gone"
    train(again, tmp_path / "run", allow_changes=["total_steps"])
    assert list(read_config(tmp_path / "run").init_parts) == ["visual"]


def test_what_is_not_taken_is_drawn_from_the_seed(of_open_clip, pairs, tmp_path):
    folder, theirs = of_open_clip
    config = locked(folder, pairs)
    state = start_state(config, tmp_path / "a")
    config.init_from, config.init_parts = None, ()
    drawn = start_state(config, tmp_path / "b")
    found, own = (weights_of({"params": s.params, "batch_stats": {}}) for s in (state, drawn))
    for name, array in found.items():
        np.testing.assert_array_equal(array, theirs[name] if is_image(name) else own[name])


@pytest.mark.parametrize(
    "parts, taken", [((), True), (("visual",), False), (("text",), True), (("logit_scale",), False)]
)
def test_the_vocabulary_comes_with_the_text_tower(parts, taken):
    config = tiny.get_config()
    config.init_from, config.init_parts = "weights", parts
    assert takes_texts(config) is taken
    config.init_from = None
    assert not takes_texts(config)


def test_lit_says_what_is_missing():
    with pytest.raises(UserError, match=r"name the model .* --config=configs/lit\.py:CHECKPOINT"):
        lit.get_config()
