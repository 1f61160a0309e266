"""A text tower that learns to read longer texts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs import long_clip
from cyclip_jax import load
from cyclip_jax.errors import UserError
from cyclip_jax.evaluate import evaluate_checkpoint
from cyclip_jax.export import export_checkpoint
from cyclip_jax.interop.files import write_safetensors
from cyclip_jax.interop.long_texts import (
    check_stretch,
    stretched_positions,
    with_stretched_positions,
)
from cyclip_jax.interop.pretrained import open_checkpoint
from cyclip_jax.interop.weights import fit
from cyclip_jax.models.clip import unit_norm
from cyclip_jax.models.presets import create_model
from cyclip_jax.train import train
from cyclip_jax.training.opened_model import open_model
from tests.interop.models import VIT, abstract, drawn_weights

OLD = 77
# Bare weights do not tell their heads, which are taken for CLIP's.
HEADS_OF_64 = {"vision_width": 64, "vision_heads": 1, "text_width": 64, "text_heads": 1}


@pytest.mark.parametrize("keep", [0, 20])
@pytest.mark.parametrize("factor", [1, 2, 4])
def test_positions_on_a_line_stay_on_it(keep, factor):
    """The kept ones stay, and the others come to lie a factor closer together."""
    positions = np.arange(OLD)[:, None] * np.array([1.0, -2.0]) + np.array([3.0, 0.5])
    found = stretched_positions(positions, keep + factor * (OLD - keep), keep)
    np.testing.assert_array_equal(found[:keep], positions[:keep])
    places = keep + np.arange(factor * (OLD - keep))[:, None] / factor
    expected = places * np.array([1, -2]) + np.array([3, 0.5])
    np.testing.assert_allclose(found[keep:], expected, rtol=1e-12)


def test_it_is_the_interpolation_of_the_authors():
    """Row by row as in section 3.2: 77 positions become 248."""
    p = np.random.default_rng(0).normal(size=(OLD, 5))
    found = stretched_positions(p, 248, 20)
    expected = list(p[:20])
    for i in range(56):
        expected += [((4 - k) * p[20 + i] + k * p[21 + i]) / 4 for k in range(4)]
    expected += [p[76] + k * (p[76] - p[75]) / 4 for k in range(4)]
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-14)


def towers(dtype):
    """The text towers of a model and of the same one stretched, and the vocabulary's size."""
    short = {**VIT, "context_length": 30, "dtype": dtype}
    long = {**short, "context_length": 20 + 3 * 10}
    weights = drawn_weights(short)
    stretched = with_stretched_positions(weights, 50, 20, source="x")
    models = []
    for settings, own in ((short, weights), (long, stretched)):
        model = nnx.eval_shape(lambda s=settings: create_model(**s, rngs=nnx.Rngs(0)))
        graphdef, _ = nnx.split(model)
        tree = jax.tree.map(jnp.asarray, fit(own, abstract(settings), source="x"))
        models.append(nnx.merge(graphdef, tree["params"]))
    return models


def token_rows():
    """Six rows of 50 tokens, of which the last one's end lies behind the kept positions."""
    tokens = np.random.default_rng(0).integers(1, 38, (6, 50)).astype(np.int32)
    for row, end in enumerate((2, 5, 11, 17, 19, 25)):
        tokens[row, end] = 39
        tokens[row, end + 1 :] = 0
    return tokens


def test_texts_within_the_kept_positions_keep_their_embeddings_to_the_last_bit():
    short, long = towers("float32")
    before, after = (tower.text(token_rows()[:, :30]) for tower in (short, long))
    np.testing.assert_array_equal(before[:5], after[:5])
    assert not jnp.allclose(before[5], after[5], atol=1e-3)


def test_padding_behind_a_text_changes_the_rounding_alone(x64):
    short, long = towers("float64")
    before, after = short.text(token_rows()[:, :30]), long.text(token_rows())
    np.testing.assert_allclose(before[:5], after[:5], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "length, keep, sentence",
    [
        (70, 20, r"context_length 70 is not 20 \+ 57·n; set it to 134, 191, 248 or more"),
        (200, 20, r"leaves 57 positions of x, .* set it to 134, 191, 248"),
        (248, 76, "leaves fewer than two of the 77 positions of x to be stretched"),
    ],
)
def test_lengths_that_do_not_fit_are_refused(length, keep, sentence):
    weights = {"positional_embedding": np.zeros((OLD, 4))}
    with pytest.raises(UserError, match=sentence):
        with_stretched_positions(weights, length, keep, source="x")


@pytest.mark.parametrize(
    "keep, source, parts, model, sentence",
    [
        (-1, "x", (), {}, "-1 must be at least 0"),
        (20, None, (), {}, "config.init_from, which is not set"),
        (20, "x", ("visual",), {}, "which config.init_parts leaves out"),
        (20, "x", (), {"text_attention": "full"}, "read from left to right"),
        (20, "x", ("text",), {"text_pool": "last"}, "would change with the padding"),
    ],
)
def test_runs_that_cannot_stretch_are_refused(keep, source, parts, model, sentence):
    model = {"text_attention": "causal", "text_pool": "argmax", **model}
    check_stretch(None, source, parts, model)
    with pytest.raises(UserError, match=sentence):
        check_stretch(keep, source, parts, model)


def test_without_the_setting_a_longer_context_is_refused_with_it_by_name():
    weights = drawn_weights({**VIT, "context_length": 30})
    with pytest.raises(UserError, match=r"context_length=30 \(here 50\), or config\.init_keep_pos"):
        fit(weights, abstract({**VIT, "context_length": 50}), source="x")
    with pytest.raises(UserError, match=r"context_length=50 \(here 30\)$"):
        longer = drawn_weights({**VIT, "context_length": 50})
        fit(longer, abstract({**VIT, "context_length": 30}), source="x")


def test_a_run_reads_longer_texts_and_is_exported(finished, pairs, tmp_path, monkeypatch):
    monkeypatch.setattr(long_clip, "KEPT", 4)
    config = long_clip.get_config(str(finished[0]))
    assert config.model.context_length == 4 + 4 * (8 - 4)
    config.data.train = str(pairs)
    config.data.max_bad_share = 0.1
    config.batch_size, config.optimizer.warmup_steps = 8, 1
    with config.unlocked():
        config.num_epochs, config.total_steps = None, 2
    monkeypatch.setattr("cyclip_jax.train.report_at_end", lambda run, step: None)
    train(config, tmp_path / "run")
    before, after = (open_checkpoint(path).weights for path in (finished[0], tmp_path / "run"))
    assert before["positional_embedding"].shape == (8, 16)
    assert after["positional_embedding"].shape == (20, 16)
    expected = stretched_positions(before["positional_embedding"], 20, 4)
    np.testing.assert_allclose(after["positional_embedding"], expected, atol=1e-5)
    export_checkpoint(tmp_path / "run", export_format="open_clip", output=tmp_path / "export")
    assert open_checkpoint(tmp_path / "export").model["context_length"] == 20


LONG = "a red disc and a blue bar and a green ring and a grey cross"


def test_a_text_in_windows_is_the_mean_of_them_and_one_that_fits_is_as_before(finished):
    model, _, tokenize = load(finished[0])
    windowed = load(finished[0], text_windows=True)[2]
    texts = ["red", LONG]
    tokens = windowed(texts)
    assert tokens.shape[1] > 2 and not tokens[0, 1:].any()
    embeds = model.encode_text(tokens)
    np.testing.assert_array_equal(embeds[0], model.encode_text(tokenize(texts))[0])
    by_hand = np.mean([model.encode_text(window[None])[0] for window in tokens[1]], axis=0)
    np.testing.assert_allclose(embeds[1], by_hand, rtol=1e-5, atol=1e-6)
    assert not np.allclose(embeds[1], model.encode_text(tokenize(texts))[1], atol=1e-3)


def test_evaluators_read_windows_where_that_is_asked_for(finished, tmp_path):
    plain, windowed = (
        open_model(finished[0], batch_size=8, text_windows=is_asked).encoders
        for is_asked in (False, True)
    )
    texts = ["red", LONG, "bar"]
    cut, whole = (encoders.text_embeds(texts) for encoders in (plain, windowed))
    np.testing.assert_array_equal(cut[[0, 2]], whole[[0, 2]])
    model, _, tokenize = load(finished[0], text_windows=True)
    np.testing.assert_allclose(whole, unit_norm(model.encode_text(tokenize(texts))), atol=1e-6)
    assert abs(whole[1] - cut[1]).max() > 1e-3
    results = evaluate_checkpoint(finished[0], text_windows=True, output=tmp_path)
    assert results["val_of_windows/pairs"] == 24
    assert [path.name for path in tmp_path.glob("*.json")] == ["step_120_of_windows.json"]


def test_long_clip_says_what_is_missing(tmp_path):
    with pytest.raises(UserError, match=r"--config=configs/long_clip\.py:CHECKPOINT"):
        long_clip.get_config()
    write_safetensors(tmp_path / "short.safetensors", drawn_weights({**VIT, **HEADS_OF_64}))
    with pytest.raises(UserError, match="reads 9 tokens, too few to keep 20"):
        long_clip.get_config(tmp_path / "short.safetensors")
