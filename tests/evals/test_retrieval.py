import base64
import dataclasses
import io
import json
import types

import numpy as np
import pytest
from clip_benchmark.metrics import zeroshot_retrieval
from PIL import Image

from cyclip_jax import evals
from cyclip_jax.errors import UserError
from cyclip_jax.evals import Output
from cyclip_jax.evals.flat import flat_numbers
from cyclip_jax.evals.gallery import as_picture
from cyclip_jax.evals.retrieval import Retrieval, chance_recall, recall_of_ranks
from cyclip_jax.evals.statistics.ranking import ranks_of_best_partner
from tests.conftest import unit_rows
from tests.evals.data.test_pairs import quick
from tests.evals.fakes import fake_encoders
from tests.evals.statistics.test_ranking import OWN, TABLE
from tests.pictures import COLOURS, SHAPES, draw, write_pairs
from tests.pytorch import torch


def score(encoders, pairs, directory=None, **settings):
    return flat_numbers(
        Retrieval("x", pairs=str(pairs), **settings).open()(encoders, Output(directory))
    )


def recalls(queries, targets, ids):
    """Results of one partner each, in both directions."""
    ranks = ranks_of_best_partner(queries, targets, ids, ids)
    others = ranks_of_best_partner(targets, queries, ids, ids)
    return flat_numbers(recall_of_ranks(ranks, others, ids, ids))


def test_recall_of_a_hand_made_table_and_what_chance_gets():
    results = recalls(TABLE, np.eye(4), OWN)
    assert results["image_to_text_recall@1"] == 1 / 4
    assert results["image_to_text_recall@5"] == 1.0
    chance = chance_recall(OWN, OWN)
    assert chance[1] == pytest.approx(1 / 4)
    assert chance[5] == 1.0
    assert results["chance_image_to_text_recall@1"] == chance[1]


def test_chance_counts_the_partners_and_a_pair_that_repeats_once():
    queries, targets = np.array([0, 0, 1, 2, 3, 0]), np.array([0, 3, 0, 2, 1, 3])
    chance = chance_recall(queries, targets)[1]
    assert chance == pytest.approx((2 / 4 + 1 / 4 + 1 / 4 + 1 / 4) / 4)


@pytest.mark.parametrize("value", [1.0, np.nan])
def test_a_collapsed_or_diverged_model_hits_nothing(value):
    results = recalls(np.full((30, 3), value), np.ones((30, 3)), np.arange(30))
    for name in ("image_to_text", "text_to_image"):
        assert results[f"{name}_recall@1"] == results[f"{name}_recall@10"] == 0.0


def test_recall_mean_and_median_of_hand_made_ranks():
    image_ranks, text_ranks = np.array([0, 4, 7, 20]), np.array([0, 0, 5, 6, 30])
    partners = np.array([0, 0, 1, 2, 3]), np.arange(5)
    results = flat_numbers(recall_of_ranks(image_ranks, text_ranks, *partners))
    assert [results[f"image_to_text_recall@{k}"] for k in (1, 5, 10)] == [1 / 4, 2 / 4, 3 / 4]
    assert [results[f"text_to_image_recall@{k}"] for k in (1, 5, 10)] == [2 / 5, 2 / 5, 4 / 5]
    assert results["mean_recall"] == pytest.approx((0.25 + 0.5 + 0.75 + 0.4 + 0.4 + 0.8) / 6)
    assert results["image_to_text_median_rank"] == (5 + 8) / 2
    assert results["text_to_image_median_rank"] == 6


def test_intervals_are_those_of_drawing_images_with_all_their_captions():
    rng = np.random.default_rng(0)
    image_of_text = np.repeat(np.arange(9), [1, 2, 3, 1, 2, 3, 4, 1, 1])[rng.permutation(18)]
    image_ranks, text_ranks = rng.integers(12, size=9), rng.integers(12, size=18)
    found = recall_of_ranks(image_ranks, text_ranks, image_of_text, np.arange(18))
    results = flat_numbers(found)
    draws, texts, images = np.random.default_rng(0), [], []
    for _ in range(1000):
        drawn = draws.integers(9, size=9)
        images.append(image_ranks[drawn])
        texts.append(np.concatenate([text_ranks[image_of_text == image] for image in drawn]))
    for name, drawn in (("image_to_text", images), ("text_to_image", texts)):
        for metric, values in (
            ("recall@5", [np.mean(ranks < 5) for ranks in drawn]),
            ("median_rank", [np.median(ranks) + 1 for ranks in drawn]),
        ):
            expected = np.percentile(values, [2.5, 97.5])
            bounds = [results[f"{name}_{metric}_ci_{end}"] for end in ("low", "high")]
            np.testing.assert_allclose(bounds, expected, rtol=0, atol=1e-12)
    assert results["mean_recall_ci_low"] < results["mean_recall"] < results["mean_recall_ci_high"]


def test_images_that_share_a_caption_are_one_draw():
    """Images 0 and 2 share caption 1, and 2 and 3 caption 4: with 1 alone there are two units."""
    image_ids, text_ids = np.array([0, 0, 1, 2, 2, 3]), np.array([0, 1, 2, 1, 4, 4])
    image_ids, text_ids = np.append(image_ids, 1), np.append(text_ids, 3)
    image_ranks, text_ranks = np.array([0, 0, 0, 12]), np.array([0, 12, 12, 0, 0])
    results = flat_numbers(recall_of_ranks(image_ranks, text_ranks, image_ids, text_ids))
    assert results["image_to_text_recall@1"] == 3 / 4
    assert results["text_to_image_recall@1"] == 3 / 5
    draws, images, texts = np.random.default_rng(0), [], []
    for _ in range(1000):
        drawn = draws.integers(2, size=2)
        units = [([0, 2, 3], [0, 1, 4]), ([1], [2, 3])]
        images.append(np.mean(np.concatenate([image_ranks[units[u][0]] for u in drawn]) < 1))
        texts.append(np.mean(np.concatenate([text_ranks[units[u][1]] for u in drawn]) < 1))
    for name, values in (("image_to_text", images), ("text_to_image", texts)):
        bounds = [results[f"{name}_recall@1_ci_{end}"] for end in ("low", "high")]
        np.testing.assert_allclose(bounds, np.percentile(values, [2.5, 97.5]), rtol=0, atol=1e-12)


def prescribed_encoders(batch_size, image_embeds, text_embeds):
    """Encoders of the pictures of write_pairs as these rows, and of a caption "7 …" as row 7."""
    known = fake_encoders(batch_size)
    return dataclasses.replace(
        known,
        encode_features=lambda images: known.encode_features(images)[:, :24] @ image_embeds,
        encode_text=lambda tokens: text_embeds[tokens[:, 0]],
        tokenize=lambda texts: np.array([[int(text.split()[0])] for text in texts]),
    )


def test_the_numbers_are_clip_benchmarks_whatever_the_batch_size(pairs_csv, tmp_path):
    """With five captions an image, through Karpathy's file and on eight devices."""
    noise, image_embeds = unit_rows(0, 120, 6, np.float32), unit_rows(1, 24, 6, np.float32)
    text_embeds = np.repeat(image_embeds, 5, axis=0) + 4 * noise
    text_embeds /= np.linalg.norm(text_embeds, axis=1, keepdims=True)
    names = [f"{colour}_{shape}.png" for shape in SHAPES for colour in COLOURS]
    images = [
        {
            "filename": name,
            "split": "test",
            "sentences": [{"raw": f"{5 * number + place} words"} for place in range(5)],
        }
        for number, name in enumerate(names)
    ]
    (tmp_path / "dataset.json").write_text(json.dumps({"images": images}))

    def ours(batch_size):
        encoders = prescribed_encoders(batch_size, image_embeds, text_embeds)
        results = score(
            encoders, tmp_path / "dataset.json", images=str(pairs_csv.parent), captions_per_image=5
        )
        del results["loss"]  # of the groups of this size
        return results

    # A tensor of one number stands for the picture or caption of that number.
    model = types.SimpleNamespace(
        encode_image=lambda images: torch.tensor(image_embeds)[images[:, 0]],
        encode_text=lambda tokens: torch.tensor(text_embeds)[tokens],
    )
    batches = [
        (torch.arange(first, first + 6)[:, None], [range(5 * i, 5 * i + 5) for i in numbers])
        for first in range(0, 24, 6)
        for numbers in [range(first, first + 6)]
    ]
    theirs = zeroshot_retrieval.evaluate(
        model, batches, torch.tensor, "cpu", amp=False, recall_k_list=[1, 5, 10]
    )
    found = ours(8)
    assert len(theirs) == 6
    for target, name in (("image", "text_to_image"), ("text", "image_to_text")):
        for k in (1, 5, 10):
            expected = theirs[f"{target}_retrieval_recall@{k}"]
            assert found[f"{name}_recall@{k}"] == pytest.approx(expected, abs=1e-6)
            assert 0 < expected < 1
    assert ours(5) == found

    texts, image_of_text = np.arange(120), np.repeat(np.arange(24), 5)
    expected = recall_of_ranks(
        ranks_of_best_partner(image_embeds, text_embeds, image_of_text, texts),
        ranks_of_best_partner(text_embeds, image_embeds, texts, image_of_text),
        image_of_text,
        texts,
    )
    expected = flat_numbers(expected)
    assert {name: found[name] for name in expected} == expected  # with the intervals


def test_the_first_numbers_are_scored_by_themselves(pairs_csv):
    """Of the fakes, each pair has one number that is not zero."""
    known = fake_encoders(8)
    whole = score(known, pairs_csv, embed_dims=(25, 12))
    assert whole["mean_recall_25_dims"] == whole["mean_recall"] == 1.0
    # Half of the pairs have their one number among those that are left out.
    assert whole["mean_recall_12_dims"] == 0.5
    with pytest.raises(UserError, match=r"config\.evals\.\w+\.embed_dims 26 is more than the 25"):
        score(known, pairs_csv, embed_dims=(26,))


def test_recall_and_median_rank_are_open_clips_with_one_caption_an_image():
    from open_clip_train.train import get_clip_metrics  # only beside tests.pytorch

    images, texts = unit_rows(0, 61, 5), unit_rows(1, 61, 5)
    texts += 0.7 * images
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    theirs = get_clip_metrics(torch.tensor(images), torch.tensor(texts), torch.tensor(10.0))
    own = np.arange(61)
    found = recalls(images, texts, own)
    for name in ("image_to_text", "text_to_image"):
        assert found[f"{name}_median_rank"] == theirs[f"{name}_median_rank"] > 1
        for k in (1, 5, 10):
            assert found[f"{name}_recall@{k}"] == pytest.approx(theirs[f"{name}_R@{k}"], abs=1e-12)


@pytest.mark.parametrize("batch_size", [5, 32])
def test_a_model_that_knows_every_pair_scores_one_whatever_the_batch_size(
    pairs_csv, tmp_path, batch_size
):
    results = score(fake_encoders(batch_size), pairs_csv, tmp_path)
    assert results["image_to_text_recall@1"] == results["text_to_image_recall@1"] == 1.0
    assert results["chance_image_to_text_recall@1"] == pytest.approx(1 / 24)
    assert (results["pairs"], results["images"], results["captions"]) == (24, 24, 24)
    assert results["inmodal_consistency"] == pytest.approx(0, abs=1e-6)
    assert {path.name for path in tmp_path.iterdir()} == {
        *("outcomes.npz", "gallery.json", "confused.json")
    }
    assert json.loads((tmp_path / "confused.json").read_text()) == []


def test_a_model_that_mixes_up_two_colours_scores_half(pairs_csv):
    swap = {"red": "blue", "blue": "red"}
    encoders = fake_encoders(8, misread=lambda colour: swap.get(colour, colour))
    results = score(quick(encoders), pairs_csv)
    assert results["image_to_text_recall@1"] == results["text_to_image_recall@1"] == 0.5


def test_losses_are_means_over_groups_with_the_small_tail(pairs_csv):
    results = score(quick(fake_encoders(10)), pairs_csv)
    assert results["loss"] == pytest.approx((10 * 10 + 10 * 10 + 4 * 4) / 24)  # the fake's is n


def test_intervals_of_consistency_draw_images_not_captions(tmp_path):
    path = write_pairs(tmp_path)
    encoders = fake_encoders(8, misread=lambda colour: "blue" if colour == "red" else colour)
    encoders = quick(encoders)
    once = score(encoders, path)
    lines = path.read_text().splitlines()
    again = [line.replace(",a ", f",{word} ") for word in ("one", "the") for line in lines[1:]]
    path.write_text("\n".join([*lines, *again]))
    thrice = score(encoders, path)  # captions with the same embeddings
    assert thrice["pairs"] == 3 * once["pairs"]
    names = [f"inmodal_consistency{end}" for end in ("", "_ci_low", "_ci_high")]
    assert once[names[1]] < once[names[0]] < once[names[2]]
    for name in names:
        assert thrice[name] == pytest.approx(once[name], rel=1e-10)


def test_captions_and_images_that_repeat_are_one_with_several_partners(tmp_path):
    path = write_pairs(tmp_path)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines, "red_disc.png,a blue disc", "red_disc.png,a red disc"]))
    results = score(quick(fake_encoders(8)), path)
    assert (results["pairs"], results["images"], results["captions"]) == (26, 24, 24)
    assert results["image_to_text_recall@1"] == results["text_to_image_recall@1"] == 1.0


def test_an_unreadable_image_is_left_out_of_the_count(tmp_path):
    path = write_pairs(tmp_path)
    (tmp_path / "red_disc.png").write_bytes(b"no picture")
    results = score(fake_encoders(8), path)
    assert results["pairs"] == 23
    assert results["image_to_text_recall@1"] == 1.0


def test_the_gallery_has_the_captions_ranks_and_pictures(pairs_csv, tmp_path):
    score(quick(fake_encoders(8)), pairs_csv, tmp_path, gallery_captions=3)
    rows = json.loads((tmp_path / "gallery.json").read_text())
    assert len(rows) == 3
    for row in rows:
        assert (row["rank"], row["of"]) == (1, 24)
        assert [image["is_partner"] for image in row["images"]] == [True] + 5 * [False]
        jpeg = base64.b64decode(row["images"][0]["jpeg"])
        shown = np.asarray(Image.open(io.BytesIO(jpeg)), float)
        colour, shape = row["caption"].split()[1:]
        assert np.abs(shown - draw(shape, colour)).mean() < 10


def test_what_is_confused_is_shown_once_with_both_pictures(pairs_csv, tmp_path):
    swapped = {"red": "blue", "blue": "red"}
    encoders = fake_encoders(8, misread=lambda colour: swapped.get(colour, colour))
    score(quick(encoders), pairs_csv, tmp_path, gallery_captions=3)
    rows = json.loads((tmp_path / "confused.json").read_text())
    assert len(rows) == 3
    assert len({row["answer"]["caption"] for row in rows}) == 3
    for row in rows:
        colour, shape = row["caption"].split()[1:]
        answer = row["answer"]["caption"].split()[1:]
        assert row["rank"] > 1 and row["answer"]["cosine"] > row["cosine"]
        for jpeg, (its_colour, its_shape) in (
            (row["jpeg"], (colour, shape)),
            (row["answer"]["jpeg"], answer),
        ):
            shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(jpeg))), float)
            assert np.abs(shown - draw(its_shape, its_colour)).mean() < 10
        assert answer == [swapped[colour], shape]


def test_who_follows_a_run_sees_the_gallery_as_one_picture_of_bounded_size(pairs_csv, tmp_path):
    pictures = {}
    for name, count in (("few", 3), ("many", 24)):
        output = Output(tmp_path, show=lambda _, pixels, name=name: pictures.update({name: pixels}))
        evaluation = Retrieval("x", pairs=str(pairs_csv), gallery_captions=count)
        evaluation.open()(quick(fake_encoders(8)), output)
    assert pictures["few"].dtype == np.uint8 and pictures["few"].shape[2] == 3
    assert pictures["many"].shape[0] == 8 / 3 * pictures["few"].shape[0] < 1000
    assert pictures["many"].shape[1] == pictures["few"].shape[1] < 1000
    (row, *_) = json.loads((tmp_path / "gallery.json").read_text())
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(row["images"][1]["jpeg"]))))
    side = len(shown)
    # The second picture of the first row, beside the first, which has a frame.
    assert np.array_equal(pictures["many"][22 : 22 + side, 108 : 108 + side], shown)
    assert (pictures["many"][22, 6 : 6 + side] == (0, 90, 181)).all()


def test_a_gallery_draws_any_caption():
    query = {"caption": "a cat\n猫 🐈 " * 30, "rank": 1, "of": 2, "images": []}
    assert as_picture([query], 96).any()
    assert as_picture([], 96).size


def test_a_tie_in_the_gallery_is_a_miss_as_in_the_recall(pairs_csv, tmp_path):
    encoders = fake_encoders(8, misread=lambda colour: "red")  # 4 pictures of a shape are one
    results = score(quick(encoders), pairs_csv, tmp_path, gallery_captions=24)
    rows = json.loads((tmp_path / "gallery.json").read_text())
    ranks = np.array([row["rank"] for row in rows])
    assert np.mean(ranks <= 1) == results["text_to_image_recall@1"] == 0.0
    assert np.median(ranks) == results["text_to_image_median_rank"]


def test_no_gallery_may_be_written_as_none():
    evals.check_settings({"val": {"type": "retrieval", "pairs": "x.csv", "gallery_captions": None}})
