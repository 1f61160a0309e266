import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from cyclip_jax.evals import Output
from cyclip_jax.evals.retrieval import ranks_of_best_partner, recall, retrieval
from tests.conftest import draw, write_pairs
from tests.evals.fakes import fake_encoders

# Rows are queries, columns targets; the embeddings are the table itself against the identity.
TABLE = np.array(
    [
        [0.9, 0.1, 0.2, 0.3],  # own first
        [0.8, 0.5, 0.1, 0.0],  # own second
        [0.7, 0.6, 0.6, 0.1],  # own ties with another for second: a miss, third
        [0.4, 0.3, 0.2, 0.1],  # own last
    ]
)
OWN = np.arange(4)


def score(encoders, pairs, directory=None, **settings):
    return retrieval("x", pairs=str(pairs), **settings)(encoders, Output(directory))


def test_recall_of_a_hand_made_table():
    np.testing.assert_array_equal(ranks_of_best_partner(TABLE, np.eye(4), OWN, OWN), [0, 1, 2, 3])
    results = recall("x", TABLE, np.eye(4), OWN, OWN)
    assert results["x_recall@1"] == 1 / 4
    assert results["x_recall@5"] == 1.0
    assert results["chance_x_recall@1"] == pytest.approx(1 / 4)
    assert results["chance_x_recall@5"] == 1.0


def test_any_partner_is_a_hit_and_the_others_are_no_competition():
    queries, targets = np.array([0, 0, 1, 2, 3]), np.array([0, 3, 0, 2, 1])
    ranks = ranks_of_best_partner(TABLE, np.eye(4), queries, targets)
    np.testing.assert_array_equal(ranks, [0, 0, 2, 1])
    chance = recall("x", TABLE, np.eye(4), queries, targets)["chance_x_recall@1"]
    assert chance == pytest.approx((2 / 4 + 1 / 4 + 1 / 4 + 1 / 4) / 4)


def test_a_collapsed_model_hits_nothing():
    same = np.ones((6, 3))
    results = recall("x", same, same, np.arange(6), np.arange(6))
    assert results["x_recall@1"] == results["x_recall@5"] == 0.0


def test_a_diverged_model_hits_nothing():
    images = np.full((30, 3), np.nan)
    results = recall("x", images, np.ones((30, 3)), np.arange(30), np.arange(30))
    assert results["x_recall@1"] == results["x_recall@10"] == 0.0


def test_tiles_change_nothing():
    rng = np.random.default_rng(0)
    images, texts = rng.normal(size=(50, 8)), rng.normal(size=(40, 8))
    pairs = rng.integers(50, size=60), rng.integers(40, size=60)
    pairs = np.append(pairs[0], np.arange(50)), np.append(pairs[1], np.arange(50) % 40)
    whole = ranks_of_best_partner(images, texts, *pairs)
    tiled = ranks_of_best_partner(images, texts, *pairs, tile_rows=7)
    np.testing.assert_array_equal(tiled, whole)


@pytest.mark.parametrize("batch_size", [5, 8, 24, 32])
def test_a_model_that_knows_every_pair_scores_one_whatever_the_batch_size(
    pairs_csv, tmp_path, batch_size
):
    results = score(fake_encoders(batch_size), pairs_csv, tmp_path)
    assert results["image_to_text_recall@1"] == results["text_to_image_recall@1"] == 1.0
    assert results["chance_image_to_text_recall@1"] == pytest.approx(1 / 24)
    assert (results["pairs"], results["images"], results["captions"]) == (24, 24, 24)
    assert results["inmodal_consistency"] == pytest.approx(0, abs=1e-6)
    assert not list(tmp_path.iterdir())


def test_a_model_that_mixes_up_two_colours_scores_half(pairs_csv):
    swap = {"red": "blue", "blue": "red"}
    encoders = fake_encoders(8, misread=lambda colour: swap.get(colour, colour))
    results = score(encoders, pairs_csv)
    assert results["image_to_text_recall@1"] == results["text_to_image_recall@1"] == 0.5


def test_losses_are_means_over_groups_with_the_small_tail(pairs_csv):
    results = score(fake_encoders(10), pairs_csv)
    assert results["loss"] == pytest.approx((10 * 10 + 10 * 10 + 4 * 4) / 24)  # the fake's is n


def test_captions_and_images_that_repeat_are_one_with_several_partners(tmp_path):
    path = write_pairs(tmp_path)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines, "red_disc.png,a blue disc", "red_disc.png,a red disc"]))
    results = score(fake_encoders(8), path)
    assert (results["pairs"], results["images"], results["captions"]) == (26, 24, 24)
    assert results["image_to_text_recall@1"] == results["text_to_image_recall@1"] == 1.0


def test_an_unreadable_image_is_left_out_of_the_count(tmp_path):
    path = write_pairs(tmp_path)
    (tmp_path / "red_disc.png").write_bytes(b"no picture")
    results = score(fake_encoders(8), path)
    assert results["pairs"] == 23
    assert results["image_to_text_recall@1"] == 1.0


def test_the_gallery_has_the_captions_ranks_and_pictures(pairs_csv, tmp_path):
    score(fake_encoders(8), pairs_csv, tmp_path, gallery_captions=3)
    rows = json.loads((tmp_path / "gallery.json").read_text())
    assert len(rows) == 3
    for row in rows:
        assert (row["rank"], row["of"]) == (1, 24)
        assert [image["is_partner"] for image in row["images"]] == [True] + 5 * [False]
        jpeg = base64.b64decode(row["images"][0]["jpeg"])
        shown = np.asarray(Image.open(io.BytesIO(jpeg)), float)
        colour, shape = row["caption"].split()[1:]
        assert np.abs(shown - draw(shape, colour)).mean() < 10
