"""Second views: what they are, that their chance is their own, and that the first views stay."""

import collections
import dataclasses
import functools
import itertools
import json
import zlib

import numpy as np
import pytest
import tensorflow as tf

from cyclip_jax import defaults
from cyclip_jax.data import images, pipeline
from cyclip_jax.data.bad_examples import BadExamples
from cyclip_jax.data.captions import another_caption, draw_caption
from cyclip_jax.data.draws import EDA, Draws
from cyclip_jax.data.eda import eda
from cyclip_jax.data.order import Position
from cyclip_jax.data.record import Record
from cyclip_jax.data.second_views import SecondViews
from cyclip_jax.data.settings import Data, open_batches, open_source
from cyclip_jax.data.transform import Transform
from cyclip_jax.errors import UserError
from cyclip_jax.runtime.sections import completed, constructed
from tests.data.test_wordnet import folder as wordnet_files  # noqa: F401

SIZE, SEED, SIDE = 14, 5, 8
BROKEN = frozenset([3, 11])
NAMES = (
    *("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen"),
)
CROPS = Transform(augmentation="random_resized_crop", crop_scale=(0.3, 1.0), horizontal_flip=True)
SECOND = dataclasses.replace(CROPS, colour_jitter=0.3)


class Pairs:
    """SIZE pictures of odd sides with three captions each; those of `broken` are no pictures."""

    faults = ()

    def __init__(self, broken=frozenset()):
        random = np.random.default_rng(0)
        sides = [(18 + i % 3, 20) for i in range(SIZE)]
        pictures = [random.integers(0, 256, (*side, 3), dtype=np.uint8) for side in sides]
        self.encoded = [tf.io.encode_png(pixels).numpy() for pixels in pictures]
        for i in broken:
            self.encoded[i] = b"<html>not found</html>"

    def __len__(self):
        return SIZE

    def keys(self, indices):
        return [str(index) for index in indices]

    def read(self, index):
        captions = [f"{NAMES[index]} {kind} beside a red chair" for kind in ("cats", "men", "it")]
        return Record(self.encoded[index], captions, [3.0, 2.0, 1.0])


def tokenizer(captions):
    """The number of the picture, if the text begins with it, and a sum of the text, [n, 2]."""
    firsts = [caption.partition(" ")[0] for caption in captions]
    numbers = [NAMES.index(first) if first in NAMES else -1 for first in firsts]
    return np.array([numbers, [zlib.crc32(text.encode()) & 0x7FFFFFFF for text in captions]]).T


def second_caption(record, caption, seed, epoch, index):
    draws = Draws(seed, epoch, index, EDA)
    return eda(caption, lambda word: (f"{word}ish", f"very {word}"), draws)


SECONDS = {"second_transform": SECOND, "second_caption": second_caption}


def train_steps(folder, steps, source=None, tokenizer=tokenizer, **changes):
    """The first (batch, position) pairs, with second views unless `changes` say otherwise."""
    arguments = {"batch_size": 4, "image_size": SIDE, "seed": SEED, "position": None}
    arguments |= {"transform": CROPS, **SECONDS, **changes}
    iterator = pipeline.train_batches(
        source or Pairs(),
        tokenizer,
        bad_examples=BadExamples(folder / "bad.jsonl", 1.0, SIZE),
        **arguments,
    )
    result = list(itertools.islice(iterator, steps))
    iterator.close()
    return result


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The steps of an uninterrupted run: an epoch and two thirds."""
    return train_steps(tmp_path_factory.mktemp("whole"), 5)


def assert_same_batches(batches, expected):
    for batch, other in zip(batches, expected, strict=True):
        assert batch.keys() == other.keys()
        for name, part in other.items():
            np.testing.assert_array_equal(batch[name], part, strict=True)


def batches_of(steps):
    return [batch for batch, _ in steps]


@functools.cache
def view_of(transform):
    return tf.function(
        lambda encoded, seed: images.transform(encoded, seed, size=SIDE, settings=transform),
        input_signature=[tf.TensorSpec([], tf.string), tf.TensorSpec([2], tf.int64)],
    )


def assert_views_are_those_of_the_examples(steps):
    """Straight from the definition, for the example that each row really has."""
    source = Pairs()
    for step, (batch, _) in enumerate(steps):
        for row in range(4):
            index, epoch = int(batch["tokens"][row, 0]), step // 3
            record = source.read(index)
            seed = images.example_seed(SEED, epoch, index)
            for name, transform, stream in (
                ("images", CROPS, 0),
                ("second_images", SECOND, images.SECOND_VIEW),
            ):
                expected = view_of(transform)(record.image, seed + stream).numpy()
                np.testing.assert_array_equal(batch[name][row], expected)
            first = draw_caption(record, SEED, epoch, index)
            second = second_caption(record, first, SEED, epoch, index)
            np.testing.assert_array_equal(batch["tokens"][row], tokenizer([first])[0])
            np.testing.assert_array_equal(batch["second_tokens"][row], tokenizer([second])[0])


def test_second_views_are_what_their_settings_make_of_the_same_example(whole):
    assert_views_are_those_of_the_examples(whole)
    for batch in batches_of(whole):
        assert batch["second_images"].dtype == np.uint8
        assert batch["second_images"].shape == batch["images"].shape == (4, SIDE, SIDE, 3)
        assert batch["second_tokens"].dtype == np.int32
        assert all(np.any(batch["images"] != batch["second_images"], axis=(1, 2, 3)))
        assert np.mean(batch["tokens"][:, 1] != batch["second_tokens"][:, 1]) > 0.5


@pytest.mark.parametrize("left_out", ["images", "captions", "both"])
def test_asking_for_second_views_leaves_the_first_as_they_were(whole, tmp_path, left_out):
    without = {"images": "second_transform", "captions": "second_caption"}
    changes = {key: None for name, key in without.items() if left_out in (name, "both")}
    steps = train_steps(tmp_path, 5, **changes)

    gone = {"second_transform": "second_images", "second_caption": "second_tokens"}
    gone = {gone[key] for key in changes}
    assert not gone & batches_of(steps)[0].keys()
    assert [position for _, position in steps] == [position for _, position in whole]
    kept = [{name: batch[name] for name in batch.keys() - gone} for batch in batches_of(whole)]
    assert_same_batches(batches_of(steps), kept)


def test_resumption_and_processes_give_the_same_second_views(whole, tmp_path):
    resumed = train_steps(tmp_path, 3, position=whole[1][1])
    assert_same_batches(batches_of(resumed), batches_of(whole)[2:])

    parts = [
        batches_of(train_steps(tmp_path, 2, process_index=i, process_count=2)) for i in range(2)
    ]
    joined = [
        {name: np.concatenate([one[name], other[name]]) for name in one}
        for one, other in zip(*parts, strict=True)
    ]
    assert_same_batches(joined, batches_of(whole)[:2])


def test_any_chunking_gives_the_same_second_views(whole, tmp_path):
    def rows(steps):
        return {
            int(batch["tokens"][row, 0]): {name: part[row] for name, part in batch.items()}
            for batch in batches_of(steps)
            for row in range(len(batch["tokens"]))
        }

    by_four, by_seven = rows(whole[:3]), rows(train_steps(tmp_path, 2, batch_size=7))
    assert by_four.keys() < by_seven.keys() and len(by_four) == 12
    assert_same_batches([by_seven[row] for row in by_four], by_four.values())


def test_a_bad_example_is_replaced_with_the_views_of_its_replacement(tmp_path):
    steps = train_steps(tmp_path, 6, source=Pairs(BROKEN))

    used = np.concatenate([batch["tokens"][:, 0] for batch in batches_of(steps)])
    assert BROKEN.isdisjoint(used.tolist()) and len(used) == 24
    assert_views_are_those_of_the_examples(steps)
    lines = [json.loads(line) for line in (tmp_path / "bad.jsonl").read_text().splitlines()]
    assert {line["index"] for line in lines} == BROKEN


def test_a_second_caption_that_cannot_be_tokenised_is_that_examples_fault(tmp_path):
    def second(record, caption, seed, epoch, index):
        text = second_caption(record, caption, seed, epoch, index)
        return f"{text} �" if index == 3 else text

    def fails(captions):
        if any(caption.endswith("�") for caption in captions):
            raise ValueError("no such character")
        return tokenizer(captions)

    steps = train_steps(tmp_path, 6, tokenizer=fails, second_caption=second)
    assert 3 not in np.concatenate([batch["tokens"][:, 0] for batch in batches_of(steps)])
    assert_views_are_those_of_the_examples(steps)
    (line,) = [json.loads(line) for line in (tmp_path / "bad.jsonl").read_text().splitlines()]
    assert (line["index"], line["reason"]) == (3, "the caption cannot be tokenised")


# The settings


def test_the_policy_of_a_second_image_takes_the_place_of_the_runs_own():
    own = dataclasses.replace(CROPS, policy="randaugment", colour_jitter=0.1)

    assert SecondViews().transform(own) is None and SecondViews().caption() is None
    second = SecondViews(second_image="autoaugment").transform(own)
    assert second == dataclasses.replace(own, policy="autoaugment")
    assert SecondViews(second_image="crops").transform(own) == own
    assert SecondViews(second_image="autoaugment").transform(Transform()) == Transform(
        policy="autoaugment"
    )
    with pytest.raises(UserError, match=r"set config\.data\.augmentation='random_resized_crop'"):
        SecondViews(second_image="crops").transform(Transform())


def test_the_second_caption_is_eda_with_the_synonyms_of_a_folder(wordnet_files):  # noqa: F811
    views = SecondViews(second_caption="eda", synonyms=str(wordnet_files))
    view = views.caption()
    once = dataclasses.replace(views, second_caption_draws="once").caption()
    record = Record(b"", ["A dog."], [1.0])

    texts = [view(record, "A dog.", 0, epoch, 7) for epoch in range(40)]
    assert {"a cat", "a chase", "dog a"} <= set(texts)  # a is a stop word
    assert {once(record, "A dog.", 0, epoch, 7) for epoch in range(40)} == {texts[0]}
    assert len({once(record, "A dog.", 0, 0, index) for index in range(40)}) > 5


def test_another_caption_is_one_of_the_others_by_their_weights():
    record = Record(b"", ["a", "b", "c", "a"], [1.0, 3.0, 1.0, 2.0])
    view = SecondViews(second_caption="another").caption()

    drawn = collections.Counter(view(record, "a", 0, epoch, 0) for epoch in range(1000))
    assert set(drawn) == {"b", "c"} and 700 < drawn["b"] < 800
    assert set(another_caption(record, "b", 0, 0, index) for index in range(50)) == {"a", "c"}
    assert view(Record(b"", ["a"], [1.0]), "a", 0, 0, 0) == "a"
    assert view(Record(b"", ["a", "a"], [1.0, 1.0]), "a", 0, 0, 0) == "a"
    once = SecondViews(second_caption="another", second_caption_draws="once").caption()
    assert len({once(record, "a", 0, epoch, 0) for epoch in range(50)}) == 1


@pytest.mark.parametrize(
    "caption, short",
    [
        ("A dog. It runs. It is 1.5 m high.", "A dog"),
        ("A dog 1.5 m high.", "A dog 1.5 m high."),
        ("A dog", "A dog"),
    ],
)
def test_the_first_sentence_ends_at_a_full_stop_with_a_space(caption, short):
    view = SecondViews(second_caption="first_sentence").caption()
    assert view(Record(b"", [caption], [1.0]), caption, 0, 3, 7) == short


def test_a_folder_without_wordnet_is_missed_before_the_data_are_opened(tmp_path):
    config = defaults.get_config().data
    config.update(train=str(tmp_path / "no.csv"), second_caption="eda", synonyms=str(tmp_path))
    data = constructed(Data, config, "config.data")
    with pytest.raises(UserError, match=r"is no folder of WordNet's files, as it has no index"):
        open_source(data, 4)


def test_the_settings_of_a_run_reach_its_batches(tmp_path):
    config = defaults.get_config().data
    config.update(
        augmentation="random_resized_crop",
        crop_scale=(0.3, 1.0),
        horizontal_flip=True,
        second_image="crops",
        second_caption="another",
    )
    data = constructed(Data, config, "config.data")
    bad_examples = BadExamples(tmp_path / "bad.jsonl", 1.0, SIZE)
    batches = open_batches(
        data,
        Pairs(),
        tokenizer,
        bad_examples,
        **{"batch_size": 4, "seed": SEED, "image_size": SIDE, "position": Position(0, 0, SEED)},
    )
    (batch, _), *_ = itertools.islice(batches, 1)
    batches.close()

    assert np.any(batch["images"] != batch["second_images"], axis=(1, 2, 3)).all()
    assert (batch["tokens"][:, 0] == batch["second_tokens"][:, 0]).all()
    assert (batch["tokens"][:, 1] != batch["second_tokens"][:, 1]).all()


def test_a_config_from_before_there_were_second_views_has_none():
    data = defaults.get_config().data.to_dict()
    old = {key: data[key] for key in data if "second" not in key and key != "synonyms"}
    assert len(old) == len(data) - 4
    views = constructed(Data, completed(old, data), "config.data").second_views
    assert views == SecondViews() and views.caption() is None
