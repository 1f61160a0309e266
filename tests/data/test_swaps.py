"""Wrong captions: two words exchanged, or a column of their own."""

import numpy as np
import pytest
from PIL import Image

from cyclip_jax.data.bad_examples import BadExamples
from cyclip_jax.data.captions import CaptionRule
from cyclip_jax.data.draws import SWAPPED, Draws
from cyclip_jax.data.pillow import encoded_as
from cyclip_jax.data.pipeline import train_batches
from cyclip_jax.data.second_views import SecondViews
from cyclip_jax.data.swaps import swapped
from cyclip_jax.data.wordnet import open_parts_of_speech
from cyclip_jax.errors import UserError

PARTS = {"dog": "n", "cat": "n", "black": "a", "white": "a", "runs": "v"}


def every_swap(text):
    return {swapped(text, PARTS.get, Draws(0, epoch, 0, SWAPPED)) for epoch in range(60)}


def test_two_words_of_one_part_of_speech_change_places():
    assert every_swap("A black dog, a white cat; it runs.") == {
        "A white dog, a black cat; it runs.",
        "A black cat, a white dog; it runs.",
    }


@pytest.mark.parametrize("text", ["", "a dog", "black dog", "dog, Dog and the dog", "of the a"])
def test_without_two_such_words_there_is_none(text):
    assert every_swap(text) == {""}


def test_wordnet_says_what_part_of_speech_a_word_is_of():
    part = open_parts_of_speech(None)
    words = {"dogs": "n", "black": "a", "ran": "v", "quickly": "r", "of": None, "xyzzyx": None}
    assert {word: part(word) for word in words} == words


def test_what_is_drawn_follows_from_the_example_and_the_epoch():
    negative = SecondViews(negative_caption="swap").negative()
    text = "a small red square above a large green circle"
    record = CaptionRule("caption").record(b"", [[text]])
    draws = [negative(record, text, 3, epoch, 5) for epoch in range(20)]
    assert draws == [negative(record, text, 3, epoch, 5) for epoch in range(20)]
    assert len(set(draws)) > 2
    assert all(sorted(draw.split()) == sorted(text.split()) and draw != text for draw in draws)


def test_a_given_one_stands_in_a_column_of_its_own():
    views = SecondViews(negative_caption="given", negative_caption_key="wrong")
    rule = CaptionRule(("a", "b"), (1, 3), negative="wrong")
    assert rule.fields == ("a", "b", "wrong")
    record = rule.record(b"", [["one"], ["two"], ["other"]])
    assert (record.captions, record.weights, record.negative) == (["one", "two"], [1, 3], "other")
    assert views.negative()(record, "one", 0, 0, 0) == "other"
    blank = rule.record(b"", [["one"], ["two"], [" "]])
    assert views.negative()(blank, "one", 0, 0, 0) == ""


@pytest.mark.parametrize(
    "settings", [{"negative_caption": "given"}, {"negative_caption_key": "wrong"}]
)
def test_a_column_and_its_use_belong_together(settings):
    with pytest.raises(UserError, match=r"negative_caption_key belong together"):
        SecondViews(**settings)


class Six:
    """A source of six examples but for what they are."""

    faults, mean_bytes, boundaries = (), 1000, np.array([0, 6])

    def __len__(self):
        return 6

    def keys(self, indices):
        return [f"example {index}" for index in indices]


def test_a_batch_holds_them_and_its_pairs_stay_the_same(tmp_path):
    class Source(Six):
        def read(self, index):
            caption = "a square" if index == 4 else f"a small red square and {index} green discs"
            return CaptionRule("caption").record(PICTURE, [[caption]])

    def batches(negative):
        bad = BadExamples(tmp_path / f"bad_{negative}.jsonl", 0.1, 6)
        options = {"batch_size": 6, "image_size": 8, "seed": 3, "position": None}
        views = SecondViews(negative_caption=negative)
        found = train_batches(
            Source(), lengths, bad_examples=bad, negative_caption=views.negative(), **options
        )
        try:
            return [next(found)[0] for _ in range(2)]
        finally:
            found.close()
            bad.close()

    for plain, with_negatives in zip(batches("none"), batches("swap"), strict=True):
        assert with_negatives.keys() - plain.keys() == {"negative_tokens", "has_negative"}
        for name, rows in plain.items():
            np.testing.assert_array_equal(with_negatives[name], rows)
        has = with_negatives["has_negative"]
        assert has.dtype == bool and has.sum() == 5
        own, negative = plain["tokens"], with_negatives["negative_tokens"]
        assert np.all(np.any(negative != own, axis=1))
        np.testing.assert_array_equal(negative[~has], lengths([""]))
        # The same words in another order.
        np.testing.assert_array_equal(np.sort(negative[has]), np.sort(own[has]))


def test_a_negative_image_is_a_pair_with_its_text(tmp_path):
    """A damaged one costs its example; without one there is a mask."""
    negatives = [OTHER, b"", OTHER, b"damaged", OTHER, OTHER]

    class Source(Six):
        def read(self, index):
            wrong = "" if index == 4 else "a blue square"
            rule = CaptionRule("caption", negative="wrong")
            return rule.record(PICTURE, [[f"a square {index}"], [wrong]], negatives[index])

    bad = BadExamples(tmp_path / "bad.jsonl", 0.5, 6)
    views = SecondViews(
        negative_caption="given", negative_caption_key="wrong", negative_image_key="of"
    )
    found = train_batches(
        *(Source(), lengths),
        batch_size=6,
        image_size=8,
        seed=3,
        position=None,
        shuffle=False,
        bad_examples=bad,
        negative_caption=views.negative(),
        has_negative_images=True,
    )
    batch, _ = next(found)
    found.close()
    bad.close()
    assert batch["has_negative_image"].tolist()[:3] == [True, False, True]
    assert batch["has_negative_image"].tolist()[4:] == [False, True]  # no text; both
    whites = batch["negative_images"].reshape(6, -1).min(axis=1)
    assert whites[[0, 2, 5]].tolist() == [255] * 3 and whites[1] == 0
    assert batch["images"].max() == 0
    assert "example 3" in (tmp_path / "bad.jsonl").read_text()


def test_a_negative_image_needs_a_text_that_stands_beside_it():
    with pytest.raises(UserError, match=r"set config\.data\.negative_caption='given'"):
        SecondViews(negative_caption="swap", negative_image_key="of")


PICTURE = encoded_as(Image.new("RGB", (8, 8)), "PNG")


OTHER = encoded_as(Image.new("RGB", (8, 8), "white"), "PNG")


def lengths(texts):
    """The tokenizer of these tests: the hash of each word."""
    ids = [[sum(map(ord, word)) for word in text.split()] for text in texts]
    return np.array([row + [0] * (8 - len(row)) for row in ids], np.int32)
