"""The table of terms, and a step that serves a term which only these tests have."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest
from flax import nnx

from cyclip_jax import defaults, parallel
from cyclip_jax.costs import hlo
from cyclip_jax.errors import UserError
from cyclip_jax.losses import cyclip_loss
from cyclip_jax.losses.terms import PAIRS, Reported, Term
from cyclip_jax.models.clip import MAX_LOGIT_SCALE, normalise_images, split_model
from cyclip_jax.training import objective as table
from cyclip_jax.training.flops import matmul_flops
from cyclip_jax.training.objective import TERMS, Objective, configured_objective
from cyclip_jax.training.optimizer import adamw
from cyclip_jax.training.step import create_state, embed_rows, jit_step, make_train_step
from tests.conftest import unit_rows
from tests.training import test_step as of_step
from tests.training.test_step import ROWS, VIT, make_state, worst_difference

SECOND = {"weight": 0.7, "temperature": 0.5}
VIT_SIZES = {name: size for name, size in VIT.items() if name != "name"}


def second_captions(*, weight, temperature, learns_scale=False):
    """The mean of share · (1 − ⟨T, T″⟩) / temperature, over pairs with a second caption T″."""

    def measure(embeds, batch, scales, axis_names):
        scale = scales["second_scale"] if learns_scale else 1 / temperature
        cosines = jnp.sum(embeds["texts"] * embeds["second_texts"], axis=1)  # [n]
        value, cosine = (batch["second_shares"] * (1 - cosines)).mean(), cosines.mean()
        if axis_names:
            value, cosine = jax.lax.pmean((value, cosine), axis_names)
        return (scale * value,), {"second_cosine": cosine}

    return Term(
        measure=measure,
        weights={"second_caption": weight},
        reports={
            "second_caption_loss": Reported(meaning="The second captions' term"),
            "second_cosine": Reported(meaning="Their cosine", unit="number", better="more"),
        },
        rows={"texts": PAIRS["texts"], "second_texts": ("text", "second_tokens")},
        batch_keys=("second_shares",),
        scales=("second_scale",) if learns_scale else (),
    )


@pytest.fixture
def second_term(monkeypatch):
    """The table with the term of these tests."""
    monkeypatch.setattr(table, "TERMS", {**TERMS, "second": second_captions})


def make_batch(dtype="float32"):
    shares = np.random.default_rng(7).uniform(size=ROWS).astype(dtype)
    second = of_step.make_batch(seed=3)
    return of_step.make_batch() | {
        "second_tokens": second["tokens"],
        "second_images": second["images"],
        "second_shares": shares,
    }


def pair_of(n=24, d=16):
    return {"images": unit_rows(0, n, d), "texts": unit_rows(1, n, d)}


SETTINGS = [
    {},
    {"inmodal_weight": 0.0},
    {"inmodal_weight": 0, "crossmodal_weight": 0},
    {
        "crossmodal_weight": 0.5,
        "cyclic_normalization": "batch_size_free",
        "detached_gather_devices": 3,
        "chunk_size": 5,
    },
]


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("devices", [1, 8])
def test_the_objective_is_the_public_loss_to_the_last_bit(settings, devices):
    mesh = parallel.create_mesh(jax.devices()[:devices])
    objective = Objective(**settings)

    def ours(images, texts, scale):
        embeds = {"images": images, "texts": texts}
        return objective(embeds, {}, {"logit_scale": scale}, mesh=mesh)

    def public(images, texts, scale):
        return cyclip_loss(images, texts, scale, mesh=mesh, **settings)

    def of(function):
        gradient = jax.value_and_grad(function, (0, 1, 2), has_aux=True)
        return jax.jit(gradient)(*pair_of().values(), 14.0)

    jax.tree.map(np.testing.assert_array_equal, of(ours), of(public))


def test_the_metrics_are_those_that_the_table_tells_of():
    objective = Objective()
    _, metrics = objective(pair_of(), {}, {"logit_scale": 14.0})
    assert sorted(metrics) == sorted(["loss", "temperature", *objective.reports])


def test_a_further_term_is_shown_after_those_that_were_there(second_term):
    told = list(Objective(second=SECOND).reports)
    assert told == [*Objective().reports, "second_caption_loss", "second_cosine"]


def test_a_term_whose_section_is_missing_is_left_out(second_term):
    assert list(Objective().terms) == ["contrastive", "cyclic"]
    assert list(Objective(second=SECOND).terms) == ["contrastive", "cyclic", "second"]
    with pytest.raises(TypeError, match="temperature"):  # no setting has a second default
        Objective(second={"weight": 1.0})


def test_clip_measures_consistency_and_leaves_nothing_else_in(second_term):
    objective = Objective(inmodal_weight=0, crossmodal_weight=0.0, second=SECOND | {"weight": 0.0})
    assert list(objective.terms) == ["contrastive", "cyclic"]
    assert objective.rows == PAIRS
    assert objective.batch_keys == ()
    assert Objective(second=SECOND).rows.keys() == {"images", "texts", "second_texts"}


def test_a_traced_weight_of_zero_is_a_number_like_any_other(second_term):
    terms = []
    jax.eval_shape(lambda w: terms.extend(Objective(second=SECOND | {"weight": w}).terms), 0.0)
    assert terms == ["contrastive", "cyclic", "second"]


def test_a_term_has_its_own_section_of_the_config(second_term):
    config = defaults.get_config()
    config.second = ml_collections.ConfigDict(SECOND)
    assert configured_objective(config).terms["second"].weights == {"second_caption": 0.7}


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"inmodal_wieght": 0.1}, "config.loss.inmodal_wieght is not a setting.*inmodal_weight"),
        ({"cyclic_normalization": "mean"}, "one of reference, batch_size_free"),
        ({"chunk_size": 0}, "config.loss.chunk_size 0 must be at least 1"),
        ({"cyclic_warmup_steps": -1}, "config.loss.cyclic_warmup_steps -1 must be at least 0"),
        ({"detached_gather_devices": 0}, "config.loss.detached_gather_devices 0"),
    ],
)
def test_what_is_wrong_with_the_section_is_said_when_it_is_constructed(settings, message):
    with pytest.raises(UserError, match=message):
        Objective(**settings)


@pytest.mark.parametrize("step, share", [(0, 0.0), (3, 0.3), (10, 1.0), (500, 1.0), (None, 1.0)])
def test_the_cyclic_weights_grow_over_their_warm_up(step, share):
    objective = Objective(cyclic_warmup_steps=10, inmodal_weight=0.5, crossmodal_weight=0)

    @functools.partial(jax.jit, static_argnums=1 if step is None else ())
    def loss(scale, step):
        return objective(pair_of(), {}, {"logit_scale": scale}, step=step)

    value, metrics = loss(14.0, step)
    expected = metrics["contrastive_loss"] + share * 0.5 * metrics["inmodal_cyclic_loss"]
    assert float(value) == pytest.approx(float(expected), rel=1e-6)
    if step is not None:
        assert float(metrics["inmodal_weight"]) == pytest.approx(share * 0.5)
        assert float(metrics["crossmodal_weight"]) == 0
        assert sorted(metrics) == sorted(["loss", "temperature", *objective.reports])


def test_an_objective_without_a_weight_is_an_error():
    objective = Objective(inmodal_weight=0, crossmodal_weight=0).only("cyclic")
    with pytest.raises(ValueError, match="no term"):
        objective(pair_of(), {}, {})


# The step: it embeds what the terms ask for.


def step_of(objective, *, devices=8, optimizer=None, **options):
    """(step, state, batch, mesh) of a small ViT in float32, as shapes on the devices."""
    optimizer = optimizer or optax.identity()
    state, graphdef = make_state(optimizer, "float32", perturb=0.1, **VIT)
    mesh = parallel.create_mesh(jax.devices()[:devices])
    step = make_train_step(
        graphdef, optimizer, lambda step: 0.5, objective=objective, mesh=mesh, **options
    )
    batch = parallel.to_global(make_batch(), mesh)
    return step, jax.device_put(state, parallel.replicated(mesh)), batch, mesh


def lowered(objective, **options):
    step, state, batch, mesh = step_of(objective, **options)
    sharding = jax.tree.map(lambda leaf: leaf.sharding, state)
    return jit_step(step, mesh=mesh, state_sharding=sharding).lower(state, batch)


def test_a_term_of_weight_zero_leaves_the_program_as_it_is(monkeypatch):
    without = lowered(Objective(**of_step.LOSS)).as_text()
    monkeypatch.setattr(table, "TERMS", {**TERMS, "second": second_captions})
    at_zero, with_term = (
        lowered(Objective(**of_step.LOSS, second=SECOND | {"weight": weight})).as_text()
        for weight in (0.0, 0.7)
    )
    assert at_zero == without
    assert with_term != without


def test_without_a_warm_up_of_the_cyclic_weights_the_step_leaves_the_program_as_it_is():
    without, at_zero, grown = (
        lowered(Objective(**of_step.LOSS, **warmup)).as_text()
        for warmup in ({}, {"cyclic_warmup_steps": 0}, {"cyclic_warmup_steps": 5})
    )
    assert at_zero == without
    assert grown != without


def test_a_step_takes_the_weights_of_its_own_number(x64):
    """So that a run that is continued goes on where the weights were."""
    state, graphdef = of_step.perturbed_state("float64", **VIT)
    objective = Objective(cyclic_warmup_steps=10, **of_step.LOSS)
    normalise = functools.partial(normalise_images, dtype=jnp.float64)
    step = make_train_step(
        graphdef, optax.identity(), lambda _: 0.0, objective=objective, normalise=normalise
    )
    for number, share in ((0, 0.0), (7, 0.7), (10, 1.0), (400, 1.0)):
        at = dataclasses.replace(state, step=jnp.asarray(number, jnp.int32))
        _, metrics = jax.jit(step)(at, of_step.make_batch())
        assert float(metrics["inmodal_weight"]) == pytest.approx(0.25 * share)
        cyclic = metrics["inmodal_cyclic_loss"] + metrics["crossmodal_cyclic_loss"]
        expected = metrics["contrastive_loss"] + 0.25 * share * cyclic
        assert float(metrics["loss"]) == pytest.approx(float(expected), rel=1e-6)


def test_a_term_of_weight_zero_costs_no_flop_and_no_collective(second_term):
    def costs(**sections):
        objective = Objective(**of_step.LOSS, **sections)
        step, state, batch, _ = step_of(objective)
        collectives = hlo.collectives(lowered(objective).compile().as_text())
        return matmul_flops(step, state, batch), sum(
            each.executions * each.bytes for each in collectives
        )

    nothing, at_zero, at_work = costs(), costs(second=SECOND | {"weight": 0}), costs(second=SECOND)
    assert at_zero == nothing
    assert at_work[0] > nothing[0]
    assert at_work[1] > nothing[1]


def test_further_rows_stay_on_their_devices(second_term):
    """No array with rows of the batch is sent for the sake of embedding them in one pass."""
    kinds = [
        {each.kind for each in hlo.collectives(lowered(Objective(**s)).compile().as_text())}
        for s in ({}, {"second": SECOND})
    ]
    assert kinds[1] == kinds[0]


def run_second(devices=1, **step):
    """Loss and gradient in float64 of a step with the term of these tests."""
    with jax.enable_x64(True):
        state, graphdef = of_step.perturbed_state("float64", **VIT)
        objective = Objective(**of_step.LOSS, chunk_size=3, second=SECOND)
        batch = make_batch("float64")
        return of_step.run_on(
            devices, state, graphdef, batch, "float64", objective=objective, **step
        )


@pytest.fixture(scope="module")
def second_on_one_device():
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(table, "TERMS", {**TERMS, "second": second_captions})
        return run_second()


@pytest.mark.parametrize("devices, step", [(8, {"fsdp": 2}), (1, {"micro_batches": 4})])
def test_a_further_term_has_one_gradient_on_any_mesh_and_in_micro_batches(
    second_term, second_on_one_device, devices, step
):
    assert worst_difference(run_second(devices, **step), second_on_one_device) <= 1e-10


def test_a_further_term_adds_its_weighted_value_and_gradient(second_on_one_device, x64):
    """Against the loss of pairs and the term's formula, each with its own passes of the tower."""
    state, graphdef = of_step.perturbed_state("float64", **VIT)
    batch = make_batch("float64")
    normalise = functools.partial(normalise_images, dtype=jnp.float64)

    @jax.jit
    @jax.value_and_grad
    def loss(params):
        model = nnx.merge(graphdef, params, state.batch_stats)
        images, texts, scale = model(normalise(batch["images"]), batch["tokens"])
        second = model.encode_text(batch["second_tokens"])
        second /= jnp.linalg.norm(second, axis=1, keepdims=True)
        away = batch["second_shares"] * (1 - jnp.sum(texts * second, axis=1))
        return cyclip_loss(images, texts, scale, **of_step.LOSS)[0] + 0.7 / 0.5 * away.mean()

    value, gradient = loss(state.params)
    expected = {"loss": value, "gradient": gradient, "stats": state.batch_stats}
    expected = jax.tree_util.tree_leaves_with_path(jax.device_get(expected))
    assert worst_difference(second_on_one_device, expected) <= 1e-10


@pytest.mark.parametrize("start", [0.5, MAX_LOGIT_SCALE])
def test_a_term_may_learn_a_scale_of_its_own(monkeypatch, start):
    learned = functools.partial(second_captions, learns_scale=True)
    monkeypatch.setattr(table, "TERMS", {**TERMS, "second": learned})

    def create():
        model = of_step.creator("ViT-tiny", "float32", **VIT_SIZES)()
        model.second_scale = nnx.Param(jnp.asarray(start, jnp.float32))
        return model

    state = create_state(create, optax.identity(), seed=0)
    model = nnx.eval_shape(create)
    model.train()
    objective = Objective(second={"weight": -0.7, "temperature": 1.0})
    rate = 2.0
    step = make_train_step(
        split_model(model)[0], optax.identity(), lambda step: rate, objective=objective
    )
    after, metrics = jax.jit(step)(state, make_batch())
    # The derivative of exp(σ)·value by σ is exp(σ)·value.
    expected = start + rate * 0.7 * float(metrics["second_caption_loss"])
    assert expected > start
    expected = min(expected, MAX_LOGIT_SCALE)  # bounded as the other scale is
    assert float(after.params["second_scale"]) == pytest.approx(expected, rel=1e-5)
    assert float(metrics["temperature"]) == pytest.approx(0.07, rel=1e-5)


# Rows of one tower


@pytest.mark.parametrize("name", ["RN-tiny", "ViT-tiny"])
def test_further_rows_are_embedded_as_by_themselves(name):
    sizes = {} if name == "RN-tiny" else VIT
    state, graphdef = make_state(optax.identity(), "float32", perturb=0.1, **{"name": name} | sizes)
    batch = make_batch()
    batch["short_tokens"] = np.array([[5, 39, 0]] * ROWS, np.int32)
    if name == "ViT-tiny":
        batch["kept_patches"] = np.tile(np.array([[0, 2, 3]], np.int32), (ROWS, 1))
    rows = dict(PAIRS)
    rows |= {"views": ("visual", "second_images"), "second_texts": ("text", "second_tokens")}
    rows["short_texts"] = ("text", "short_tokens")

    @jax.jit
    def embedded(params):
        model = nnx.merge(graphdef, params, state.batch_stats, copy=True)
        model.eval()
        alone = [embed_rows(model, batch, {name: row})[name] for name, row in rows.items()]
        return embed_rows(model, batch, rows), dict(zip(rows, alone, strict=True))

    together, by_themselves = embedded(state.params)
    assert together.keys() == rows.keys()
    for row, alone in by_themselves.items():
        np.testing.assert_allclose(together[row], alone, rtol=0, atol=1e-5)


def test_batch_norm_sees_the_pictures_and_their_views_as_one_batch(x64):
    """The statistics of [x; x] are those of x, so that a view that is its picture changes none."""
    state, graphdef = of_step.perturbed_state("float64")
    batch = make_batch("float64")
    normalise = functools.partial(normalise_images, dtype=jnp.float64)

    @functools.partial(jax.jit, static_argnums=0)
    def embedded(keys):
        variables = jax.tree.map(jnp.asarray, (state.params, state.batch_stats))
        model = nnx.merge(graphdef, *variables, copy=True)
        rows = {key: ("visual", key) for key in keys}
        return embed_rows(model, batch, rows, normalise=normalise)["images"]

    batch["copies"] = batch["images"]
    alone, same, other = map(
        embedded, [("images",), ("images", "copies"), ("images", "second_images")]
    )
    np.testing.assert_allclose(same, alone, rtol=0, atol=1e-12)
    assert abs(other - alone).max() > 1e-3


# Phases of some terms, and parts of the model that do not train


def is_text(path):
    return path[0] == "text"


def after_steps(objective, *, steps=3, name="ViT-tiny", **options):
    """(state before, state after) some steps of AdamW with decay of all weights."""
    optimizer = adamw(beta1=0.9, beta2=0.99, eps=1e-8, weight_decay=0.2, gradient_clip_norm=None)
    sizes = {} if name == "RN-tiny" else VIT
    state, graphdef = make_state(optimizer, "float32", perturb=0.1, **{"name": name} | sizes)
    step = make_train_step(graphdef, optimizer, lambda step: 1e-2, objective=objective, **options)
    step = jax.jit(step)
    after = state
    for _ in range(steps):
        after, metrics = step(after, make_batch())
    return state, after, metrics


def changed(before, after):
    """Paths of the leaves that are not the same to the last bit."""
    pairs = zip(jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(after), strict=True)
    return {
        tuple(key.key for key in path) for (path, old), new in pairs if not np.array_equal(old, new)
    }


@pytest.mark.parametrize("name, micro_batches", [("RN-tiny", 2), ("ViT-tiny", 1)])
def test_what_does_not_train_stays_to_the_last_bit(name, micro_batches):
    before, after, _ = after_steps(
        Objective(), name=name, micro_batches=micro_batches, trainable=is_text
    )
    paths = changed(before.params, after.params)
    assert paths and all(map(is_text, paths))
    assert not changed(before.batch_stats, after.batch_stats)


def test_else_everything_trains():
    before, after, _ = after_steps(Objective())
    paths = changed(before.params, after.params)
    assert {path[0] for path in paths} == {"visual", "text", "logit_scale"}
    assert ("visual", "conv1", "kernel") in paths


def test_what_does_not_train_costs_no_backward_pass():
    def flops(trainable):
        step, state, batch, _ = step_of(Objective(), devices=1, trainable=trainable)
        return matmul_flops(step, state, batch)

    state, graphdef = make_state(optax.identity(), "float32", perturb=0.1, **VIT)

    def image_tower(params, images):
        return nnx.merge(graphdef, params, {}).encode_image(normalise_images(images))

    forward = matmul_flops(image_tower, state.params, make_batch()["images"])
    everything, text_alone, nothing = map(flops, (None, is_text, lambda path: False))
    # The gradient by an image tower's parameters costs as much again as its forward pass, and that
    # by its inputs too but for the first layer, whose input is the pictures.
    assert everything - text_alone > 1.5 * forward
    assert nothing < text_alone


def test_a_gradient_norm_is_of_what_trains():
    _, _, everything = after_steps(Objective(), steps=1)
    _, _, text_alone = after_steps(Objective(), steps=1, trainable=is_text)
    assert 0 < float(text_alone["grad_norm"]) < float(everything["grad_norm"])


def test_in_a_phase_of_one_term_no_other_runs(second_term):
    """As training on sentences before pairs: the image tower is not run and does not change."""
    objective = Objective(second=SECOND)
    sentences = objective.only("second")
    before, after, metrics = after_steps(sentences, trainable=is_text)
    paths = changed(before.params, after.params)
    assert paths and all(map(is_text, paths))
    assert "temperature" not in metrics
    assert float(metrics["loss"]) == pytest.approx(0.7 * float(metrics["second_caption_loss"]))
    step, state, batch, _ = step_of(sentences, devices=1)
    whole, *_ = step_of(objective, devices=1)
    flops = matmul_flops(whole, state, batch)
    del batch["images"]  # nothing asks for them
    assert 0 < matmul_flops(step, state, batch) < flops / 2
