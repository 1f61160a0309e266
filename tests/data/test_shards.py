"""Sources in shards: what is written is what is read, and a run goes on exactly anywhere."""

import collections
import errno
import functools
import gc
import gzip
import io
import itertools
import os
import pickle
import shutil
import types

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import tensorflow as tf

from cyclip_jax import defaults
from cyclip_jax.data import images, pipeline
from cyclip_jax.data import settings as configured
from cyclip_jax.data.bad_examples import BadExamples
from cyclip_jax.data.order import Position, examples_of_epoch
from cyclip_jax.data.sources import (
    Unreadable,
    create_mixture,
    create_source,
    draw_caption,
    parquet,
    ranges,
    shard_index,
    tfrecord,
    webdataset,
)
from cyclip_jax.data.transform import Transform
from cyclip_jax.errors import UserError
from tests.data import shards

SIZE = 43  # examples in each data set: five batches of eight, and three examples over
BATCH, STEPS = 8, 5
SEED, IMAGE_SIZE = 5, 8
CROP = Transform(augmentation="random_resized_crop", crop_scale=(0.6, 1.0))

PARTS_OF_MIXTURE = ("webdataset", "parquet")


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """{name: path} of the same SIZE examples as every kind of source has them."""
    folder = tmp_path_factory.mktemp("shards")
    numbers = range(SIZE)
    return {
        "csv": shards.write_csv(folder / "csv", numbers),
        "webdataset": shards.write_tars(
            folder / "tars", [range(0, 15), range(15, 30), range(30, SIZE)]
        ),
        "tfrecord": shards.write_tfrecords(folder / "records", [range(20), range(20, SIZE)]),
        "tfds": shards.write_tfds(folder / "tfds", numbers),
        "array_record": shards.write_tfds(
            folder / "array_record", numbers, file_format="array_record"
        ),
        "parquet": shards.write_parquet(folder / "parquet", [range(18), range(18, SIZE)]),
    }


def open_source(paths, name, **settings):
    settings = {"config_key": "config.data.train"} | settings
    if name == "mixture":
        weights = {"webdataset": [(0, 3.0), (8, 0.5)], "parquet": [(0, 1.0)]}
        parts = {
            part: {"train": paths[part], "source": part, "weight": weights[part]}
            for part in PARTS_OF_MIXTURE
        }
        return create_mixture(parts)
    return create_source("tfds" if name == "array_record" else name, paths[name], **settings)


def numbers_of(texts):
    """The numbers at the heads of captions."""
    return [int(text.split()[0]) for text in texts]


@pytest.mark.parametrize(
    "name", ["csv", "webdataset", "tfrecord", "tfds", "array_record", "parquet", "mixture"]
)
def test_a_source_gives_back_what_was_written(paths, name):
    source = open_source(paths, name)
    size = SIZE * (2 if name == "mixture" else 1)
    records = [source.read(index) for index in range(size)]
    numbers = numbers_of(record.captions[0] for record in records)

    assert len(source) == size
    assert sorted(numbers) == sorted([*range(SIZE)] * (size // SIZE))
    for number, record in zip(numbers, records, strict=True):
        assert record.image == shards.picture(number)
        assert record.captions == [shards.caption(number)] and record.weights == [1.0]
    assert source.captions() == [record.captions[0] for record in records]
    keys = source.keys(range(size))
    assert len(set(keys)) == size and source.keys([7, 3]) == [keys[7], keys[3]]
    assert list(source.faults) == []
    if name not in ("mixture", "tfds", "array_record"):  # these keep an order of their own
        assert numbers == list(range(SIZE))


def test_keys_name_the_shard_and_the_example(paths):
    assert open_source(paths, "webdataset").keys([16])[0].endswith("00001.tar/000000016")
    assert open_source(paths, "tfrecord").keys([21]) == ["00001.tfrecord#1"]
    assert open_source(paths, "parquet").keys([25]) == ["train-00001.parquet#7"]
    assert open_source(paths, "tfds", config_key="c").keys([0])[0].endswith("-00000-of-00003#0")
    key = open_source(paths, "mixture").keys([SIZE + 1])
    assert key == ["parquet: train-00000.parquet#1"]


def test_runs_of_neighbours_are_shards_and_row_groups(paths):
    assert open_source(paths, "webdataset").boundaries.tolist() == [0, 15, 30, 43]
    assert open_source(paths, "tfrecord").boundaries.tolist() == [0, 20, 43]
    groups = [0, 4, 8, 12, 16, 18, 22, 26, 30, 34, 38, 42, 43]
    assert open_source(paths, "parquet").boundaries.tolist() == groups


# Resumption.


def open_batches(source, path, **changes):
    arguments = {"batch_size": BATCH, "image_size": IMAGE_SIZE, "seed": SEED, "position": None}
    bad_examples = BadExamples(path / "bad_examples.jsonl", 0.0, len(source))
    arguments |= {"transform": CROP, "bad_examples": bad_examples} | changes
    return pipeline.train_batches(source, shards.tokenizer, **arguments)


def train(source, path, steps, **changes):
    """The first (batch, position) pairs."""
    iterator = open_batches(source, path, **changes)
    result = list(itertools.islice(iterator, steps))
    iterator.close()
    return result


def train_together(sources, path, steps, **changes):
    """The same of several processes, their parts of each batch put together."""
    iterators = [
        open_batches(source, path, process_index=p, process_count=len(sources), **changes)
        for p, source in enumerate(sources)
    ]
    result = []
    for shares in itertools.islice(zip(*iterators, strict=True), steps):
        assert len({position for _, position in shares}) == 1
        batches = [batch for batch, _ in shares]
        joined = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
        result.append((joined, shares[0][1]))
    for iterator in iterators:
        iterator.close()
    return result


def assert_same_steps(steps, expected):
    for (batch, position), (expected_batch, expected_position) in zip(steps, expected, strict=True):
        assert position == expected_position
        np.testing.assert_array_equal(batch["tokens"], expected_batch["tokens"])
        np.testing.assert_array_equal(batch["images"], expected_batch["images"])


@tf.function(input_signature=[tf.TensorSpec([], tf.string), tf.TensorSpec([2], tf.int64)])
def cropped(encoded, example_seed):
    return images.transform(encoded, example_seed, size=IMAGE_SIZE, settings=CROP)


@pytest.mark.parametrize(
    ("name", "window", "done", "processes"),
    [
        ("webdataset", 24, 4, 2),
        ("tfrecord", None, 1, 4),  # more than there are shards
        ("tfds", None, 5, 1),
        ("parquet", 32, 7, 1),
        ("mixture", None, 8, 2),
    ],
)
def test_a_run_resumed_by_other_processes_is_the_uninterrupted_run(
    paths, tmp_path, name, window, done, processes
):
    source = open_source(paths, name, kept_examples=window or 0)
    whole = train(source, tmp_path, 11, shuffle_window=window)
    epochs = [
        examples_of_epoch(source, SEED, epoch, batch_size=BATCH, window=window)
        for epoch in range(3)
    ]
    epochs = [rows[: len(rows) // BATCH * BATCH] for rows in epochs]
    rows = np.concatenate(epochs)[: 11 * BATCH]

    # The whole run is what the order says, which shows no example twice in an epoch.
    captions = source.captions()
    tokens = np.concatenate([batch["tokens"] for batch, _ in whole])
    np.testing.assert_array_equal(tokens, shards.tokenizer([captions[i] for i in rows[:, 1]]))
    assert all(len(np.unique(epoch, axis=0)) == len(epoch) for epoch in epochs)
    pictures = np.concatenate([batch["images"] for batch, _ in whole])
    for place, (epoch, index) in list(enumerate(rows.tolist()))[::7]:
        example_seed = images.example_seed(SEED, epoch, index)
        np.testing.assert_array_equal(
            pictures[place], cropped(source.read(index).image, example_seed)
        )

    # Each process opens the data for itself, as after a restart.
    sources = [open_source(paths, name, kept_examples=window or 0) for _ in range(processes)]
    resumed = train_together(
        sources, tmp_path, 3, position=whole[done - 1][1], shuffle_window=window
    )
    assert_same_steps(resumed, whole[done : done + 3])


def test_a_run_goes_on_only_in_the_data_and_the_order_that_it_began_with(paths):
    config = defaults.get_config()
    meta = {"dataset_size": 24, "config": {"batch_size": config.batch_size}}
    csv, mixture = open_source(paths, "csv"), open_source(paths, "mixture")
    configured.check_continued(config, csv, meta | {"dataset_size": len(csv)})
    with pytest.raises(UserError, match=f"has trained on 1 examples, and there are {len(csv)} now"):
        configured.check_continued(config, csv, meta | {"dataset_size": 1})

    meta = {"config": {"batch_size": 64}}  # as from before the size was saved
    configured.check_continued(config, csv, meta)
    with pytest.raises(UserError, match=r"began with config\.batch_size=64.*not 128"):
        configured.check_continued(config, mixture, meta)
    config.data.shuffle_window = 10
    with pytest.raises(UserError, match=r"began with config\.batch_size=64"):
        configured.check_continued(config, csv, meta)


def evaluate(source, batch_size, processes):
    """(numbers, masks) of all batches, the processes' parts of each put together."""
    parts = [
        pipeline.eval_batches(
            source,
            shards.tokenizer,
            batch_size=batch_size,
            image_size=IMAGE_SIZE,
            process_index=p,
            process_count=processes,
        )
        for p in range(processes)
    ]
    batches = [batch for shares in zip(*parts, strict=True) for batch in shares]
    tokens = np.concatenate([batch["tokens"] for batch in batches])
    return tokens[:, 0].tolist(), np.concatenate([batch["mask"] for batch in batches]).tolist()


@pytest.mark.parametrize(("batch_size", "processes"), [(7, 1), (12, 2)])
def test_evaluation_sees_everything_once_and_in_order(paths, batch_size, processes):
    numbers, masks = evaluate(open_source(paths, "webdataset"), batch_size, processes)
    filled_up = -SIZE % batch_size

    assert numbers == [*range(SIZE), *[-1] * filled_up]
    assert masks == [True] * SIZE + [False] * filled_up


# Resuming in a large data set.

MANY = 100_000


def small_records(count):
    """Serialised examples, each with its number in place of another of as many digits."""
    png = tf.io.encode_png(np.zeros([2, 2, 3], np.uint8)).numpy()
    record = shards.tfrecord_example(jpg=png, txt=b"000000 small")
    head, tail = record.split(b"000000")
    return (head + b"%06d" % number + tail for number in range(count))


def test_resuming_in_many_records_reads_no_more_than_what_follows(tmp_path, monkeypatch):
    records = list(small_records(MANY))
    path = shards.write_tfrecord(tmp_path / "many.tfrecord", records)
    create_source("tfrecord", path, config_key="config.data.train")
    file_size = (tmp_path / "many.tfrecord").stat().st_size

    monkeypatch.setattr(tfrecord, "scan_tfrecord", None)  # the index is made once
    reads = []
    read = ranges.Files.read

    def noted(files, file, start, length):
        reads.append((start, length))
        return read(files, file, start, length)

    monkeypatch.setattr(ranges.Files, "read", noted)
    source = create_source("tfrecord", path, config_key="config.data.train")
    assert len(source) == MANY and len(reads) == 1  # the first record, for its features

    reads.clear()
    ((batch, position),) = train(source, tmp_path, 1, position=Position(3, 60_000, SEED))
    following = examples_of_epoch(source, SEED, 3, batch_size=BATCH)[60_000:, 1]
    # Before a record stand 12 bytes of its length, and 4 of its checksum behind it.
    offsets = 12 + np.cumsum([0, *(16 + len(record) for record in records)])
    assert batch["tokens"][:, 0].tolist() == following[:BATCH].tolist()
    assert position == Position(3, 60_000 + BATCH, SEED)
    assert {start for start, _ in reads} <= set(offsets[following].tolist())
    assert len(reads) >= BATCH and sum(length for _, length in reads) < file_size / 20


# Captions.


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("webdataset", ("txt", "json:captions")),
        ("tfrecord", ("txt", "captions")),
        ("tfds", ("caption", "captions/text")),
        ("array_record", ("caption", "captions/text")),
        ("parquet", ("caption", "captions")),
    ],
)
def test_several_captions_share_their_fields_weights(paths, name, fields):
    source = open_source(paths, name, caption_key=fields, caption_weights=(0.5, 0.25))
    for index in range(SIZE):
        record = source.read(index)
        (number,) = set(numbers_of(record.captions))
        assert record.captions == [shards.caption(number), *shards.other_captions(number)]
        assert record.weights == [0.5, 0.125, 0.125]
        assert source.captions()[index] == shards.caption(number)


def test_captions_drawn_in_a_run_follow_their_weights(paths):
    source = open_source(
        paths, "webdataset", caption_key=("json:caption", "json:captions"), caption_weights=(3, 1)
    )
    record = source.read(7)
    drawn = collections.Counter(draw_caption(record, SEED, epoch, 7) for epoch in range(4000))

    shares = [drawn[caption] / 4000 for caption in (shards.caption(7), *shards.other_captions(7))]
    np.testing.assert_allclose(shares, [0.75, 0.125, 0.125], atol=0.03)


def test_a_class_is_its_name_within_each_template(paths):
    templates = ("a photo of {}.", "{}, small")
    source = open_source(paths, "tfds", caption_key="label", templates=templates)
    numbers = numbers_of(open_source(paths, "tfds").captions())

    assert sorted(numbers) == list(range(SIZE))
    for index, number in enumerate(numbers):
        if number == 0:  # whose class is not told
            with pytest.raises(Unreadable, match="the caption is empty"):
                source.read(index)
        else:
            name = shards.NAMES[number % 3]
            assert source.read(index).captions == [f"a photo of {name}.", f"{name}, small"]


def test_the_first_picture_that_an_example_has_is_read(tmp_path):
    members = {"png": b"a PNG", "JPG": b"a JPEG", "seg.png": b"no picture", "txt": b"one"}
    path = shards.write_tar(tmp_path / "a.tar", {"folder.x/000": members})

    assert open_tar(path).read(0).image == b"a JPEG"
    for key, image in [("png;jpg", b"a PNG"), ("webp; seg.png", b"no picture")]:
        source = create_source("webdataset", path, config_key="c", image_key=key)
        assert source.read(0).image == image
        assert source.keys([0]) == [f"{path}/folder.x/000"]


def test_columns_of_bare_bytes_are_pictures_too(paths):
    assert open_source(paths, "parquet", image_key="bare").read(5).image == shards.picture(5)


@pytest.mark.parametrize("file_format", ["tfds", "array_record"])
def test_a_slice_of_a_split_is_its_part_of_the_whole(paths, file_format):
    whole = open_source(paths, file_format)
    captions, keys = whole.captions(), whole.keys(range(SIZE))
    everything = list(range(SIZE))
    for split, expected in [
        ("@train", everything),
        ("@train[:50%]", everything[:22]),
        ("@train[10:30]", everything[10:30]),
        ("@train[90%:]", everything[39:]),
        ("@train[:3]+train[40:]", everything[:3] + everything[40:]),
    ]:
        source = create_source("tfds", paths[file_format] + split, config_key="c")
        assert source.captions() == [captions[index] for index in expected]
        assert source.keys(range(len(source))) == [keys[index] for index in expected]


# Paths.


def test_patterns_name_files_as_they_count_and_globs_sorted(tmp_path):
    names = [f"{i:05d}.tar" for i in range(4)] + ["b10.tar", "b9.tar", "notes.txt"]
    for name in [*names, "00001.tar.index.npz"]:
        (tmp_path / name).touch()

    def expanded(pattern):
        paths = ranges.expand(f"{tmp_path}/{pattern}", config_key="c", endings=(".tar",))
        return [path.rpartition("/")[2] for path in paths]

    assert expanded("{00002..00000}.tar") == ["00002.tar", "00001.tar", "00000.tar"]
    assert expanded("{b9,b10,00003}.tar") == ["b9.tar", "b10.tar", "00003.tar"]
    assert expanded("0000[12].tar") == ["00001.tar", "00002.tar"]
    assert expanded("{b*,0000[0-1]}.tar") == ["b10.tar", "b9.tar", "00000.tar", "00001.tar"]
    assert expanded("00001.*") == ["00001.tar"]  # the index beside it is no shard
    assert expanded("") == expanded("*.tar") == sorted(names)[:-1]
    assert expanded("b9.tar") == ["b9.tar"]


def test_a_path_that_exists_is_that_path_before_it_is_a_pattern(tmp_path):
    for folder in ("a[1]", "a1", "{x,y}"):
        (tmp_path / folder).mkdir()
        for name in ("1.tar", "2.tar"):
            (tmp_path / folder / name).touch()

    def expanded(pattern):
        paths = ranges.expand(f"{tmp_path}/{pattern}", config_key="c", endings=(".tar",))
        return [path.removeprefix(f"{tmp_path}/") for path in paths]

    both = ["a[1]/1.tar", "a[1]/2.tar"]
    for pattern in ("a[1]", "a[1]/", "a[1]/*.tar", "a[1]/{1,2}.tar", "a[1]/[12].tar"):
        assert expanded(pattern) == both
    assert expanded("a[1]/1.tar") == both[:1]
    assert expanded("{x,y}") == ["{x,y}/1.tar", "{x,y}/2.tar"]
    assert expanded("a[12]/*.tar") == expanded("a?/*.tar") == ["a1/1.tar", "a1/2.tar"]


def test_files_that_are_not_there_are_told_by_name(tmp_path):
    shards.write_tars(tmp_path, [[0], [1], [2]])

    def message(pattern):
        with pytest.raises(UserError) as error:
            create_source("webdataset", pattern, config_key="config.data.train")
        return str(error.value).replace(str(tmp_path), "…")

    assert message(f"{tmp_path}/{{00001..00003}}.tar") == (
        "1 of the files that config.data.train names are missing: …/00003.tar"
    )
    assert message(f"{tmp_path}/{{1..9}}.tar") == (
        "9 of the files that config.data.train names are missing: …/1.tar, …/2.tar, …/3.tar, …"
    )
    assert message(f"{tmp_path}/*.zip") == (
        "no file matches …/*.zip; set config.data.train to files that exist"
    )
    assert message(f"{tmp_path}/{{0..3.tar") == (
        "config.data.train is …/{0..3.tar, in which a brace is not closed; close it"
    )
    assert message(None) == (
        "config.data.train is empty; set it to shards, e.g. "
        "--config.data.train='/data/cc3m/{00000..00331}.tar'"
    )


def test_a_source_is_found_by_its_paths_ending(paths):
    for name in ("csv", "webdataset", "tfrecord", "tfds"):
        source = create_source("auto", paths[name], config_key="c")
        assert source.captions() == open_source(paths, name).captions()
    source = create_source("auto", paths["parquet"] + "/train-0000{0,1}.parquet", config_key="c")
    assert len(source) == SIZE
    with pytest.raises(
        UserError, match=r"does not tell the format \(\.csv, .*set config\.data\.source"
    ):
        create_source("auto", paths["parquet"], config_key="c")
    with pytest.raises(UserError, match=r"config\.data\.mixture\.mine\.train is empty"):
        create_mixture({"mine": {"weight": 1}})


# Wrong captions, and the pictures that they describe.


NEGATIVES = {  # here the second caption, and the picture itself
    "csv": ("caption", "image"),
    "webdataset": ("json:captions", "jpg;png;webp"),
    "tfrecord": ("captions", "jpg"),
    "tfds": ("captions/text", "image"),
    "array_record": ("captions/text", "image"),
    "parquet": ("captions", "bare"),
}


@pytest.mark.parametrize("name", NEGATIVES)
def test_negatives_stand_where_the_settings_say(paths, name):
    caption_key, image_key = NEGATIVES[name]
    settings = {"negative_caption_key": caption_key, "negative_image_key": image_key}
    plain = open_source(paths, name)
    source = open_source(paths, name, **settings)
    for index in (0, 7, SIZE - 1):
        expected, record = plain.read(index), source.read(index)
        assert (record.image, record.captions) == (expected.image, expected.captions)
        assert record.negative_image == expected.image and expected.negative_image == b""
        (number,) = numbers_of([record.negative])
        assert numbers_of(record.captions) == [number]
    assert list(source.captions()) == list(plain.captions())
    for key in settings:
        with pytest.raises(UserError, match=f"'nowhere'.*set config.data.{key}"):
            open_source(paths, name, **settings | {key: "nowhere"})


def test_an_example_may_lack_its_negatives(tmp_path):
    members = {"png": b"a PNG", "txt": b"one"}
    negatives = {"neg.png": b"another PNG", "neg.txt": b"two"}
    examples = {"000": members, "001": members | negatives}
    path = shards.write_tar(tmp_path / "a.tar", examples)
    keys = {"negative_caption_key": "neg.txt", "negative_image_key": "neg.png"}
    source = create_source("webdataset", path, config_key="c", **keys)
    assert [(r.negative, r.negative_image) for r in map(source.read, (0, 1))] == [
        ("", b""),
        ("two", b"another PNG"),
    ]
    (tmp_path / "a.png").write_bytes(b"a PNG")
    table = tmp_path / "a.csv"
    table.write_text(
        "image,caption,wrong,of\na.png,one,,\na.png,one,two,a.png\na.png,one,two,b.png\n"
    )
    keys = {"negative_caption_key": "wrong", "negative_image_key": "of"}
    source = create_source("csv", str(table), config_key="c", **keys)
    assert [source.read(index).negative_image for index in (0, 1)] == [b"", b"a PNG"]
    with pytest.raises(Unreadable, match=r"b\.png"):
        source.read(2)


# What is refused.


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("webdataset", {"image_key": "jpeg"}, r"picture \(jpeg\).* end in jpg, json, png, txt, we"),
        ("webdataset", {"caption_key": "text"}, r"caption \(text\).* end in jpg, json, png, txt,"),
        (
            "webdataset",
            {"caption_key": "json:alt"},
            r"no JSON field for json:alt \(fields: caption, captions, key\); .*data\.caption_key",
        ),
        ("tfrecord", {"image_key": "x;y"}, r"no feature x;y \(features: captions, jpg, key, txt\)"),
        ("tfrecord", {"caption_key": "x"}, r"no feature x \(features: captions, jpg, key, txt\)"),
        (
            "tfds",
            {"image_key": "picture"},
            r"'picture' \(features: caption, captions/text, image, label\); set config\.data",
        ),
        (
            "array_record",
            {"caption_key": "captions"},
            r"'captions' .*set config\.data\.caption_key",
        ),
        (
            "parquet",
            {"image_key": "picture"},
            r"'picture' \(columns: image, caption, captions, bare\); set config\.data\.image_key",
        ),
        ("parquet", {"caption_key": ("caption", "alt")}, r"'alt' .*set config\.data\.caption_key"),
    ],
)
def test_a_wrong_key_is_told_with_those_there_are(paths, name, settings, message):
    with pytest.raises(UserError, match=message):
        open_source(paths, name, **settings)


def test_compressed_shards_are_refused_with_the_reason(tmp_path):
    path = shards.write_tfrecord(tmp_path / "a.tfrecord", small_records(3), "GZIP")
    with pytest.raises(UserError, match=r"no record in .*a\.tfrecord: it is compressed with gzip"):
        create_source("tfrecord", path, config_key="c")

    path = tmp_path / "a.tar"
    path.write_bytes(gzip.compress(b"\0" * 2048))
    with pytest.raises(UserError, match=r"end in nothing \(.*a\.tar: cut short or no tar file"):
        create_source("webdataset", str(path), config_key="c")


def test_files_that_are_no_parquet_or_empty_are_refused(tmp_path):
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1 and no more")
    with pytest.raises(UserError, match=r"a\.parquet cannot be read as Parquet: "):
        create_source("parquet", str(path), config_key="c")

    pyarrow.parquet.write_table(pyarrow.table({"image": [b""], "caption": [""]})[:0], path)
    with pytest.raises(UserError, match=r"there is no row in .*a\.parquet"):
        create_source("parquet", str(path), config_key="c")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (
            "tfds:no_such_data",
            r"config\.data\.train is tfds:no_such_data, and .* has no 'no_such_d",
        ),
        ("@validation", r"no split 'validation' \(splits: train, test\)"),
        ("@train[:x]", r"no split 'train\[:x\]' \(splits: train, test\)"),
    ],
)
def test_an_unknown_data_set_or_split_is_refused(paths, path, message):
    path = paths["tfds"] + path if path.startswith("@") else path
    with pytest.raises(UserError, match=message):
        create_source("tfds", path, config_key="config.data.train")


def test_a_folder_without_a_data_set_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"config\.data\.train tfds:.* cannot be opened"):
        create_source("tfds", f"tfds:{tmp_path}", config_key="config.data.train")


# The index beside a shard.


@pytest.fixture
def tar(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return shards.write_tars(tmp_path / "tars", [range(5)])


@pytest.fixture
def scans(monkeypatch):
    """The number of each scan of a shard, as a list that grows."""
    scans = []
    for name in ("scan_tar", "scan_tfrecord"):
        scan = getattr(shard_index, name)
        counted = functools.partial(lambda scan, *args: scans.append(1) or scan(*args), scan)
        for module in (webdataset, tfrecord):
            monkeypatch.setattr(module, name, counted, raising=False)
    return scans


def open_tar(path):
    return create_source("webdataset", path, config_key="config.data.train")


def test_an_index_is_made_once(tar, scans, tmp_path):
    expected = open_tar(tar).captions()
    assert (tmp_path / "tars" / "00000.tar.index.npz").exists() and len(scans) == 1

    source = open_tar(tar)
    assert len(scans) == 1
    assert source.captions() == expected == [shards.caption(number) for number in range(5)]
    assert source.keys([4]) == [f"{tmp_path}/tars/00000.tar/000000004"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[: len(content) // 2],
        lambda content: content[:60] + bytes(40) + content[100:],
        lambda content: content[:200] + bytes(300) + content[500:],
        lambda content: b"no archive",
        lambda content: pickle.dumps([1, 2]),
        lambda content: npy_file(),
    ],
    ids=["empty", "half", "header", "middle", "text", "pickle", "npy"],
)
def test_a_damaged_index_is_made_anew(tar, scans, tmp_path, damage):
    expected = open_tar(tar).captions()
    index = tmp_path / "tars" / "00000.tar.index.npz"
    whole = index.read_bytes()
    index.write_bytes(damage(whole))

    assert open_tar(tar).captions() == expected and len(scans) == 2
    assert index.read_bytes() != damage(whole)
    open_tar(tar)
    assert len(scans) == 2


def npy_file():
    file = io.BytesIO()
    np.save(file, np.arange(3))
    return file.getvalue()


def test_an_index_of_another_shard_or_an_earlier_one_is_made_anew(tar, scans, tmp_path):
    open_tar(tar)
    path = tmp_path / "tars" / "00000.tar"
    shards.write_tars(tmp_path / "tars", [range(5, 12)])
    assert len(open_tar(tar)) == 7 and len(scans) == 2

    content = path.read_bytes().replace(shards.caption(6).encode(), b"6 another".ljust(17))
    stat = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))  # as large, and of another time
    assert open_tar(tar).captions()[1] == "6 another".ljust(17) and len(scans) == 3


def test_an_index_that_cannot_stand_beside_its_shard_is_kept_in_the_users_cache(
    tar, scans, tmp_path
):
    (tmp_path / "tars" / "00000.tar.index.npz" / "in the way").mkdir(parents=True)
    expected = open_tar(tar).captions()
    kept = list((tmp_path / "cache" / "cyclip_jax" / "shard_index").iterdir())

    assert len(kept) == 1 and kept[0].name.endswith(".index.npz")
    assert open_tar(tar).captions() == expected and len(scans) == 1


def test_without_any_place_for_an_index_it_is_made_each_time(tar, scans, tmp_path, monkeypatch):
    def refuse(path, content):
        raise PermissionError(f"{path} cannot be written")

    monkeypatch.setattr(shard_index, "write_atomically", refuse)
    assert open_tar(tar).captions() == open_tar(tar).captions()
    assert len(scans) == 2 and os.listdir(tmp_path / "tars") == ["00000.tar"]


# Shards that are read as a service's are.


@pytest.fixture
def remote(monkeypatch):
    """Local files take the way of remote ones: TensorFlow's files, and no handle is kept."""
    for module in (ranges, shard_index, parquet):
        monkeypatch.setattr(module, "is_remote", lambda path: True)
    monkeypatch.setattr(ranges, "Handle", None)


@pytest.mark.parametrize("kept_examples", [0, 20])
@pytest.mark.parametrize("name", ["csv", "webdataset", "tfrecord", "parquet"])
def test_remote_shards_are_read_as_local_ones(paths, tmp_path, remote, name, kept_examples):
    folder = paths["csv"].rpartition("/csv/")[0]
    shutil.copytree(folder, tmp_path / "copy")
    for index in (tmp_path / "copy").rglob("*.index.npz"):
        index.unlink()
    copied = paths[name].replace(folder, str(tmp_path / "copy"))
    source = create_source(name, copied, config_key="c", kept_examples=kept_examples)

    assert numbers_of(source.captions()) == list(range(SIZE))
    assert [source.read(index).image for index in (0, 42, 17)] == [
        shards.picture(number) for number in (0, 42, 17)
    ]


def test_examples_read_lately_are_kept_with_their_neighbours(paths, monkeypatch):
    reads = []
    read = ranges.Files.read_once

    def noted(files, file, start, length):
        reads.append((file, length))
        return read(files, file, start, length)

    monkeypatch.setattr(ranges.Files, "read_once", noted)
    kept = open_source(paths, "webdataset", kept_examples=2 * SIZE)
    assert kept.captions() == open_source(paths, "csv").captions()
    assert reads == [(0, ranges.BLOCK), (1, ranges.BLOCK), (2, ranges.BLOCK)]

    reads.clear()
    assert open_source(paths, "webdataset").read(20).image == shards.picture(20)
    assert reads == [(1, len(shards.picture(20))), (1, len(shards.caption(20).encode()))]


def test_open_files_are_few_however_many_shards_there_are(tmp_path, monkeypatch):
    monkeypatch.setattr(ranges, "OPEN_FILES", 3)
    pattern = shards.write_tars(tmp_path, [[number] for number in range(9)])
    before = len(os.listdir("/proc/self/fd"))
    source = open_tar(pattern)
    for _ in range(2):
        assert numbers_of(source.captions()) == list(range(9))
        assert len(os.listdir("/proc/self/fd")) <= before + 3
    del source
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= before


# Reads that fail.


@pytest.fixture
def pauses(monkeypatch):
    """The pauses between tries in seconds, which nobody waits for."""
    pauses = []
    monkeypatch.setattr(ranges, "time", types.SimpleNamespace(sleep=pauses.append))
    return pauses


def test_a_file_that_a_network_file_system_has_lost_is_opened_again(tar, pauses, monkeypatch):
    source = open_tar(tar)
    source.read(0)
    pread, handle, reopened = os.pread, ranges.Handle, []

    def read(*arguments):
        if not reopened:
            raise OSError(errno.ESTALE, "Stale file handle")
        return pread(*arguments)

    monkeypatch.setattr(os, "pread", read)
    monkeypatch.setattr(ranges, "Handle", lambda path: reopened.append(path) or handle(path))
    assert source.read(1).image == shards.picture(1)
    assert pauses == [0.1] and len(reopened) == 1


def failing(times, error):
    """A read that fails so often and then succeeds."""
    left = iter([error] * times)

    def read(*arguments):
        for error in left:
            raise error
        return arguments

    return read


@pytest.mark.parametrize(
    "error",
    [
        OSError(5, "Input/output error"),
        TimeoutError(),
        tf.errors.UnavailableError(None, None, "busy"),
        tf.errors.DeadlineExceededError(None, None, ""),
    ],
)
def test_a_read_that_fails_for_a_while_is_tried_again_ever_later(pauses, error):
    assert ranges.retrying(failing(2, error), "a", 3) == ("a", 3)
    assert pauses == [0.1, 0.5]
    pauses.clear()

    with pytest.raises(Unreadable) as refused:
        ranges.retrying(failing(99, error))
    assert refused.value.reason == "the file cannot be read" and refused.value.detail
    assert pauses == list(ranges.RETRY_AFTER) == sorted(pauses) and 30 < sum(pauses) < 31


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (FileNotFoundError(2, "none such"), "the file is missing"),
        (tf.errors.NotFoundError(None, None, "none such"), "the file is missing"),
        (PermissionError(13, "denied"), "the file cannot be read"),
        (tf.errors.PermissionDeniedError(None, None, "denied"), "the file cannot be read"),
    ],
)
def test_what_will_not_pass_is_tried_once(pauses, error, reason):
    with pytest.raises(Unreadable) as refused:
        ranges.retrying(failing(1, error))
    assert refused.value.reason == reason and pauses == []


def test_a_damaged_row_group_is_not_tried_again(tmp_path, pauses):
    path = f"{shards.write_parquet(tmp_path, [range(8)])}/train-00000.parquet"
    column = pyarrow.parquet.read_metadata(path).row_group(1).column(0)
    start = column.dictionary_page_offset or column.data_page_offset
    with open(path, "r+b") as file:
        file.seek(start)
        file.write(b"\xff" * column.total_compressed_size)
    source = create_source("parquet", path, config_key="c")

    assert source.read(3).image == shards.picture(3)
    with pytest.raises(Unreadable, match="the row group is damaged"):
        source.read(4)
    assert pauses == []


@pytest.mark.parametrize(
    "name", ["x" * 300, "data:image/png;base64," + "A" * 5000, "file.txt/1.png"]
)
def test_a_path_that_can_never_be_read_is_tried_once(tmp_path, monkeypatch, name):
    (tmp_path / "file.txt").touch()
    pauses = []
    monkeypatch.setattr(ranges.time, "sleep", pauses.append)
    with pytest.raises(Unreadable) as error:
        ranges.read_whole(f"{tmp_path}/{name}")
    assert not pauses and len(str(error.value)) < 400
