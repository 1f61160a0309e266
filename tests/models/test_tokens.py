import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cyclip_jax.errors import UserError
from cyclip_jax.models import create_model
from cyclip_jax.models.presets import patch_grid, resolve_sizes, sizes_in
from cyclip_jax.models.tokens import (
    check_patch_dropping,
    choose_patches,
    choose_tokens,
    shorten,
)
from tests.interop.models import VIT, drawn_model

KEY = jax.random.key(0)
IMAGES = jax.random.normal(KEY, (3, 32, 32, 3))
END = 39  # the largest id


@pytest.fixture(scope="module")
def model():
    """A ViT of 4×4 patches, nine tokens and 40 ids."""
    return drawn_model(VIT)


@nnx.jit
def encode(model, images, kept_patches=None):
    return model.encode_image(images, kept_patches)


@nnx.jit
def encode_text(model, tokens):
    return model.encode_text(tokens)


def test_all_patches_in_order_are_the_whole_image(model):
    every = jnp.tile(jnp.arange(16), (3, 1))
    np.testing.assert_array_equal(encode(model, IMAGES, every), encode(model, IMAGES))


def test_what_stands_in_a_dropped_patch_is_not_seen(model):
    kept = jnp.array([[0, 5], [1, 6], [2, 7]])
    changed = IMAGES.at[0, 8:16, 16:24].add(1.0)  # patch 6
    difference = encode(model, changed, kept) - encode(model, IMAGES, kept)
    np.testing.assert_array_equal(difference, 0)
    seen = IMAGES.at[1, 8:16, 16:24].add(1.0)
    difference = encode(model, seen, kept) - encode(model, IMAGES, kept)
    assert [bool(row.any()) for row in difference] == [False, True, False]


def test_the_position_of_a_dropped_patch_has_no_gradient(model):
    graphdef, params = nnx.split(model)
    kept = jnp.array([[0, 5], [5, 6], [2, 15]])

    def total(params):
        return nnx.merge(graphdef, params).encode_image(IMAGES, kept).sum()

    gradient = jax.jit(jax.grad(total))(params)["visual"]["positional_embedding"][...]
    with_gradient = np.flatnonzero(jnp.abs(gradient).max(axis=1))
    assert with_gradient.tolist() == [0, 1, 3, 6, 7, 16]  # the class token, then patch 0 …


@pytest.mark.parametrize("how, kept, count", [("random", 0.3, 7), ("grid", 0.25, 6)])
def test_each_image_has_a_draw_of_its_own_that_its_key_determines(how, kept, count):
    grid = (4, 6)
    chosen = np.asarray(choose_patches(KEY, 50, grid, kept, how))
    assert chosen.shape == (50, count) and chosen.dtype == np.int32
    assert (np.diff(chosen, axis=1) > 0).all() and chosen.min() >= 0 and chosen.max() < 24
    assert len(np.unique(chosen, axis=0)) > 40
    np.testing.assert_array_equal(choose_patches(KEY, 50, grid, kept, how), chosen)
    assert (choose_patches(jax.random.key(1), 50, grid, kept, how) != chosen).any()


@pytest.mark.parametrize("how", ["random", "grid"])
def test_all_patches_are_kept_equally_often(how):
    chosen = choose_patches(KEY, 20_000, (4, 4), 0.25, how)
    share = np.bincount(chosen.ravel(), minlength=16) / 20_000
    np.testing.assert_allclose(share, 0.25, atol=0.015)  # five standard deviations


@pytest.mark.parametrize(
    "grid, kept, window",
    [
        ((4, 6), 1 / 2, (1, 2)),
        ((4, 7), 1 / 2, (2, 1)),
        ((14, 14), 1 / 4, (2, 2)),
        ((3, 8), 1 / 4, (1, 4)),
        ((6, 9), 0.33, (1, 3)),
        ((6, 4), 1 / 6, (3, 2)),
        ((3, 3), 1, (1, 1)),
    ],
)
def test_the_grid_keeps_one_patch_of_each_window(grid, kept, window):
    check_patch_dropping("grid", kept, grid)
    (h, w), (a, b) = grid, window
    chosen = np.asarray(choose_patches(KEY, 9, grid, kept, "grid"))
    windows = chosen // w // a * (w // b) + chosen % w // b
    np.testing.assert_array_equal(
        np.sort(windows, axis=1), np.tile(np.arange(h * w // a // b), (9, 1))
    )


def test_one_patch_is_kept_at_least_and_all_at_most():
    assert choose_patches(KEY, 2, (2, 2), 0.01, "random").shape == (2, 1)
    np.testing.assert_array_equal(choose_patches(KEY, 1, (2, 2), 1, "random"), [[0, 1, 2, 3]])


@pytest.mark.parametrize(
    "how, kept, grid, message",
    [
        ("half", 0.5, (4, 4), "unknown config.tokens.patch_dropping 'half'; choose one of none, "),
        ("random", 0, (4, 4), "config.tokens.kept_patches 0 is not a share"),
        ("random", 1.5, (4, 4), "config.tokens.kept_patches 1.5 is not a share"),
        ("grid", 0.5, (7, 7), "no windows of 1/0.5 patches that tile 7×7; set config.tokens.kept"),
        ("grid", 0.4, (4, 4), "no windows of 1/0.4 patches"),
        ("random", 0.5, None, "config.tokens.patch_dropping does not apply to a ResNet"),
    ],
)
def test_a_dropping_that_cannot_be_is_refused_in_words(how, kept, grid, message):
    with pytest.raises(UserError, match=message):
        check_patch_dropping(how, kept, grid)


def test_random_dropping_fits_any_grid():
    check_patch_dropping("random", 0.4, (7, 7))
    check_patch_dropping("random", 1, (1, 1))


def test_no_dropping_fits_any_model():
    check_patch_dropping("none", 0.5, None)


def test_a_resnet_has_no_patches():
    assert patch_grid(resolve_sizes("RN50")) is None
    model = nnx.eval_shape(lambda: create_model("RN-tiny", rngs=nnx.Rngs(0)))
    with pytest.raises(UserError, match="patch_dropping does not apply to a ResNet"):
        model(jnp.zeros((1, 64, 64, 3)), jnp.zeros((1, 16), jnp.int32), jnp.zeros((1, 4), int))


def test_a_models_grid_is_that_of_its_sizes(model):
    assert model.visual.grid == patch_grid(sizes_in(VIT)) == (4, 4)


def texts():
    """End-of-text at the places 2, 3, 4 and 7 of eight; behind it is padding."""
    tokens = np.tile(np.arange(1, 9), (4, 1))
    for row, end in enumerate((2, 3, 4, 7)):
        tokens[row, end], tokens[row, end + 1 :] = END, 0
    return jnp.asarray(tokens)


def test_shortened_texts_keep_their_end():
    np.testing.assert_array_equal(
        shorten(texts(), 4), [[1, 2, END, 0], [1, 2, 3, END], [1, 2, 3, END], [1, 2, 3, END]]
    )
    np.testing.assert_array_equal(shorten(texts(), 8), texts())
    assert shorten(texts(), 1).tolist() == [[END]] * 4


@pytest.mark.parametrize("how", ["block", "random"])
def test_chosen_tokens_keep_both_ends_and_their_order(how):
    tokens = jnp.tile(texts(), (200, 1))
    chosen = np.asarray(choose_tokens(KEY, tokens, 4, how)).reshape(200, 4, 4)
    for row, end in enumerate((2, 3, 4, 7)):
        first, *inner, last = chosen[:, row].T
        assert (first == 1).all()
        if end == 2:  # it fits, with padding behind it
            assert (chosen[:, row] == [1, 2, END, 0]).all()
            continue
        assert (last == END).all()
        steps = inner[1] - inner[0]
        assert (steps == 1).all() if how == "block" else (steps >= 1).all()
        assert min(inner[0]) >= 2 and max(inner[1]) <= end
    assert (choose_tokens(jax.random.key(1), tokens, 4, how) != chosen.reshape(-1, 4)).any()
    for length in (8, 2):
        found = choose_tokens(KEY, texts(), length, how)
        expected = texts() if length == 8 else [[1, END]] * 4
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("how, pairs", [("block", 5), ("random", 15)])
def test_each_choice_of_tokens_is_equally_likely(how, pairs):
    """Two of the six tokens between both ends: five runs, or fifteen pairs."""
    n = 15_000
    tokens = jnp.tile(texts()[3], (n, 1))
    chosen, counts = np.unique(choose_tokens(KEY, tokens, 4, how), axis=0, return_counts=True)
    assert len(chosen) == pairs
    deviation = np.sqrt(n / pairs * (1 - 1 / pairs))
    assert abs(counts - n / pairs).max() < 5 * deviation


@pytest.mark.parametrize("how", ["block", "random"])
def test_no_token_of_a_text_without_an_end_is_lost(how):
    """Rows of zeros stand in for captions that are not there."""
    np.testing.assert_array_equal(choose_tokens(KEY, jnp.zeros((2, 8), int), 4, how), 0)


def test_a_text_whose_end_is_in_sight_keeps_its_embedding(x64):
    model = drawn_model({**VIT, "dtype": "float64"})
    long, short = encode_text(model, texts()), encode_text(model, shorten(texts(), 4))
    np.testing.assert_allclose(short[:2], long[:2], rtol=1e-12, atol=1e-14)
    assert (abs(short[2:] - long[2:]).max(axis=1) > 1e-4).all()


def test_more_tokens_than_there_are_positions_are_refused(model):
    with pytest.raises(UserError, match="texts of 10 tokens do not fit into config"):
        model.encode_text(jnp.zeros((1, 10), jnp.int32))
