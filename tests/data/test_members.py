"""What stands in shards: which members are an example, and that what is damaged is found."""

import io
import tarfile
import time
import zlib

import google_crc32c
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import tensorflow as tf

from cyclip_jax.data import shard_writer
from cyclip_jax.data.record import Unreadable
from cyclip_jax.data.sources import create_source, shard_index, webdataset
from cyclip_jax.errors import UserError
from tests.data import shards

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"
PNG = tf.io.encode_png(np.zeros([2, 2, 3], np.uint8)).numpy()


def tar_of(path, *members):
    """A tar of (name, content) in this order, or of names alone."""
    with tarfile.open(path, "w") as archive:
        for member in members:
            name, content = member if isinstance(member, tuple) else (member, member.encode())
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return str(path)


def opened(path):
    return create_source("auto", str(path), config_key="config.data.train")


def read(source):
    """{the key's last part: (picture, caption)}, or its reason."""
    found = {}
    for index in range(len(source)):
        key = source.keys([index])[0].rpartition(".tar/")[2]
        try:
            record = source.read(index)
            found[key] = (record.image.decode(), record.captions[0])
        except Unreadable as error:
            found[key] = error.reason
    return found


def content_of(path):
    with open(path, "rb") as file:
        return file.read()


def pairs(*keys):
    return {key: (f"{key}.jpg", f"{key}.txt") for key in keys}


def refused(path):
    with pytest.raises(UserError) as error:
        opened(path)
    return str(error.value)


# Which members are an example.


@pytest.mark.parametrize(
    "others",
    [
        ["./._000.jpg", "./._000.txt"],
        [".DS_Store"],
        ["checksums", "folder/README"],
        [".hidden/000.jpg", "a/.b/000.txt"],
        ["000."],
    ],
    ids=lambda others: others[0],
)
def test_members_that_are_no_data_are_passed_over_and_part_nothing(tmp_path, others):
    path = tar_of(tmp_path / "a.tar", *others, "000.jpg", *others, "000.txt", *others)
    source = opened(path)
    assert read(source) == pairs("000")
    assert source.endings == {"jpg", "txt"}


def test_names_of_folders_may_begin_with_dots_that_mean_here(tmp_path):
    path = tar_of(tmp_path / "a.tar", "./a.b/000.jpg", "./a.b/000.txt", "../1.jpg", "../1.txt")
    found = read(opened(path))
    assert found["./a.b/000"] == ("./a.b/000.jpg", "./a.b/000.txt")
    assert len(found) == 2


DOUBLED = webdataset.DOUBLED


@pytest.mark.parametrize(
    "members",
    [
        ["1.jpg", "1.txt", ("1.jpg", b"another"), ("1.txt", b"another")],
        ["1.jpg", "1.txt", ("1.jpg", b"another")],
        ["1.jpg", ("1.jpg", b"another"), "1.txt"],
        ["1.jpg", "1.txt", ("1.txt", b"another")],
        ["1.jpg", "1.txt", ("1.JPG", b"another")],
    ],
    ids=["both twice", "the picture after", "the picture before", "the caption", "in capitals"],
)
def test_two_examples_under_one_key_are_never_one(tmp_path, members):
    path = tar_of(tmp_path / "a.tar", "0.jpg", "0.txt", *members, "2.jpg", "2.txt")
    source = opened(path)
    assert read(source) == pairs("0", "2") | {"1": DOUBLED}
    assert source.captions() == ["0.txt", "", "2.txt"]
    with pytest.raises(Unreadable, match=rf"1 in {path}"):
        source.read(1)
    del source
    assert read(opened(path))["1"] == DOUBLED  # as the index tells


def test_the_same_key_further_on_is_an_example_of_its_own(tmp_path):
    path = tar_of(tmp_path / "a.tar", "0.jpg", "0.txt", "1.jpg", "1.txt", "0.jpg", ("0.txt", b"b"))
    source = opened(path)
    assert [source.read(index).captions for index in range(3)] == [["0.txt"], ["1.txt"], ["b"]]


def test_a_tar_that_is_not_sorted_is_told_as_such(tmp_path):
    names = [f"{number}.{ending}" for ending in ("jpg", "txt") for number in range(3)]
    told = refused(tar_of(tmp_path / "a.tar", *names))
    assert "does not stand beside its picture" in told and "tar --sort=name" in told
    assert "caption_key" not in told
    found = read(opened(tar_of(tmp_path / "b.tar", "9.jpg", "9.txt", *names)))
    assert found == pairs("9") | dict.fromkeys("012", webdataset.APART)


def test_tars_joined_one_behind_the_other_are_read_to_the_end(tmp_path):
    parts = [
        tar_of(tmp_path / f"{n}.tar", f"{n}.jpg", f"{n}.txt", f"x{n}.jpg", f"x{n}.txt")
        for n in range(3)
    ]
    joined = tmp_path / "joined.tar"
    joined.write_bytes(b"".join(map(content_of, parts)))
    source = opened(joined)
    assert read(source) == pairs("0", "x0", "1", "x1", "2", "x2") and source.faults == []


def test_examples_of_joined_tars_are_not_one_where_their_names_meet(tmp_path):
    first = tar_of(tmp_path / "0.tar", "0.jpg", "0.txt", "1.jpg")
    second = tar_of(tmp_path / "1.tar", "1.txt", "2.jpg", "2.txt")
    joined = tmp_path / "joined.tar"
    joined.write_bytes(content_of(first) + content_of(second))
    assert read(opened(joined)) == pairs("0", "2") | {"1": webdataset.APART}


def test_what_follows_a_tar_and_is_none_is_named_with_its_size(tmp_path):
    path = tar_of(tmp_path / "a.tar", "0.jpg", "0.txt")
    with open(path, "ab") as file:
        file.write(b"x" * 700)
    source = opened(path)
    assert read(source) == pairs("0")
    ((key, reason, detail),) = source.faults
    assert (key, reason) == (path, "the rest of the shard is lost")
    assert detail.endswith("; the last 700 bytes are lost")


# Checksums.


def test_the_checksum_is_that_of_tensorflow(tmp_path):
    assert google_crc32c.value(b"123456789") == 0xE3069283  # RFC 3720, B.4, has the polynomial
    path = shards.write_tfrecord(tmp_path / "a.tfrecord", [b"a record"])
    content = content_of(path)
    for payload, checksum in ((content[:8], content[8:12]), (content[12:-4], content[-4:])):
        assert shard_index.masked_crc32c(payload) == int.from_bytes(checksum, "little")


@pytest.fixture
def records(tmp_path):
    """(path, content, where each of five records begins)."""
    examples = [shards.tfrecord_example(png=PNG, txt=b"%d a tall tower" % n) for n in range(5)]
    path = tmp_path / "a.tfrecord"
    shards.write_tfrecord(path, examples)
    starts = np.cumsum([0] + [len(example) + 16 for example in examples]).tolist()
    return path, bytearray(path.read_bytes()), starts


@pytest.mark.parametrize("damaged", [0, 2])
def test_a_flipped_bit_within_a_record_costs_the_record(records, damaged):
    path, content, starts = records
    place = content.index(b"tall", starts[damaged])
    content[place] ^= 1
    path.write_bytes(content)
    source = opened(path)
    with pytest.raises(Unreadable, match="the record is damaged: its checksum is another"):
        source.read(damaged)
    rest = [number for number in range(5) if number != damaged]
    assert [source.read(n).captions for n in rest] == [[f"{n} a tall tower"] for n in rest]
    inputs = shard_writer.Inputs(shard_writer.Preparation((str(path),)))
    with pytest.raises(Unreadable, match="the record is damaged"):
        inputs.read(damaged)


@pytest.mark.parametrize("place", [0, 7, 9])
def test_a_damaged_length_costs_the_rest_and_tells_how_many_bytes(records, place):
    path, content, starts = records
    content[starts[3] + place] ^= 1
    path.write_bytes(content)
    source = opened(path)
    assert len(source) == 3
    lost = len(content) - starts[3]
    assert source.faults == [
        (
            str(path),
            "the rest of the shard is lost",
            f"damaged at byte {starts[3]}; the last {lost} bytes are lost",
        )
    ]


def test_page_checksums_of_parquet_are_read(tmp_path):
    table = pyarrow.table({"image": [PNG, PNG], "caption": ["a tall tower", "a kite"]})
    path = tmp_path / "a.parquet"
    options = {"compression": "none", "use_dictionary": False, "write_page_checksum": True}
    pyarrow.parquet.write_table(table, path, row_group_size=1, write_statistics=False, **options)
    content = bytearray(path.read_bytes())
    content[content.index(b"a tall tower") + 2] ^= 1
    path.write_bytes(content)
    source = opened(path)
    assert source.captions() == ["", "a kite"]
    with pytest.raises(Unreadable, match=r"the row group is damaged: .*CRC"):
        source.read(0)


# What a file is that is no shard.


@pytest.mark.parametrize("ending", ["tar", "tfrecord", "parquet"])
def test_a_pointer_of_git_lfs_is_told_as_such(tmp_path, ending):
    path = tmp_path / f"a.{ending}"
    path.write_bytes(POINTER)
    assert "run git lfs pull" in refused(path)


def test_a_picture_that_is_a_pointer_is_told_as_such(tmp_path):
    (tmp_path / "0.jpg").write_bytes(POINTER)
    (tmp_path / "pairs.csv").write_text("image,caption\n0.jpg,a\n")
    with pytest.raises(Unreadable, match=r"pointer of Git LFS.*run git lfs pull"):
        opened(tmp_path / "pairs.csv").read(0)


def test_compressed_shards_are_told_by_what_compressed_them(tmp_path):
    records = [shards.tfrecord_example(png=PNG, txt=b"a")]
    path = shards.write_tfrecord(tmp_path / "a.tfrecord", records, "ZLIB")
    assert "compressed with zlib as a whole; write it without compression" in refused(path)
    path = tar_of(tmp_path / "a.tar", "0.jpg", "0.txt")
    content = content_of(path)
    with open(path, "wb") as file:
        file.write(zlib.compress(content, wbits=31))
    assert "compressed with gzip as a whole; unpack it with gunzip" in refused(path)


def test_indexes_are_read_one_at_a_time(tmp_path, monkeypatch):
    for number in range(8):
        tar_of(tmp_path / f"{number}.tar", *pairs("1")["1"])
    opened(tmp_path / "*.tar")  # makes the indexes
    load, reading, together = np.load, [], []

    def watched(file, **settings):
        reading.append(file)
        time.sleep(0.01)
        together.append(len(reading))
        arrays = load(file, **settings)
        reading.remove(file)
        return arrays

    monkeypatch.setattr(shard_index.np, "load", watched)
    opened(tmp_path / "*.tar")
    assert together == [1] * 8
