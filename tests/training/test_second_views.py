"""A step with second views of pictures and captions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from cyclip_jax import defaults
from cyclip_jax.losses.second_views import VIEWS
from cyclip_jax.models.clip import normalise_images
from cyclip_jax.training.objective import Objective, configured_objective
from cyclip_jax.training.step import embed_rows, make_train_step
from tests.training import test_step as of_step
from tests.training.test_step import VIT, make_state, worst_difference

BOTH = ("image", "text")


def objective_of(views=BOTH, **loss):
    return Objective(**of_step.LOSS, chunk_size=3, **loss, second_views={"views": views})


def make_batch():
    second = of_step.make_batch(seed=3)
    return of_step.make_batch() | {
        "second_images": second["images"],
        "second_tokens": second["tokens"],
    }


@functools.cache
def on_one_device():
    return run()


def run(devices=1, **step):
    with jax.enable_x64(True):
        state, graphdef = of_step.perturbed_state("float64", **VIT)
        return of_step.run_on(
            *(devices, state, graphdef, make_batch(), "float64"),
            objective=objective_of(primary_components_weight=0.6, primary_components_kept=3),
            **step,
        )


@pytest.mark.parametrize("devices, step", [(8, {"fsdp": 2}), (1, {"micro_batches": 4})])
def test_any_mesh_and_micro_batches_give_one_gradient(devices, step):
    assert worst_difference(run(devices, **step), on_one_device()) <= 1e-10


def test_without_a_weight_the_program_is_the_one_without_views():
    state, graphdef = make_state(optax.identity(), "float32", perturb=0.1, **VIT)

    def program(objective):
        step = make_train_step(graphdef, optax.identity(), lambda _: 0.5, objective=objective)
        batch = {key: rows for key, rows in make_batch().items() if key in objective.inputs}
        return jax.jit(step).lower(state, batch).as_text()

    without = program(Objective(**of_step.LOSS, chunk_size=3))
    assert program(objective_of()) != without
    off = configured_objective(defaults.get_config())
    assert off.inputs == ("images", "tokens")
    assert program(Objective(**of_step.LOSS, chunk_size=3, second_view_weight=0.1)) == without


@pytest.mark.parametrize("kind", BOTH)
def test_the_config_says_which_views_there_are(kind):
    config = defaults.get_config()
    config.data[{"image": "second_image", "text": "second_caption"}[kind]] = "another"
    objective = configured_objective(config)
    *_, row = VIEWS[kind]
    assert objective.inputs == ("images", "tokens", row.key)
    assert objective.terms["contrastive"].weights == {"contrastive": 0.5}
    assert objective.terms["second_views"].weights == {f"{kind}_view": 0.5}


def test_the_statistics_of_batch_norm_are_of_pictures_and_views_together(x64):
    """Views that are brighter by a constant move the first batch mean by half of what they would
    move it by themselves, exactly."""
    state, graphdef = of_step.perturbed_state("float64")
    batch = {"images": np.full((16, 32, 32, 3), 100, np.uint8)}
    batch["second_images"] = batch["images"] + np.uint8(50)
    normalise = functools.partial(normalise_images, dtype=jnp.float64)

    def running_mean(keys):
        variables = jax.tree.map(jnp.asarray, (state.params, state.batch_stats))
        model = nnx.merge(graphdef, *variables, copy=True)
        rows = {key: ("visual", key) for key in keys}
        embed_rows(model, batch, rows, normalise=normalise)
        return model.visual.bn1.mean[...]

    original, view, both = map(
        running_mean, [("images",), ("second_images",), ("images", "second_images")]
    )
    assert abs(view - original).max() > 1e-3
    np.testing.assert_allclose(both - original, (view - original) / 2, rtol=0, atol=1e-12)
