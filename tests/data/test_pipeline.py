"""The order of examples, resuming, splitting by process, and what happens to bad examples."""

import itertools
import json
import logging
import shutil
import time

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from cyclip_jax.data import images, pipeline, sources
from cyclip_jax.data.bad_examples import BadExamples
from cyclip_jax.data.order import Position, order
from cyclip_jax.data.transform import Transform
from cyclip_jax.errors import UserError

SIZE = 14  # examples in the dataset: three batches of four, and two examples over
IMAGE_SIZE = 8


def write_dataset(folder, blank=(), missing=(), broken=()):
    """Writes SIZE small pictures of several formats and their CSV, some of them bad on purpose.

    The caption of row i begins with i, so that a batch tells which rows it holds.
    """
    folder.mkdir(exist_ok=True)
    random = np.random.default_rng(0)
    formats = itertools.cycle(["jpg", "png", "webp", "gif", "bmp"])
    rows = ["image,caption"]
    for i, suffix in zip(range(SIZE), formats, strict=False):
        pixels = random.integers(0, 256, (3, 4, 3), dtype=np.uint8)
        picture = Image.fromarray(pixels).resize((20 + i % 3, 18), Image.Resampling.BICUBIC)
        name = f"{i:02d}.{suffix}"
        if i in broken:
            (folder / name).write_bytes(b"<html>not found</html>")
        elif i not in missing:
            picture.save(folder / name)
        rows.append(f"{name}," + (" \u00a0" if i in blank else f"{i} grüße"))
    path = folder / "pairs.csv"
    path.write_text("\n".join(rows), encoding="utf-8")
    return sources.create_source("csv", path, config_key="config.data.train")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("good"))


@pytest.fixture(scope="module")
def bad_source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad")
    return write_dataset(folder, blank=[3], missing=[7, 8], broken=[11])


def tokenizer(captions):
    """The row number at the head of a caption, and its length. int32 [n, 2]."""
    assert all(isinstance(caption, str) for caption in captions)
    rows = [int(caption.split()[0]) if caption.strip() else -1 for caption in captions]
    return np.array([[row, len(caption)] for row, caption in zip(rows, captions, strict=True)])


def train_steps(source, steps, bad_examples, **changes):
    """The first (batch, position) pairs, with the arguments that most tests share."""
    arguments = {
        "batch_size": 4,
        "image_size": IMAGE_SIZE,
        "seed": 5,
        "position": None,
        "shuffle": True,
        "transform": Transform(augmentation="random_resized_crop", crop_scale=(0.3, 1.0)),
        "bad_examples": bad_examples,
    }
    iterator = pipeline.train_batches(source, tokenizer, **{**arguments, **changes})
    result = list(itertools.islice(iterator, steps))
    iterator.close()
    return result


@pytest.fixture
def train(tmp_path):
    """`train_steps` with a file of bad examples of its own, and no limit to them."""

    def train(source, steps, **changes):
        bad_examples = BadExamples(tmp_path / "bad_examples.jsonl", 1.0, SIZE)
        return train_steps(source, steps, bad_examples, **changes)

    return train


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory):
    """The steps of an uninterrupted run: two epochs and two thirds."""
    folder = tmp_path_factory.mktemp("whole")
    return train_steps(source, 8, BadExamples(folder / "bad_examples.jsonl", 0.0, SIZE))


@pytest.fixture(scope="module")
def bad_run(bad_source, tmp_path_factory):
    """The steps of three epochs over bad examples too, and the `BadExamples` and its file."""
    path = tmp_path_factory.mktemp("bad_run") / "bad_examples.jsonl"
    bad_examples = BadExamples(path, 4 / 14, SIZE)
    return train_steps(bad_source, 9, bad_examples), bad_examples, path


def rows_of(steps):
    """The row numbers of some batches, one after the other."""
    return np.concatenate([batch["tokens"][:, 0] for batch, _ in steps]).tolist()


def assert_same_steps(steps, expected):
    assert len(steps) == len(expected)
    for (batch, position), (expected_batch, expected_position) in zip(steps, expected, strict=True):
        assert position == expected_position
        assert_same_batch(batch, expected_batch)


def assert_same_batch(batch, expected):
    assert batch.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(batch[name], expected[name])


def test_the_order_stays_what_it_was():
    """Golden values: a change here would change what a resumed run sees."""
    assert order(0, 0, 8).tolist() == [0, 2, 1, 5, 4, 3, 6, 7]
    assert order(0, 1, 8).tolist() == [5, 3, 7, 2, 4, 1, 0, 6]
    assert order(-1, 0, 8).tolist() == [0, 7, 4, 2, 6, 3, 1, 5]


def test_the_order_is_a_permutation_and_differs_by_seed_and_epoch():
    orders = [order(seed, epoch, 1000) for seed in (0, 1) for epoch in (0, 1)]

    for one, other in itertools.combinations(orders, 2):
        assert np.mean(one == other) < 0.01
    for one in orders:
        assert one.dtype == np.int64
        np.testing.assert_array_equal(np.sort(one), np.arange(1000))


def test_without_shuffling_the_order_is_the_sources(source, train):
    assert order(3, 1, 5, shuffle=False).tolist() == [0, 1, 2, 3, 4]
    assert rows_of(train(source, 4, shuffle=False)) == [*range(12), 0, 1, 2, 3]


def test_batches_hold_uint8_images_and_int32_tokens(whole):
    batch, _ = whole[0]

    assert batch.keys() == {"images", "tokens"}
    assert batch["images"].dtype == np.uint8
    assert batch["images"].shape == (4, IMAGE_SIZE, IMAGE_SIZE, 3)
    assert batch["tokens"].dtype == np.int32 and batch["tokens"].shape == (4, 2)


def test_an_image_stands_beside_its_own_caption(source, train):
    for batch, _ in train(source, 3, transform=Transform()):
        for image, (row, length) in zip(batch["images"], batch["tokens"], strict=True):
            record = source.read(int(row))
            expected = images.resize_and_centre_crop(
                images.decode(tf.constant(record.image)), IMAGE_SIZE
            )
            np.testing.assert_array_equal(image, expected)
            assert length == len(record.captions[0])


def test_an_epoch_shows_each_example_at_most_once_and_the_next_another_order(whole):
    first, second = rows_of(whole[:3]), rows_of(whole[3:6])

    assert first == order(5, 0, SIZE)[:12].tolist()
    assert second == order(5, 1, SIZE)[:12].tolist()
    assert len(set(first)) == len(set(second)) == 12
    assert first != second


def test_the_position_counts_what_was_handed_out(whole):
    positions = [position for _, position in whole[:4]]

    assert positions == [
        Position(0, 4, 5),
        Position(0, 8, 5),
        Position(1, 0, 5),
        Position(1, 4, 5),
    ]


def test_resuming_anywhere_in_two_epochs_gives_the_uninterrupted_run(source, train, whole):
    for done in range(1, 7):
        assert_same_steps(train(source, 2, position=whole[done - 1][1]), whole[done : done + 2])


def test_resuming_reads_no_example_that_lies_behind(train):
    reads = []
    source = CountingSource(10_000, reads)
    train(source, 1, position=Position(epoch=3, examples=8_000, seed=5))

    behind = set(order(5, 3, 10_000)[:8_000].tolist())
    assert reads and behind.isdisjoint(reads)


def test_a_position_at_the_end_of_an_epoch_goes_on_with_the_next(source, train, whole):
    assert_same_steps(train(source, 1, position=Position(0, 12, 5)), whole[3:4])


def test_a_resumed_run_may_change_its_batch_size(source, train):
    steps = train(source, 2, batch_size=5, position=Position(0, 4, 5))

    assert rows_of(steps) == order(5, 0, SIZE)[4:].tolist()
    assert [position for _, position in steps][-1] == Position(1, 0, 5)


def joined(shares):
    """The batch of all processes, of the parts that each of them has."""
    return {name: np.concatenate([share[name] for share in shares]) for name in shares[0]}


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_processes_together_read_the_batches_of_one(bad_source, train, bad_run, count):
    parts = [
        train(bad_source, 5, process_index=index, process_count=count) for index in range(count)
    ]
    steps = [
        (joined([batch for batch, _ in shares]), shares[-1][1])
        for shares in zip(*parts, strict=True)
    ]
    assert_same_steps(steps, bad_run[0][:5])


def images_by_row(steps):
    """{row: its image} of some batches."""
    return {
        row: image
        for batch, _ in steps
        for row, image in zip(batch["tokens"][:, 0].tolist(), batch["images"], strict=True)
    }


def test_augmentation_depends_on_seed_epoch_and_example_alone(source, train, whole):
    by_four = images_by_row(whole[:3])
    by_seven = images_by_row(train(source, 2, batch_size=7, shuffle=False))
    later = images_by_row(whole[3:6])
    reseeded = images_by_row(train(source, 3, seed=6))

    common = by_four.keys() & by_seven.keys() & later.keys() & reseeded.keys()
    assert len(common) >= 8
    for row in common:
        np.testing.assert_array_equal(by_four[row], by_seven[row])
    for other in (later, reseeded):
        changed = [np.any(by_four[row] != other[row]) for row in common]
        assert np.mean(changed) > 0.8


def test_too_few_examples_for_a_batch_are_refused_at_once(source, train):
    assert pipeline.steps_per_epoch(14, 4) == 3
    with pytest.raises(UserError, match=r"config\.batch_size is 15.*only 14 examples"):
        pipeline.steps_per_epoch(14, 15)
    with pytest.raises(UserError, match=r"only 14 examples"):
        train(source, 0, batch_size=15)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"process_count": 3}, r"batch_size is 4, which cannot be split among 3 processes"),
        ({"batch_size": 0}, r"batch_size is 0"),
        ({"position": Position(0, 4, 6)}, r"belongs to seed 6, but config\.seed is 5"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_at_once(source, train, changes, message):
    with pytest.raises(UserError, match=message):
        train(source, 0, **changes)


def test_evaluation_refuses_a_batch_size_that_does_not_divide(source):
    with pytest.raises(UserError, match="cannot be split among 3 processes"):
        pipeline.eval_batches(
            source, tokenizer, batch_size=4, image_size=IMAGE_SIZE, process_count=3
        )


def named(path):
    """{row: "reason: detail"} of a file of bad examples."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(lines) == len({line["index"] for line in lines})
    assert all(line["key"].startswith(f"{line['index']:02d}.") for line in lines)
    return {line["index"]: f"{line['reason']}: {line['detail']}" for line in lines}


def named_until(path, position):
    """The indices that a file of bad examples names from before a position."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    until = (position.epoch, position.examples)
    return {line["index"] for line in lines if (line["epoch"], line["examples"]) <= until}


def test_bad_examples_are_replaced_named_and_counted(bad_run):
    steps, bad_examples, path = bad_run
    wanted = [order(5, epoch, SIZE)[:12] for epoch in range(3)]
    used = np.array(rows_of(steps))
    reasons = named(path)

    is_bad = np.isin(np.concatenate(wanted), [3, 7, 8, 11])
    assert is_bad.sum() >= 6  # each of the four, and some of them again
    np.testing.assert_array_equal(used[~is_bad], np.concatenate(wanted)[~is_bad])
    assert not np.isin(used, [3, 7, 8, 11]).any()
    replacements = [set(epoch[epoch >= 0]) for epoch in np.split(np.where(is_bad, used, -1), 3)]
    assert max(map(len, replacements)) > 1  # not one example for all of an epoch
    assert bad_examples.count == 4
    assert reasons[3] == "the caption is empty: "
    assert reasons[7].startswith("the file is missing: ")
    assert bad_examples.by_reason == {
        "the file is missing": 2,
        "the caption is empty": 1,
        "the image cannot be decoded": 1,
    }
    assert reasons[11].startswith("the image cannot be decoded: ")


def test_replacement_is_the_same_in_every_run(bad_source, train, bad_run):
    assert_same_steps(train(bad_source, 9), bad_run[0])


@pytest.mark.parametrize("done, count", [(0, 0), (2, 1), (3, 2)])
def test_resuming_replaces_and_counts_as_if_never_stopped(
    bad_source, bad_run, tmp_path, done, count
):
    steps, _, path = bad_run
    position = steps[done - 1][1] if done else None
    met = named_until(path, steps[done - 1][1]) if done else set()
    assert len(met) == count

    resumed_path = shutil.copy(path, tmp_path / "bad.jsonl")
    bad_examples = BadExamples(resumed_path, 1, SIZE, position)
    assert set(named(resumed_path)) == met and bad_examples.count == len(met)
    resumed = train_steps(bad_source, 9 - done, bad_examples, position=position)
    assert_same_steps(resumed, steps[done:])
    assert resumed_path.read_text() == path.read_text()


def test_more_bad_examples_than_the_limit_end_the_run(bad_source, tmp_path):
    path = tmp_path / "bad.jsonl"
    with pytest.raises(UserError) as error:
        train_steps(bad_source, 9, BadExamples(path, 0.15, SIZE))

    assert str(error.value) == (
        "21.43% of the examples cannot be read, more than the allowed 15.00%: 3 of 14 (1 × the "
        "caption is empty, 1 × the image cannot be decoded, 1 × the file is missing), named in "
        f"{path}; mend them, or raise config.data.max_bad_share"
    )
    assert len(named(path)) == 3


def test_an_example_without_a_readable_replacement_ends_the_run(tmp_path, train):
    source = write_dataset(tmp_path / "all_bad", missing=range(SIZE))
    with pytest.raises(UserError, match=r"example \d\d\.\w+ and the 8 drawn to replace it"):
        train(source, 1)


def test_the_file_of_bad_examples_is_made_only_for_one(source, tmp_path):
    path = tmp_path / "new_folder" / "bad.jsonl"
    bad_examples = BadExamples(path, 1.0, SIZE)
    train_steps(source, 3, bad_examples)
    assert not path.exists() and bad_examples.count == 0

    bad_examples.add("a.jpg", 3, "a reason", "more of it")
    named = {"key": "a.jpg", "index": 3, "reason": "a reason", "detail": "more of it"}
    assert json.loads(path.read_text()) == named


def test_bad_examples_are_taken_up_from_the_file_but_for_half_a_line(tmp_path):
    path = tmp_path / "bad.jsonl"
    first = BadExamples(path, 0.5, 6)
    first.add("a.jpg", 3, "a reason")
    first.add("ä.jpg", 4, "a reason")
    with path.open("a") as file:
        file.write('{"key": "b.jpg", "ind')
    second = BadExamples(path, 0.5, 6)
    second.add("ä.jpg", 4, "a reason")
    assert second.count == 2

    second.add("b.jpg", 5, "a reason")
    assert [json.loads(line)["index"] for line in path.read_text().splitlines()] == [3, 4, 5]
    with pytest.raises(UserError, match=r"50\.00% of the examples.*3 of 6 \("):
        BadExamples(path, 0.4, 6)


def evaluate(source, **changes):
    arguments = {"batch_size": 4, "image_size": IMAGE_SIZE}
    return list(pipeline.eval_batches(source, tokenizer, **{**arguments, **changes}))


def test_evaluation_reads_every_example_once_in_the_files_order(source):
    batches = evaluate(source)
    masks = np.concatenate([batch["mask"] for batch in batches])
    rows = np.concatenate([batch["tokens"][:, 0] for batch in batches])

    assert all(batch["images"].shape == (4, IMAGE_SIZE, IMAGE_SIZE, 3) for batch in batches)
    assert masks.dtype == bool and batches[0]["images"].dtype == np.uint8
    assert batches[0]["tokens"].dtype == np.int32
    assert masks.tolist() == [True] * 14 + [False] * 2
    assert rows[masks].tolist() == list(range(14))
    assert not batches[-1]["images"][2:].any()
    picture = images.decode(tf.constant(source.read(13).image))
    expected = images.resize_and_centre_crop(picture, IMAGE_SIZE)
    np.testing.assert_array_equal(batches[-1]["images"][1], expected)


def test_evaluation_fills_up_a_dataset_smaller_than_a_batch(source):
    (batch,) = evaluate(source, batch_size=32)

    assert batch["mask"].tolist() == [True] * 14 + [False] * 18


@pytest.mark.parametrize("count", [4, pytest.param(2, marks=pytest.mark.slow)])
def test_processes_together_evaluate_the_batches_of_one(bad_source, count):
    parts = [
        evaluate(bad_source, process_index=index, process_count=count) for index in range(count)
    ]
    for batch, *shares in zip(evaluate(bad_source), *parts, strict=True):
        assert_same_batch(joined(shares), batch)


def test_evaluation_masks_and_names_what_it_cannot_read(bad_source, tmp_path, caplog):
    bad_examples = BadExamples(tmp_path / "bad.jsonl", 1.0, SIZE)
    batches = evaluate(bad_source, bad_examples=bad_examples)
    masks = np.concatenate([batch["mask"] for batch in batches])

    assert np.flatnonzero(~masks).tolist() == [3, 7, 8, 11, 14, 15]
    assert sorted(named(tmp_path / "bad.jsonl")) == [3, 7, 8, 11]
    with caplog.at_level(logging.WARNING):
        evaluate(bad_source)
    assert [record.args[1] for record in caplog.records] == [3, 7, 8, 11]


class CountingSource:
    """`size` examples of one picture, noting in `reads` which of them are read."""

    faults = ()

    def __init__(self, size, reads):
        self._size = size
        self._reads = reads
        self._encoded = tf.io.encode_png(np.zeros([2, 2, 3], np.uint8)).numpy()

    def __len__(self):
        return self._size

    def keys(self, indices):
        return [str(index) for index in indices]

    def read(self, index):
        self._reads.append(index)
        return sources.Record(self._encoded, [f"{index} noted"], [1.0])


def test_closing_ends_the_reading(tmp_path):
    reads = []
    iterator = pipeline.train_batches(
        CountingSource(1_000_000, reads),
        tokenizer,
        batch_size=2,
        image_size=IMAGE_SIZE,
        seed=0,
        position=None,
        shuffle=False,
        bad_examples=BadExamples(tmp_path / "bad.jsonl", 1.0, 1_000_000),
    )
    for _ in range(20):
        next(iterator)
    iterator.close()
    time.sleep(0.2)  # what was being read may end
    after_closing = len(reads)
    time.sleep(0.3)

    assert len(reads) == after_closing
    assert list(iterator) == []
