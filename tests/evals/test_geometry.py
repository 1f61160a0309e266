import json

import numpy as np
import pytest

from cyclip_jax.errors import UserError
from cyclip_jax.evals import Output
from cyclip_jax.evals.flat import flat_numbers
from cyclip_jax.evals.geometry import (
    Geometry,
    along_the_gap,
    conformity,
    effective_rank,
    plane,
    told_apart,
    uniformity,
    whitened_log_likelihood,
)
from cyclip_jax.evals.metric import About, Unit
from cyclip_jax.evals.statistics.intervals import (
    mean_over_pairs_with_interval,
    mean_with_interval,
)
from tests.conftest import unit_rows
from tests.evals.fakes import fake_encoders
from tests.pictures import COLOURS, SHAPES, write_pairs


@pytest.mark.parametrize("tile_rows", [7, 1024])
def test_uniformity_is_its_double_sum_whatever_the_tiles(tile_rows):
    images, texts = unit_rows(0, 30, 6), unit_rows(1, 30, 6)
    terms = np.exp(-images @ texts.T)[~np.eye(30, dtype=bool)]
    expected = np.log(terms.mean())
    assert uniformity(images, texts, tile_rows) == pytest.approx(expected, rel=1e-12)


def test_two_clouds_a_known_distance_apart():
    noise = np.random.default_rng(0).normal(size=(2, 200, 4)) * 0.1
    shift = np.array([1.0, 0, 0, 0])
    results = _gap(noise[0] + shift, noise[1] - shift)
    assert results["modality_gap"] == pytest.approx(2, abs=0.05)
    assert results["modality_gap_ci_low"] < 2.02 and results["modality_gap_ci_high"] > 1.98
    assert told_apart(noise[0] + shift, noise[1] - shift).mean() == 1.0
    assert 0.35 < told_apart(*noise).mean() < 0.65  # the same cloud twice


def test_effective_rank_counts_the_directions_of_equal_variance():
    corners = np.concatenate([np.eye(6), -np.eye(6)])
    assert effective_rank(corners[:, :3][[0, 1, 2, 6, 7, 8]]) == pytest.approx(3)
    assert effective_rank(corners) == pytest.approx(6)
    line = np.outer(np.linspace(-1, 1, 9), [0.6, 0.8])
    assert effective_rank(line) == pytest.approx(1, abs=1e-6)


def test_conformity_is_the_mean_cosine_to_the_others():
    rows = unit_rows(0, 10, 4)
    cosines = rows @ rows.T
    expected = [np.delete(cosines[j], j).mean() for j in range(10)]
    np.testing.assert_allclose(conformity(rows), expected, atol=1e-14)


def test_whitened_likelihood_is_that_of_the_fitted_normal_distribution():
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(3, 3))
    reference, embeds = (rng.normal(size=(n, 3)) @ mixing + 2 for n in (500, 20))
    covariance = np.cov(reference.T, bias=True)
    centred = embeds - reference.mean(axis=0)
    mahalanobis = np.einsum("nd,de,ne->n", centred, np.linalg.inv(covariance), centred)
    expected = -0.5 * (3 * np.log(2 * np.pi) + mahalanobis) / 3
    np.testing.assert_allclose(whitened_log_likelihood(embeds, reference), expected, rtol=1e-10)
    # A direction in which nothing varies is left out.
    wide = [np.pad(rows, ((0, 0), (0, 2)), constant_values=5) for rows in (embeds, reference)]
    np.testing.assert_allclose(whitened_log_likelihood(*wide), expected, rtol=1e-8)
    own = whitened_log_likelihood(reference, reference)
    assert own.mean() == pytest.approx(-0.5 * (np.log(2 * np.pi) + 1), rel=1e-12)


def test_the_plane_keeps_what_varies_most():
    rng = np.random.default_rng(0)
    flat = rng.normal(size=(40, 2)) * [5, 2]
    both = np.pad(flat, ((0, 0), (0, 3))) + rng.normal(size=(40, 5)) * 1e-3
    images, texts = plane(both[:20], both[20:])
    centred = flat - flat.mean(axis=0)
    shown = np.concatenate([images, texts])
    np.testing.assert_allclose(
        shown @ shown.T, centred @ centred.T, atol=0.2
    )  # but for a turn of the plane


@pytest.mark.parametrize("batch_size", [5, 24])
def test_a_model_whose_modalities_coincide(tmp_path, batch_size):
    pairs = write_pairs(tmp_path)
    groups = {shape: [f"a {colour} {shape}" for colour in COLOURS] for shape in SHAPES[1:]}
    (tmp_path / "groups.json").write_text(json.dumps(groups))
    evaluate = Geometry("x", pairs=pairs, superclasses=tmp_path / "groups.json").open()
    results = flat_numbers(evaluate(fake_encoders(batch_size), Output(tmp_path / "details")))
    # 24 different unit vectors, the same of both modalities.
    assert results["alignment"] == results["alignment_ci_low"] == 1.0
    assert results["uniformity"] == pytest.approx(0, abs=1e-12)
    assert results["image_uniformity"] == pytest.approx(-4, abs=1e-6)
    assert results["text_uniformity"] == pytest.approx(-4, abs=1e-6)
    assert results["modality_gap"] == 0.0 and results["pairs"] == 24
    assert results["image_conformity"] == pytest.approx(0, abs=1e-12)
    assert results["image_effective_rank"] == pytest.approx(23, rel=1e-6)
    with np.load(tmp_path / "details" / "map.npz") as drawn:
        np.testing.assert_allclose(drawn["image_xy"], drawn["text_xy"])
        assert len(drawn["names"]) == 24
    with np.load(tmp_path / "details" / "similarities.npz") as drawn:
        np.testing.assert_array_equal(drawn["image_image"], np.eye(24))
        np.testing.assert_array_equal(drawn["text_text"], np.eye(24))
        assert list(drawn["groups"]) == sorted(drawn["groups"])
        pairs = zip(drawn["names"], drawn["groups"], strict=True)
        assert all(name.endswith(group) for name, group in pairs)


def test_a_diverged_model_ends_no_run(tmp_path):
    encoders = fake_encoders(8)
    object.__setattr__(
        encoders, "encode_features", lambda images: np.full((len(images), 25), np.nan)
    )
    results = flat_numbers(Geometry("x", pairs=write_pairs(tmp_path)).open()(encoders, Output()))
    assert np.isnan(list(results.values())).all()


def test_too_few_pictures_are_refused(tmp_path):
    write_pairs(tmp_path)
    (tmp_path / "few.csv").write_text("image,caption\nred_disc.png,a red disc\n")
    with pytest.raises(UserError, match=r"few.csv has fewer than four pictures"):
        Geometry("x", pairs=tmp_path / "few.csv").open()(fake_encoders(8), Output())


def test_a_picture_with_several_captions_counts_once(tmp_path):
    pairs = write_pairs(tmp_path)
    once = flat_numbers(Geometry("x", pairs=pairs).open()(fake_encoders(8), Output()))
    lines = pairs.read_text().splitlines()
    again = [line.replace(",a ", ",the ") for line in lines[1:]]
    pairs.write_text("\n".join([*lines, *again, *again]))
    assert flat_numbers(Geometry("x", pairs=pairs).open()(fake_encoders(8), Output())) == once


def test_a_collapsed_model_has_no_rank_and_no_likelihood():
    same = np.ones((30, 16)) / 4 + np.random.default_rng(0).normal(size=(30, 16)) * 1e-8
    assert effective_rank(same) == 0.0
    assert np.isnan(whitened_log_likelihood(same, same)).all()


def test_intervals_of_gap_and_conformity_hold_what_other_samples_have():
    held = {"image_conformity": 0, "modality_gap": 0}
    centre, shift = np.array([0.5, 0, 0, 0, 0, 0]), np.array([0, 0.3, 0, 0, 0, 0])

    def sample(seed, n):
        rows = unit_rows(seed, 2 * n, 6) + centre
        images, texts = rows[:n] + shift, rows[n:]
        return [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (images, texts)]

    large = _measured(*sample(0, 20_000))
    for seed in range(1, 41):
        results = _measured(*sample(seed, 60))
        for name in held:
            held[name] += results[f"{name}_ci_low"] <= large[name] <= results[f"{name}_ci_high"]
    assert min(held.values()) >= 34  # of 40; 38 are expected


def _measured(images, texts):
    of_pairs = mean_over_pairs_with_interval(conformity(images), About(Unit.COSINE))
    return _gap(images, texts) | flat_numbers({"image_conformity": of_pairs})


def _gap(images, texts):
    gap = mean_with_interval(along_the_gap(images, texts))
    assert gap.value == pytest.approx(np.linalg.norm(np.mean(images - texts, axis=0)))
    return flat_numbers({"modality_gap": gap})
