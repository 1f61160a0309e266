"""What one example does to a run: whatever reading it raises is its own fault, and a bug is not."""

import itertools
import json
import re
import types

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import tensorflow as tf
from etils import epath

from cyclip_jax.data import pipeline, shard_writer, tokenizers
from cyclip_jax.data.bad_examples import BadExamples
from cyclip_jax.data.record import Record, Unreadable, read_told, told
from cyclip_jax.data.sources import create_source
from cyclip_jax.data.sources.parquet import _ParquetFile
from cyclip_jax.errors import LONGEST_MESSAGE, UserError
from cyclip_jax.evals.data.class_names import read_classes
from cyclip_jax.evals.data.labelled import open_images, open_labelled
from cyclip_jax.evals.data.pairs import open_pairs
from cyclip_jax.evals.data.superclasses import read_superclasses
from tests.data import shards

PNG = tf.io.encode_png(np.zeros([2, 2, 3], np.uint8)).numpy()


class Examples:
    """Eight examples, of which some raise what they are made of."""

    faults, boundaries, mean_bytes = (), np.array([0, 8]), 100.0

    def __init__(self, **bad):
        self._bad = {int(name.lstrip("_")): error for name, error in bad.items()}

    def __len__(self):
        return 8

    def keys(self, indices):
        return [f"example {index}" for index in indices]

    def read(self, index):
        if index in self._bad:
            if isinstance(self._bad[index], Exception):
                raise self._bad[index]
            return self._bad[index]
        return Record(PNG, [f"{index} small"], [1.0])


def train(source, folder, tokenizer=shards.tokenizer):
    """(token ids of two batches, the lines of bad.jsonl)."""
    bad_examples = BadExamples(folder / "bad.jsonl", 1.0, len(source))
    arguments = {"batch_size": 8, "image_size": 2, "seed": 3, "position": None}
    iterator = pipeline.train_batches(source, tokenizer, bad_examples=bad_examples, **arguments)
    try:
        batches = [batch["tokens"][:, 0].tolist() for batch, _ in itertools.islice(iterator, 2)]
    finally:
        iterator.close()
    return batches, [json.loads(line) for line in open(folder / "bad.jsonl")]


def evaluate(source, tokenizer=shards.tokenizer):
    (batch,) = pipeline.eval_batches(source, tokenizer, batch_size=8, image_size=2)
    return batch["tokens"][:, 0].tolist(), batch["mask"].tolist()


BAD_INPUT = [
    ValueError("embedded null byte"),
    UnicodeDecodeError("utf-8", b"\xe9", 0, 1, "invalid"),
    TypeError("no bytes"),
    OSError(36, "File name too long"),
    OverflowError("too large"),
    RecursionError("too deep"),
    pyarrow.ArrowInvalid("no column"),
    pyarrow.ArrowNotImplementedError("no such encoding"),
    tf.errors.DataLossError(None, None, "lost"),
]
BUGS = [AttributeError("no such"), NameError("x"), AssertionError(), KeyError("x"), IndexError()]


@pytest.mark.parametrize("error", BAD_INPUT, ids=lambda error: type(error).__name__)
def test_what_bad_input_raises_is_the_examples_fault(error):
    with pytest.raises(Unreadable) as unreadable:
        read_told(Examples(_5=error).read, 5)
    assert unreadable.value.reason == "the example cannot be read"
    assert unreadable.value.detail.startswith(type(error).__name__)


@pytest.mark.parametrize("error", [*BUGS, UserError("x")], ids=lambda error: type(error).__name__)
def test_what_a_bug_raises_is_no_examples_fault(error):
    with pytest.raises(type(error)):
        read_told(Examples(_5=error).read, 5)


def test_a_run_replaces_and_names_it_and_an_evaluation_leaves_it_out(tmp_path):
    no_bytes = Record([{"bytes": PNG}], ["a"], [1.0])
    source = Examples(_2=ValueError("embedded null byte"), _5=no_bytes)
    batches, lines = train(source, tmp_path)
    assert {2, 5}.isdisjoint(np.ravel(batches).tolist())
    assert sorted((line["key"], line["reason"], line["detail"]) for line in lines) == [
        ("example 2", "the example cannot be read", "ValueError: embedded null byte"),
        ("example 5", "the image is no file's bytes", "list"),
    ]
    numbers, mask = evaluate(source)
    assert mask == [index not in (2, 5) for index in range(8)]
    assert [n for n in numbers if n >= 0] == [0, 1, 3, 4, 6, 7]


def test_a_bug_ends_the_run(tmp_path):
    with pytest.raises(AttributeError, match="no such"):
        train(Examples(_2=AttributeError("no such")), tmp_path)


def test_a_caption_that_cannot_be_tokenised_is_that_examples_fault(tmp_path):
    def tokenizer(texts):
        if any(text.startswith("4") for text in texts):
            raise ValueError("no such character")
        return shards.tokenizer(texts)

    batches, lines = train(Examples(), tmp_path, tokenizer)
    assert 4 not in np.ravel(batches).tolist() and all(len(batch) == 8 for batch in batches)
    ((key, reason, detail),) = {(line["key"], line["reason"], line["detail"]) for line in lines}
    assert (key, reason) == ("example 4", "the caption cannot be tokenised")
    assert detail == "ValueError: no such character"
    assert train(Examples(), tmp_path / "again", tokenizer)[0] == batches
    assert evaluate(Examples(), tokenizer)[1] == [index != 4 for index in range(8)]


def test_a_tokenizer_that_takes_no_text_at_all_is_no_examples_fault(tmp_path):
    def tokenizer(texts):
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        train(Examples(), tmp_path, tokenizer)


def test_prepare_names_it(tmp_path):
    path = tmp_path / "pairs.csv"
    (tmp_path / "0.png").write_bytes(PNG)
    path.write_text("image,caption\n0.png,a\nnul\0.png,b\n")
    inputs = shard_writer.Inputs(shard_writer.Preparation((str(path),)))
    assert inputs.read(0).captions == ["a"]
    with pytest.raises(Unreadable, match="the example cannot be read: ValueError: embedded null"):
        inputs.read(1)


def test_details_and_messages_are_short():
    with pytest.raises(Unreadable) as unreadable:
        told("the example cannot be read", bytes.fromhex, "x" * 9_999)
    long = UserError("first " + "x" * 9_999 + " last")
    assert len(str(long)) == LONGEST_MESSAGE
    assert str(long).startswith("first x") and str(long).endswith("x last")
    error = Unreadable("the caption is no text", repr({"en": "x" * 9_999}))
    assert len(error.detail) == LONGEST_MESSAGE
    assert len(unreadable.value.detail) <= LONGEST_MESSAGE


def test_an_entity_of_thousands_of_digits_is_text():
    assert tokenizers.clean("A &#" + "9" * 5_000 + "; b").startswith("a &#99")


# Captions that are no text, in every format.

NO_TEXTS = [
    {"en": "a kite", "de": "ein Drachen"},
    [{"text": "a kite", "score": 0.5}],
    12,
    False,
    float("nan"),
    ["a kite", 3],
    [["a kite"]],
]


def tar_of(path, values, field="caption"):
    return shards.write_tar(
        path,
        {
            f"{n:03d}": {"png": PNG, "json": json.dumps({field: value}).encode()}
            for n, value in enumerate(values)
        },
    )


def reasons(source):
    found = []
    for index in range(len(source)):
        try:
            found.append(source.read(index).captions)
        except Unreadable as error:
            found.append(error.reason)
    return found


def test_captions_of_json_that_are_no_text_are_bad(tmp_path):
    path = tar_of(tmp_path / "a.tar", ["a kite", *NO_TEXTS, None, [], "", ["a boat", None]])
    source = create_source("auto", path, config_key="c", caption_key="json:caption")
    empty = "the caption is empty"
    no_texts = ["the caption is no text"] * len(NO_TEXTS)
    assert reasons(source) == [["a kite"], *no_texts, empty, empty, empty, ["a boat"]]
    assert source.captions() == ["a kite", *[""] * (len(NO_TEXTS) + 3), "a boat"]


def test_captions_of_records_that_are_no_text_are_bad(tmp_path):
    def record(**features):
        image = tf.train.Feature(bytes_list=tf.train.BytesList(value=[PNG]))
        features = tf.train.Features(feature={"png": image, **features})
        return tf.train.Example(features=features).SerializeToString()

    records = [
        record(txt=tf.train.Feature(bytes_list=tf.train.BytesList(value=[b"a kite"]))),
        record(txt=tf.train.Feature(int64_list=tf.train.Int64List(value=[12]))),
        record(txt=tf.train.Feature(float_list=tf.train.FloatList(value=[0.5]))),
        record(txt=tf.train.Feature()),
    ]
    source = create_source(
        "auto", shards.write_tfrecord(tmp_path / "a.tfrecord", records), config_key="c"
    )
    no_text = "the caption is no text"
    assert reasons(source) == [["a kite"], no_text, no_text, "the caption is empty"]


@pytest.mark.parametrize(
    ("values", "kind"),
    [([1], "int64"), ([False], "bool"), ([{"en": "a"}], "struct"), ([[0.5]], "list<element: dou")],
)
def test_a_column_of_parquet_that_holds_no_texts_is_refused(tmp_path, values, kind):
    table = pyarrow.table({"image": [PNG], "caption": values})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(UserError, match=f"'caption' of .* holds {kind}.* and no texts; set config"):
        create_source("auto", str(tmp_path / "a.parquet"), config_key="c")


def test_captions_of_karpathys_json_that_are_no_text_are_left_out(tmp_path):
    rows = [
        {"filename": f"{n}.jpg", "split": "test", "sentences": [{"raw": text}]}
        for n, text in enumerate(["a kite", None, {"en": "a"}, 3, "half \ud83d"])
    ]
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps({"images": rows}))
    assert open_pairs(str(path), config_key="x")().captions == ["a kite", "half ?"]


def test_numbers_go_on_being_labels(tmp_path):
    folder = tmp_path / "test"
    tar_of(folder / "0.tar", [3, 12, 3.0, "7"], "label")
    (folder / "nshards.txt").write_text("1")
    opened = open_labelled(
        str(tmp_path), config_key="config.evals.x.folder", label_key="json:label"
    )
    assert set(opened.keys) == {"3", "12", "3.0", "7"}
    images = open_images(str(folder / "0.tar"), config_key="c", caption_key="json:label")
    assert images.source.captions() == ["", "", "", "7"]


def test_half_an_emoji_becomes_a_question_mark(tmp_path):
    path = tar_of(tmp_path / "a.tar", ["0 tower \ud83d", "1 kite"])
    source = create_source("auto", path, config_key="c", caption_key="json:caption")
    assert source.captions() == ["0 tower ?", "1 kite"]
    assert source.read(0).captions == ["0 tower ?"]


# Parquet.


def parquet_of(path, **columns):
    pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=2)
    return str(path)


def test_a_string_of_parquet_that_is_not_utf8_costs_its_row(tmp_path):
    binary = pyarrow.array([b"0 kite", b"caf\xe9", b"2 door"], pyarrow.binary())
    strings = pyarrow.Array.from_buffers(pyarrow.string(), 3, binary.buffers())
    path = parquet_of(tmp_path / "a.parquet", image=[PNG] * 3, caption=strings)
    source = create_source("auto", path, config_key="c")
    assert source.captions() == ["0 kite", "", "2 door"]
    assert reasons(source) == [["0 kite"], "the caption is not UTF-8", ["2 door"]]


def test_a_path_that_is_not_utf8_costs_nothing_beside_its_picture(tmp_path):
    binary = pyarrow.array([b"caf\xe9.jpg"], pyarrow.binary())
    paths = pyarrow.Array.from_buffers(pyarrow.string(), 1, binary.buffers())
    images = pyarrow.StructArray.from_arrays([pyarrow.array([PNG]), paths], ["bytes", "path"])
    path = parquet_of(tmp_path / "a.parquet", image=images, caption=["a kite"])
    assert create_source("auto", path, config_key="c").read(0).image == PNG


def test_a_damaged_row_group_costs_its_rows_captions_too(tmp_path):
    path = parquet_of(
        tmp_path / "a.parquet", image=[PNG] * 6, caption=[f"{n} it" for n in range(6)]
    )
    column = pyarrow.parquet.read_metadata(path).row_group(1).column(1)
    with open(path, "r+b") as file:
        file.seek(column.dictionary_page_offset or column.data_page_offset)
        file.write(bytes(column.total_compressed_size))
    source = create_source("auto", path, config_key="c")
    assert source.captions() == ["0 it", "1 it", "", "", "4 it", "5 it"]
    assert reasons(source)[2:4] == ["the row group is damaged"] * 2


@pytest.mark.parametrize(
    ("images", "told"),
    [
        ([[{"bytes": PNG, "path": None}]], "holds list<.*and not one picture a row.*image_key"),
        (["images/0.jpg"], "holds string and not one picture a row.*as a CSV"),
        ([3], "holds int64 and not one picture a row"),
        ([{"bytes": None, "path": "0.jpg"}], "holds paths and no pictures; write paths"),
    ],
)
def test_a_column_without_pictures_is_refused_with_its_type(tmp_path, images, told):
    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    is_struct = isinstance(images[0], dict)
    images = pyarrow.array(images, kind) if is_struct else images
    path = parquet_of(tmp_path / "a.parquet", image=images, caption=["a"])
    with pytest.raises(UserError, match=told):
        create_source("auto", path, config_key="c")


def test_a_row_with_a_path_alone_is_told_as_such(tmp_path):
    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    images = [{"bytes": PNG, "path": None}, {"bytes": None, "path": "1.jpg"}, None]
    path = parquet_of(
        tmp_path / "a.parquet", image=pyarrow.array(images, kind), caption=["a", "b", "c"]
    )
    found = reasons(create_source("auto", path, config_key="c"))
    assert found[0] == ["a"] and "path of a picture and no picture" in found[1]
    assert found[2] == "the image is missing"


def test_large_and_dictionary_columns_are_read(tmp_path):
    images = pyarrow.array([PNG, PNG], pyarrow.large_binary())
    captions = pyarrow.array(["a", "b"], pyarrow.large_string()).dictionary_encode()
    path = parquet_of(tmp_path / "a.parquet", image=images, caption=captions)
    assert reasons(create_source("auto", path, config_key="c")) == [["a"], ["b"]]


@pytest.mark.parametrize("line", ["3", '{"key": "a"}', "[" * 10_000, "{"])
def test_a_line_of_bad_examples_that_names_none_is_said(tmp_path, line):
    (tmp_path / "bad.jsonl").write_text(line + "\n")
    with pytest.raises(UserError, match=r"has a line that names no bad example .*; remove it"):
        BadExamples(tmp_path / "bad.jsonl", 1.0, 8)


DEEP = "[" * 10_000 + "]" * 10_000


def test_json_that_is_nested_too_deep_is_refused(tmp_path):
    (tmp_path / "a.json").write_text(DEEP)
    for opened in (
        lambda path: open_pairs(path, config_key="x")(),
        lambda path: read_classes(epath.Path(path)),
        lambda path: read_superclasses(path, config_key="x"),
    ):
        with pytest.raises(UserError, match="nested too deep"):
            opened(str(tmp_path / "a.json"))


@pytest.mark.parametrize("name", ["dataset_type.txt", "test/nshards.txt", "classnames.txt"])
def test_text_beside_shards_that_is_no_text_is_refused(tmp_path, name):
    shards.write_tar(tmp_path / "test" / "0.tar", {"0": {"png": PNG, "cls": b"0"}})
    (tmp_path / "test" / "nshards.txt").write_text("1")
    (tmp_path / name).write_bytes(b"caf\xe9")
    with pytest.raises(UserError, match=f"{name} cannot be read as text in UTF-8"):
        open_labelled(str(tmp_path), config_key="config.evals.x.folder")


def test_a_number_of_shards_that_is_none_is_refused(tmp_path):
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "nshards.txt").write_text("9" * 5_000)
    with pytest.raises(UserError, match="not the number of tars"):
        open_labelled(str(tmp_path), config_key="config.evals.x.folder")


@pytest.mark.parametrize("name", [b"image", b"caption"])
def test_a_footer_of_parquet_with_damaged_names_is_refused(tmp_path, name):
    path = tmp_path / "a.parquet"
    parquet_of(path, image=[PNG] * 3, caption=["a", "b", "c"])
    whole = path.read_bytes()
    for found in re.finditer(name, whole):
        path.write_bytes(whole[: found.start()] + b"\xff" + whole[found.start() + 1 :])
        with pytest.raises(UserError, match=r"a\.parquet cannot be read as Parquet"):
            create_source("auto", str(path), config_key="c")


def test_a_footer_of_parquet_whose_rows_do_not_add_up_is_refused(tmp_path):
    path = parquet_of(tmp_path / "a.parquet", image=[PNG] * 3, caption=["a", "b", "c"])
    file = _ParquetFile(path)
    group = file._metadata.row_group
    file._metadata = types.SimpleNamespace(num_rows=2, num_row_groups=2, row_group=group)
    with pytest.raises(UserError, match="it has 2 rows, and its row groups have 3"):
        file.row_groups()
