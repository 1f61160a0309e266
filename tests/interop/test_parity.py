"""The model is PyTorch's: embeddings, gradients, running statistics, and a training run.

Every claim stands beside what breaks it. benchmarks/parity.py measures and prints the same.
"""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from benchmarks import parity
from cyclip_jax.interop.weights import fit, weights_of
from cyclip_jax.models import resnet, transformer
from cyclip_jax.models.clip import normalise_images
from cyclip_jax.training import step as train_step

# Of the norm of an embedding, in float32.
EMBEDDING_TOLERANCE = 2e-5
# Norms of differences by norms, in float64; key biases' gradients are zero by nature.
GRADIENT_TOLERANCE, KEY_BIAS_TOLERANCE = 1e-7, 1e-12
# Of a trajectory. Adam divides gradients by their size: of what is rounding alone in a gradient, as
# in all of a key bias's and in some numbers of any tensor, it makes whole steps.
LOSS_TOLERANCE = {"float64": 1e-10, "float32": 1e-3}
WEIGHT_TOLERANCE = {"float64": 1e-10, "float32": 1e-3}

TINY = {"ViT-tiny": {}}
MODELS = {**parity.SMALL, **TINY}
LARGEST = "RN50x4"


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Threads that wait for one another cost models so small more than they save."""
    threads = parity.torch.get_num_threads()
    parity.torch.set_num_threads(1)
    yield
    parity.torch.set_num_threads(threads)


@pytest.fixture(
    scope="module",
    params=[pytest.param(LARGEST, marks=pytest.mark.slow), *sorted(set(MODELS) - {LARGEST})],
)
def case(request):
    return parity.draw_case(request.param, **MODELS[request.param])


@pytest.fixture(scope="module")
def encode(case):
    return parity.our_encoder(case.name, case.sizes)


def agree(actual, expected):
    """For image and text embeddings: whether they are equal to within the tolerance."""
    differences = parity.embedding_differences(actual, expected)
    print(f"differences of image and text embeddings: {differences}")
    return tuple(difference <= EMBEDDING_TOLERANCE for difference in differences)


def test_embeddings_equal_pytorch(case, encode):
    actual = encode(case.weights, case.batch)
    others = parity.others(case)
    assert len(others) == (2 if case.name.startswith("ViT") else 1)  # open_clip and transformers
    for library, expected in others.items():
        assert agree(actual, expected) == (True, True), library


def test_one_flipped_residual_block_in_each_tower_would_fail(case, encode):
    blocks = {
        "RN": "visual.layer3.3.bn3",
        "ViT-B": "visual.transformer.resblocks.6.mlp.c_proj",
        "ViT-tiny": "visual.transformer.resblocks.1.mlp.c_proj",
    }
    (block,) = (name for start, name in blocks.items() if case.name.startswith(start))
    flipped = {
        f"{name}.{kind}": -case.weights[f"{name}.{kind}"]
        for name in (block, "transformer.resblocks.1.attn.out_proj")
        for kind in ("weight", "bias")
    }
    actual = encode({**case.weights, **flipped}, case.batch)
    assert agree(actual, case.expected) == (False, False)


@pytest.mark.parametrize("case", TINY, indirect=True)
def test_the_exact_gelu_would_fail(case):
    encode = parity.our_encoder(case.name, case.sizes, quick_gelu=False)
    assert agree(encode(case.weights, case.batch), case.expected) == (False, False)


@pytest.mark.parametrize("case", TINY, indirect=True)
def test_another_epsilon_would_fail(case, monkeypatch):
    layer_norm = nnx.LayerNorm
    monkeypatch.setattr(
        transformer.nnx,
        "LayerNorm",
        lambda *arguments, **options: layer_norm(*arguments, **options | {"epsilon": 1e-6}),
    )
    encode = parity.our_encoder(case.name, case.sizes)
    assert agree(encode(case.weights, case.batch), case.expected) == (False, False)


def test_embeddings_that_are_all_alike_prove_nothing(monkeypatch):
    def grey(n, size, seed):
        return np.full((n, size, size, 3), 128, np.uint8)

    monkeypatch.setattr(parity, "draw_images", grey)
    with pytest.raises(ValueError, match="image embeddings of different inputs"):
        parity.draw_case("ViT-tiny")


@dataclasses.dataclass(frozen=True)
class Trained:
    """A TrainingCase, our compiled trainer in float64, and both sides' Trainings."""

    case: parity.TrainingCase
    train: object
    ours: parity.Training
    theirs: parity.Training


@pytest.fixture(scope="module", params=parity.TRAINED)
def trained(request):
    case = parity.draw_training_case(request.param)
    train = parity.our_trainer(case, "float64")
    return Trained(case, train, train(), parity.train_in_torch(case, "float64"))


def assert_first_steps_equal(actual, expected):
    """The loss, every parameter's gradient, and the statistics after the step."""
    np.testing.assert_allclose(actual.losses[0], expected.losses[0], rtol=GRADIENT_TOLERANCE)
    relative, key_biases = parity.tensor_errors(actual.gradients, expected.gradients)
    print(f"gradients: {parity.worst(relative)}, of key biases {parity.worst(key_biases)}")
    assert parity.worst(relative)[1] <= GRADIENT_TOLERANCE, parity.worst(relative)
    assert parity.worst(key_biases)[1] <= KEY_BIAS_TOLERANCE, parity.worst(key_biases)
    assert_statistics_equal(actual.statistics, expected.statistics)


def assert_statistics_equal(actual, expected):
    errors, _ = parity.tensor_errors(actual, expected)
    print(f"statistics: {parity.worst(errors)}")
    assert parity.worst(errors)[1] <= GRADIENT_TOLERANCE, parity.worst(errors)


def test_loss_gradients_and_statistics_equal_torch(trained):
    parameters = {name for name in trained.theirs.weights if name in trained.theirs.gradients}
    assert {name for name in trained.ours.gradients if parity.COUNT not in name} == parameters
    assert_first_steps_equal(trained.ours, trained.theirs)


def test_every_parameter_has_a_gradient(trained):
    gradients = parity.split_biases(trained.theirs.gradients)
    vanishing = {name for name, array in gradients.items() if np.linalg.norm(array) < 1e-9}
    assert vanishing == {name for name in gradients if parity.is_key_bias(name)}


@pytest.mark.parametrize(
    "ours, theirs",
    [((0.0, 0.25), (0.25, 0.25)), ((0.25, 0.0), (0.25, 0.25)), ((0.5, 0.25), (0.25, 0.5))],
    ids=["no in-modal term", "no cross-modal term", "the two swapped"],
)
def test_another_objective_would_fail(trained, ours, theirs):
    actual = trained.train(steps=1, cyclic_weights=ours)
    expected = parity.train_in_torch(trained.case, "float64", steps=1, cyclic_weights=theirs)
    with pytest.raises(AssertionError):
        assert_first_steps_equal(actual, expected)


def test_unequal_weights_of_the_two_terms_equal_torch(trained):
    weights = {"steps": 1, "cyclic_weights": (0.25, 0.5)}
    expected = parity.train_in_torch(trained.case, "float64", **weights)
    assert_first_steps_equal(trained.train(**weights), expected)


def our_statistics(case):
    """The running statistics after one batch, without a step."""
    graphdef, abstract = parity.abstract_model(
        case.name, case.sizes, is_training=True, dtype="float64"
    )
    tree = fit(case.weights, abstract, source="what was drawn")

    @jax.jit
    def forward(tree, images):
        model = nnx.merge(graphdef, tree["params"], tree["batch_stats"])
        model.encode_image(normalise_images(images, np.float64))
        return nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))

    return parity.statistics_of(
        weights_of({"batch_stats": forward(tree, case.batches[0]["images"])})
    )


@pytest.mark.parametrize("trained", ["ResNet"], indirect=True)
def test_a_biased_running_variance_would_fail(trained, monkeypatch, x64):
    expected = trained.theirs.statistics
    assert_statistics_equal(our_statistics(trained.case), expected)

    follow = resnet.BatchNorm.follow

    def follow_biased(self, mean, var, count):
        follow(self, mean, var * ((count - 1) / count), count)

    monkeypatch.setattr(resnet.BatchNorm, "follow", follow_biased)
    with pytest.raises(AssertionError, match="running_var"):
        assert_statistics_equal(our_statistics(trained.case), expected)


def assert_trajectories_equal(actual, expected, dtype):
    losses = parity.loss_errors(actual, expected)
    weights, _ = parity.tensor_errors(actual.weights, expected.weights)
    print(f"{dtype}: losses {max(losses):.1e}, weights {parity.worst(weights)}")
    assert len(losses) == parity.STEPS
    assert max(losses) <= LOSS_TOLERANCE[dtype], losses
    assert parity.worst(weights)[1] <= WEIGHT_TOLERANCE[dtype], parity.worst(weights)


def test_twenty_steps_equal_torch_in_float64(trained):
    assert_trajectories_equal(trained.ours, trained.theirs, "float64")


@pytest.mark.parametrize("model", [pytest.param("ResNet", marks=pytest.mark.slow), "ViT"])
def test_twenty_steps_equal_torch_in_float32(model):
    case = parity.draw_training_case(model)
    actual = parity.our_trainer(case, "float32")()
    assert_trajectories_equal(actual, parity.train_in_torch(case, "float32"), "float32")


def test_the_loss_falls_below_a_tenth_of_its_start(trained):
    losses = trained.theirs.losses
    assert max(losses[-2:]) < losses[0] / 10


@pytest.mark.parametrize("trained", ["ViT"], indirect=True)
def test_the_clamp_of_the_logit_scale_acts(trained):
    assert trained.case.weights["logit_scale"] > train_step.MAX_LOGIT_SCALE
    assert trained.ours.logit_scales[0] == pytest.approx(train_step.MAX_LOGIT_SCALE, rel=1e-12)
    assert min(trained.ours.logit_scales) < train_step.MAX_LOGIT_SCALE - 1e-3
    np.testing.assert_allclose(trained.ours.logit_scales, trained.theirs.logit_scales, rtol=1e-12)


@pytest.mark.parametrize("trained", ["ViT"], indirect=True)
@pytest.mark.parametrize(
    "setting", [{"weight_decay": 0.11}, {"warmup_steps": 5}, {"beta2": 0.998}, {"eps": 1e-6}]
)
def test_another_recipe_would_fail(trained, monkeypatch, setting):
    monkeypatch.setattr(parity, "RECIPE", {**parity.RECIPE, **setting})
    expected = parity.train_in_torch(trained.case, "float64")
    with pytest.raises(AssertionError):
        assert_trajectories_equal(trained.ours, expected, "float64")
