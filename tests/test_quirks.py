"""What each deviation of the official code, named in configs/cc3m_reference.py, changes."""

import functools
import gzip
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from configs import cc3m_reference
from cyclip_jax import parallel
from cyclip_jax.data.tokenizers import create_tokenizer, pad_and_cut, train_sentencepiece
from cyclip_jax.errors import UserError
from cyclip_jax.evals import Output
from cyclip_jax.evals.data.labelled import open_images
from cyclip_jax.evals.flat import flat_numbers
from cyclip_jax.evals.retrieval import Retrieval, ranks_of_best_partner
from cyclip_jax.losses import cyclip_loss
from cyclip_jax.models import create_model
from cyclip_jax.models.clip import normalise_images, split_model, unit_norm
from cyclip_jax.models.presets import SIZES, round_to_float16
from cyclip_jax.models.resnet import BatchNorm
from cyclip_jax.train import train
from cyclip_jax.training.objective import Objective
from cyclip_jax.training.optimizer import adamw, create_optimizer, weight_decay_mask
from cyclip_jax.training.step import create_state, make_train_step
from cyclip_jax.workdir.metrics import metrics_at, read_metrics
from tests import tiny
from tests.conftest import unit_rows
from tests.evals.fakes import fake_encoders
from tests.pictures import write_pairs
from tests.training.test_step import LOSS

ADAMW = {"beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.1, "gradient_clip_norm": None}


def tiny_model(name, **arguments):
    return create_model(name, rngs=nnx.Rngs(0), **arguments)


def leaves(tree):
    """{names on the way joined by "/": leaf}."""
    return {
        "/".join(str(part.key) for part in path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def params_of(model):
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


# The schedule's offset


@pytest.mark.parametrize("warmup", [3, 6])
def test_the_schedule_is_taken_an_epoch_late_and_past_its_end(x64, warmup):
    epochs, batches, base = 3, 4, 2.0

    def official(epoch, i):
        step, total = epoch * batches + i, epochs * batches
        if step < warmup:
            return base * (step + 1) / warmup
        return base * (1 + math.cos(math.pi * (step - warmup) / (total - warmup))) / 2

    section = dict(cc3m_reference.get_config().optimizer)
    _, schedule = create_optimizer(
        **section | {"learning_rate": base, "warmup_steps": warmup},
        total_steps=epochs * batches,
        steps_per_epoch=batches,
    )
    expected = [official(epoch, i) for epoch in (1, 2, 3) for i in range(batches)]
    rates = [float(schedule(step)) for step in range(epochs * batches)]
    np.testing.assert_allclose(rates, expected, rtol=0, atol=1e-10)
    assert rates[0] > 0.8 * base  # of a warm-up of 3 steps nothing is left
    assert rates[8] < 1e-10 and rates[11] > rates[10] > rates[9] > 0.01  # it rises again


# The gather without gradient


class Towers(nnx.Module):
    """Two small towers, from pixels [N, H, W, 3] and ids [N, L] to unit-norm embeddings [N, 5]."""

    def __init__(self):
        rng = np.random.default_rng(0)
        self.visual = nnx.Param(jnp.asarray(rng.normal(size=(2 * 2 * 3, 5))))
        self.text = nnx.Param(jnp.asarray(rng.normal(size=(40, 5))))
        self.logit_scale = nnx.Param(jnp.asarray(1.5))

    def encode_image(self, images, kept_patches=None):
        return jnp.tanh(images.reshape(len(images), -1)) @ self.visual[...]

    def encode_text(self, tokens):
        return jnp.sin(self.text[...])[tokens].sum(axis=1)

    def __call__(self, images, tokens, kept_patches=None):
        image_embeds, text_embeds = self.encode_image(images), self.encode_text(tokens)
        return unit_norm(image_embeds), unit_norm(text_embeds), jnp.exp(self.logit_scale[...])


def test_four_devices_that_gather_without_gradient_have_a_quarter_of_it(x64):
    """Against four devices with 2 of the 8 rows each: all see the embeddings of all, and
    differentiate their own alone; the gradients' mean is what they step by."""
    devices, rows = 4, 2
    keep_gradient = optax.GradientTransformation(lambda params: params, lambda g, s, p: (g, g))
    state, graphdef = create_state(Towers, keep_gradient, seed=0), split_model(Towers())[0]
    rng = np.random.default_rng(1)
    batch = {
        "images": rng.integers(0, 256, (devices * rows, 2, 2, 3), np.uint8),
        "tokens": rng.integers(0, 40, (devices * rows, 6), np.int32),
    }

    def loss_on(device, params):
        gathered = []
        for other in range(devices):
            own = slice(other * rows, (other + 1) * rows)
            images = normalise_images(jnp.asarray(batch["images"][own]), jnp.float64)
            *embeds, scale = nnx.merge(graphdef, params, {})(images, batch["tokens"][own])
            gathered.append(embeds if other == device else jax.lax.stop_gradient(embeds))
        return cyclip_loss(*map(jnp.concatenate, zip(*gathered, strict=True)), scale, **LOSS)[0]

    @jax.jit
    def official_gradient(params):
        gradients = [jax.grad(loss_on, argnums=1)(device, params) for device in range(devices)]
        return jax.tree.map(lambda *parts: sum(parts) / devices, *gradients)

    step = make_train_step(
        graphdef,
        keep_gradient,
        lambda step: 0.0,
        normalise=functools.partial(normalise_images, dtype=jnp.float64),
        objective=Objective(detached_gather_devices=devices, **LOSS),
    )
    after, metrics = jax.jit(step)(state, batch)
    expected = jax.device_get(official_gradient(state.params))
    assert expected.keys() == {"visual", "text", "logit_scale"}
    for name, gradient in expected.items():
        assert np.linalg.norm(gradient) > 1e-3
        np.testing.assert_allclose(after.opt_state[name], gradient, rtol=0, atol=1e-10)
    norm = math.sqrt(sum(np.sum(gradient**2) for gradient in expected.values()))
    assert float(metrics["grad_norm"]) == pytest.approx(norm, rel=1e-10)


def test_the_gather_changes_gradients_alone_and_not_that_of_the_scale(x64):
    embeds = (unit_rows(0, 8, 5), unit_rows(1, 8, 5), 9.0)

    def value_and_gradient(devices):
        def loss(*arguments):
            return cyclip_loss(*arguments, detached_gather_devices=devices)

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(*embeds)

    true, gathered = value_and_gradient(1), value_and_gradient(3)
    jax.tree.map(np.testing.assert_array_equal, gathered[0], true[0])
    for factor, ours, expected in zip((3, 3, 1), gathered[1], true[1], strict=True):
        np.testing.assert_allclose(factor * ours, expected, rtol=0, atol=1e-10)


# BatchNorm per device


def test_each_group_of_images_is_normalised_as_if_it_were_alone(x64):
    images = np.random.default_rng(0).normal(size=(8, 3, 3, 2)) ** 2

    def normalised(images, group_size):
        shared = {"dtype": jnp.float64, "rngs": nnx.Rngs(0)}
        return BatchNorm(2, group_size=group_size, **shared)(jnp.asarray(images))

    grouped = normalised(images, 4)
    alone = [normalised(images[:4], None), normalised(images[4:], None)]
    np.testing.assert_allclose(grouped, jnp.concatenate(alone), rtol=0, atol=1e-10)
    assert np.abs(grouped - normalised(images, None)).max() > 1e-2


def test_the_group_size_of_the_config_reaches_the_norms():
    model = nnx.eval_shape(lambda: tiny_model("RN-tiny", batch_norm_group_size=32))
    norms = [norm for _, norm in nnx.iter_modules(model) if isinstance(norm, BatchNorm)]
    assert len(norms) == 3 + 4 * 4 and {norm.group_size for norm in norms} == {32}


# Weight decay by name


@pytest.mark.parametrize(
    "name, also_decayed",
    [
        (
            "RN-tiny",
            {f"visual/stages/{stage}/0/downsample_bn/scale" for stage in range(4)}
            | {"visual/attnpool/positional_embedding", "text/positional_embedding"},
        ),
        (
            "ViT-tiny",
            {
                "visual/class_embedding",
                "visual/positional_embedding",
                "text/positional_embedding",
            },
        ),
    ],
)
def test_official_names_decay_down_sampling_norms_and_positions_too(name, also_decayed):
    params = params_of(nnx.eval_shape(lambda: tiny_model(name)))

    def decayed(**rule):
        return {
            path for path, decays in leaves(weight_decay_mask(params, **rule)).items() if decays
        }

    assert decayed(rule="official_names") - decayed(rule="matrices") == also_decayed
    assert decayed() == decayed(rule="matrices") < decayed(rule="official_names")


def test_the_rule_decides_what_the_optimizer_decays():
    params = {"positional_embedding": jnp.ones((2, 3)), "ln_1": {"scale": jnp.ones(3)}}
    gradients = jax.tree.map(jnp.zeros_like, params)

    def updates(rule):
        optimizer = adamw(**ADAMW, weight_decay_rule=rule)
        return optimizer.update(gradients, optimizer.init(params), params)[0]

    np.testing.assert_array_equal(updates("matrices")["positional_embedding"], 0)
    np.testing.assert_array_equal(
        updates("official_names")["positional_embedding"], np.float32(0.1)
    )
    np.testing.assert_array_equal(updates("official_names")["ln_1"]["scale"], 0)


# Captions that are too long


@pytest.mark.parametrize("words", range(12))
def test_a_caption_too_long_loses_its_end_and_no_other_caption_changes(words):
    def row(keep_end_of_text):
        tokenizer = types.SimpleNamespace(
            vocab_size=64, context_length=8, keep_end_of_text=keep_end_of_text
        )
        return pad_and_cut([list(range(1, words + 1))], tokenizer)[0].tolist()

    start, end = 62, 63
    whole = [start, *range(1, words + 1), end]
    assert row(False) == (whole + 8 * [0])[:8]
    assert row(True) == (row(False) if words <= 6 else [start, 1, 2, 3, 4, 5, 6, end])
    assert (end in row(False)) == (words <= 6)


def rows_of(captions, name, **arguments):
    """Their tokens with and without the end of those too long."""
    return [
        create_tokenizer(name, keep_end_of_text=keep, **arguments)(captions)
        for keep in (True, False)
    ]


def test_clip_bpe_can_lose_the_end(tmp_path):
    path = tmp_path / "merges.txt.gz"
    path.write_bytes(gzip.compress(b"#version\nl o\n"))
    captions = ["a b", "a b c", "a b c d e f"]
    kept, cut = rows_of(captions, "clip_bpe", vocab_size=515, context_length=4, vocabulary=path)
    start, a, b, c, end = 513, 64 + 256, 65 + 256, 66 + 256, 514
    assert kept.tolist() == [[start, a, b, end]] * 3
    assert cut.tolist() == [[start, a, b, end], [start, a, b, c], [start, a, b, c]]


def test_the_text_tower_sees_nothing_of_a_caption_without_its_end(tmp_path):
    captions = ["cat dog bird tree car house cat dog", "house car tree bird dog cat house car"]
    path = train_sentencepiece(captions, vocab_size=32, output=str(tmp_path / "tokenizer.model"))
    kept, cut = rows_of(captions, "sentencepiece", vocab_size=32, context_length=8, vocabulary=path)
    model = tiny_model("ViT-tiny", vocab_size=32, context_length=8, text_layers=1, vision_layers=1)
    encode_text = jax.jit(lambda tokens: model.encode_text(tokens))
    one, other = encode_text(cut)
    np.testing.assert_array_equal(one, other)
    one, other = encode_text(kept)
    assert np.abs(one - other).max() > 1e-2


# Initial weights


@pytest.mark.parametrize("name", ["RN-tiny", "ViT-tiny"])
def test_layers_and_projections_are_rounded_to_float16_and_nothing_else(name):
    """Those of OpenAI's convert_weights; under jit, in which a run's state is created."""
    graphdef, params, batch_stats = split_model(nnx.eval_shape(lambda: tiny_model(name)))
    values = np.array([1 / 3, -1e-5, 6.1e-5, 2e-8, 0.0, -2.7], np.float32)  # some subnormal
    given = jax.tree.map(lambda leaf: np.resize(values, leaf.shape), params)

    @jax.jit
    def rounded(params):
        model = nnx.merge(graphdef, params, jax.tree.map(jnp.zeros_like, batch_stats))
        round_to_float16(model)
        return params_of(model)

    for path, value in leaves(rounded(given)).items():
        *_, module, leaf = ["", *path.split("/")]
        is_norm = module.startswith(("bn", "ln", "downsample_bn"))
        is_rounded = leaf in ("kernel", "text_projection", "proj") or (
            leaf == "bias" and not is_norm
        )
        expected = np.resize(values, value.shape)
        if is_rounded:
            expected = expected.astype(np.float16).astype(np.float32)
        np.testing.assert_array_equal(value, expected, err_msg=path, strict=True)


def test_the_config_decides_whether_initial_weights_are_rounded():
    @functools.partial(jax.jit, static_argnums=0)
    def initial_projection(dtype):
        model = tiny_model("ViT-tiny", initial_weights_dtype=dtype)
        return model.text.text_projection[...]

    exact, rounded = map(initial_projection, ("float32", "float16"))
    assert np.any(exact != exact.astype(jnp.float16).astype(jnp.float32))
    np.testing.assert_array_equal(rounded, np.asarray(rounded).astype(np.float16))
    np.testing.assert_allclose(rounded, exact, rtol=2**-11, atol=2**-25)


# Retrieval as published


def test_published_recall_is_that_of_an_array_of_ranks_five_times_too_long(tmp_path):
    """Written down as the official evaluation does it."""
    path = write_pairs(tmp_path)
    swap = {"red": "blue", "blue": "red"}
    encoders = fake_encoders(8, misread=lambda colour: swap.get(colour, colour))
    right = flat_numbers(Retrieval("x", pairs=str(path)).open()(encoders, Output()))
    both = flat_numbers(
        Retrieval("x", pairs=str(path), published_recall=True).open()(encoders, Output())
    )
    assert {name: both[name] for name in right} == right
    added = {name: both[name] for name in both.keys() - right.keys()}
    dataset = open_images(path, config_key="pairs")
    images, _ = encoders.image_embeds(dataset)
    texts = encoders.text_embeds(dataset.source.captions())
    ranks = ranks_of_best_partner(images, texts, np.arange(24), np.arange(24))
    official = np.zeros(5 * len(ranks))
    official[: len(ranks)] = ranks
    assert right["image_to_text_recall@1"] == 0.5
    assert added.keys() == {
        f"{chance}image_to_text_recall@{k}_as_published"
        for k in (1, 5, 10)
        for chance in ("", "chance_")
    }
    for k in (1, 5, 10):
        expected = np.mean(official < k)
        assert abs(added[f"image_to_text_recall@{k}_as_published"] - expected) <= 1e-10
    assert added["chance_image_to_text_recall@1_as_published"] == pytest.approx(0.8 + 0.2 / 24)


def test_captions_per_image_scores_the_first_captions_alone(tmp_path):
    path = write_pairs(tmp_path)
    once = flat_numbers(Retrieval("x", pairs=str(path)).open()(fake_encoders(8), Output()))
    header, *lines = path.read_text().splitlines()
    wrong = [line.replace("a red", "a blue").replace("a grey", "a red") for line in lines]
    five = [
        wrong_line for line, w in zip(lines, wrong, strict=True) for wrong_line in [line, *[w] * 4]
    ]
    path.write_text("\n".join([header, *five]))

    def score(captions_per_image):
        evaluate = Retrieval("x", pairs=str(path), captions_per_image=captions_per_image).open()
        return flat_numbers(evaluate(fake_encoders(8), Output()))

    assert score(1) == once
    assert score(2)["pairs"] == 48
    assert score(None)["pairs"] == 120

    path.write_text("\n".join([header, *wrong, *lines]))  # the first is the first in the file
    assert score(1)["image_to_text_recall@1"] < 1
    with pytest.raises(UserError, match=r"config.evals.x.captions_per_image"):
        score(0)


# All of them in one run


@pytest.mark.slow
def test_the_reference_config_takes_a_step(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "cyclip_jax.parallel.create_mesh",
        functools.partial(parallel.create_mesh, jax.devices()[:1]),  # it compiles faster
    )
    config, small = cc3m_reference.get_config(), tiny.get_config()
    path = write_pairs(tmp_path)
    header, *lines = path.read_text().splitlines()
    path.write_text("\n".join([header, *lines * 3]))  # 72 pairs
    for size in SIZES:
        config.model[size] = small.model[size]
    config.model.name = small.model.name
    config.data.train = str(path)
    config.data.tokenizer = "sentencepiece"
    config.batch_size = 64  # two groups for BatchNorm, and one step an epoch
    config.num_epochs = 5
    config.optimizer.warmup_steps = 4
    config.log_every_steps = 1

    train(config.lock(), tmp_path / "run")
    rates = [line["learning_rate"] for line in read_metrics(tmp_path / "run") if "loss" in line]
    # The warm-up lacks its first step; after the peak the cosine is at 0, and then at its peak.
    assert rates == pytest.approx(
        [5e-4 * lr for lr in (2 / 4, 3 / 4, 1, 1, 0)], rel=1e-6, abs=1e-12
    )
    assert metrics_at(tmp_path / "run", 5)["skipped_steps"] == 0


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"loss.detached_gather_devices": 0}, "config.loss.detached_gather_devices 0"),
        ({"optimizer.weight_decay_rule": "names"}, "unknown config.optimizer.weight_decay_rule"),
        ({"optimizer.schedule_offset_epochs": -1}, "schedule_offset_epochs must be at least 0"),
        ({"model.initial_weights_dtype": "bfloat16"}, "config.model.initial_weights_dtype"),
    ],
)
def test_what_is_no_such_setting_is_refused_before_anything_is_compiled(
    pairs_csv, tmp_path, monkeypatch, overrides, message
):
    monkeypatch.setattr("cyclip_jax.train.compile_phases", None)
    config = tiny.get_config()
    config.data.train = str(pairs_csv)
    config.update_from_flattened_dict(overrides)
    with pytest.raises(UserError, match=message):
        train(config, tmp_path / "run")
