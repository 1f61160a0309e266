"""Data as it comes: what can be read is read, the rest is named, counted and replaced."""

import io
import itertools
import json
import re
import struct
import tarfile
import threading
import time
import types
import zlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from cyclip_jax.data import pipeline
from cyclip_jax.data.bad_examples import BadExamples
from cyclip_jax.data.order import order
from cyclip_jax.data.sources import create_source, ranges
from cyclip_jax.data.transform import Transform
from cyclip_jax.errors import UserError
from tests.data import shards

BATCH, IMAGE_SIZE = 8, 8


def png_header_of_gigabytes():
    """A PNG of a few bytes that says it is 20,000 × 20,000 pixels."""

    def chunk(kind, content):
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(1 << 16))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


def animation():
    frames = [shards.photograph(number).resize((24, 20)) for number in (0, 3, 6)]
    return shards.encode(frames[0], "GIF", save_all=True, append_images=frames[1:])


def deep_png():
    """A grey PNG of 16 bits."""
    ramp = np.linspace(0, 65_535, 30 * 20).reshape(20, 30).astype(np.uint16)
    return shards.encode(Image.fromarray(ramp), "PNG")


def jpeg(number=1):
    return shards.encode(shards.photograph(number), "JPEG", quality=95)


# {name: (ending, picture, whether it can be read)}
ODD = {
    "CMYK": ("jpg", shards.encode(shards.photograph(1).convert("CMYK"), "JPEG")),
    "16 bits": ("png", deep_png()),
    "animation": ("gif", animation()),
    "a PNG called .jpg": ("jpg", shards.encode(shards.photograph(2), "PNG")),
    "one pixel": ("png", shards.encode(Image.new("RGB", (1, 1), (200, 30, 30)), "PNG")),
    "grey": ("webp", shards.encode(shards.photograph(4).convert("L"), "WEBP")),
}
BAD = {
    "half a JPEG": ({"jpg": jpeg()[: len(jpeg()) // 2]}, "the image cannot be decoded"),
    "zero bytes": ({"jpg": b""}, "the image cannot be decoded"),
    "a web page": ({"png": b"<html>not found</html>"}, "the image cannot be decoded"),
    "a bomb": ({"png": png_header_of_gigabytes()}, "the image is too large"),
    "no caption": ({"jpg": jpeg(), "txt": None}, "the caption is empty"),
    "a blank caption": ({"jpg": jpeg(), "txt": b" \n"}, "the caption is empty"),
    "Latin 1": ({"jpg": jpeg(), "txt": "grün".encode("latin-1")}, "the caption is not UTF-8"),
}
GOOD = 12
SIZE = GOOD + len(ODD) + len(BAD)


@pytest.fixture(scope="module")
def mixed_up(tmp_path_factory):
    """A tar file of good, odd and bad examples in turn, and {name: index}."""
    examples = {str(number): shards.tar_example(number) for number in range(GOOD)}
    for number, (name, (ending, content)) in enumerate(ODD.items(), start=GOOD):
        examples[name] = {ending: content, "txt": f"{number} {name}".encode()}
    for name, (members, _) in BAD.items():
        members = {"txt": b"-2 bad"} | members
        examples[name] = {key: value for key, value in members.items() if value is not None}
    names = sorted(examples, key=lambda name: zlib.crc32(name.encode()))
    folder = tmp_path_factory.mktemp("mixed_up")
    examples = {name.replace(".", "dot "): examples[name] for name in names}
    path = shards.write_tar(folder / "mixed_up.tar", examples)
    return path, {name: index for index, name in enumerate(names)}


def open_tars(path):
    return create_source("webdataset", path, config_key="config.data.train")


def train(source, bad_examples, steps, **changes):
    arguments = {"batch_size": BATCH, "image_size": IMAGE_SIZE, "seed": 5, "position": None}
    transform = Transform(augmentation="random_resized_crop", crop_scale=(0.6, 1.0))
    arguments |= {"transform": transform} | changes
    iterator = pipeline.train_batches(
        source, shards.tokenizer, bad_examples=bad_examples, **arguments
    )
    try:
        return [batch for batch, _ in itertools.islice(iterator, steps)]
    finally:
        iterator.close()


def numbers_of(batches):
    return np.concatenate([batch["tokens"][:, 0] for batch in batches]).tolist()


def named(path):
    """{the key's last part: reason} of a file of bad examples."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len({(line["key"], line["index"]) for line in lines}) == len(lines)
    return {line["key"].rpartition("/")[2]: line["reason"] for line in lines}


REASONS = {name: reason for name, (_, reason) in BAD.items()}


def test_evaluation_reads_what_is_odd_and_masks_and_names_what_is_bad(mixed_up, tmp_path):
    path, places = mixed_up
    bad_examples = BadExamples(tmp_path / "bad.jsonl", 1.0, SIZE)
    batches = list(
        pipeline.eval_batches(
            open_tars(path),
            shards.tokenizer,
            batch_size=BATCH,
            image_size=IMAGE_SIZE,
            bad_examples=bad_examples,
        )
    )
    masks = np.concatenate([batch["mask"] for batch in batches])
    pictures = np.concatenate([batch["images"] for batch in batches])

    bad = [places[name] for name in BAD]
    assert np.flatnonzero(~masks).tolist() == sorted([*bad, *range(SIZE, -SIZE % BATCH + SIZE)])
    assert not pictures[~masks].any()
    assert named(tmp_path / "bad.jsonl") == REASONS
    numbers = np.array(numbers_of(batches))
    for number, name in enumerate([*map(str, range(GOOD)), *ODD]):
        assert numbers[places[name]] == number

    # What they show is known: one colour, a ramp, and what Pillow makes of the rest.
    assert (pictures[places["one pixel"]] == [200, 30, 30]).all()
    ramp = pictures[places["16 bits"]][:, :, 0].astype(int)
    assert (np.diff(ramp[:, 4]) > 20).all() and ramp[0, 0] < 20 and ramp[-1, -1] > 235
    for name in ("CMYK", "animation", "a PNG called .jpg", "grey"):
        picture = Image.open(io.BytesIO(ODD[name][1])).convert("RGB")
        expected = np.asarray(picture).reshape(-1, 3).mean(axis=0)
        middle = pictures[places[name]].reshape(-1, 3).mean(axis=0)
        np.testing.assert_allclose(middle, expected, atol=25)
        assert pictures[places[name]].std() > 10


def test_training_replaces_names_and_counts_what_is_bad(mixed_up, tmp_path):
    bad_examples = BadExamples(tmp_path / "bad.jsonl", 1.0, SIZE)
    numbers = numbers_of(train(open_tars(mixed_up[0]), bad_examples, 15))

    assert len(numbers) == 15 * BATCH
    assert set(numbers) == set(range(GOOD + len(ODD)))
    assert named(tmp_path / "bad.jsonl") == REASONS
    assert bad_examples.by_reason == {
        "the image cannot be decoded": 3,
        "the caption is empty": 2,
        "the image is too large": 1,
        "the caption is not UTF-8": 1,
    }


# Shards that are cut, vanish or cannot be read.


def cut_within(member, path):
    """(where the member's header begins, where its content does, and where that ends)."""
    with tarfile.open(path) as archive:
        info = archive.getmember(member)
    return info.offset, info.offset_data, info.offset_data + info.size


@pytest.mark.parametrize(
    ("place", "whole", "fault"),
    [
        ("content", 6, r"cut short in 000000006\.jpg"),
        ("first byte", 6, r"cut short in 000000006\.jpg"),
        ("header", 6, r"cut short at byte \d+"),
        ("before the header", 6, r"cut short at byte \d+"),
        ("padding", 7, r"cut short or no tar file: unexpected end of data"),
        ("damaged header", 6, r"damaged at byte \d+; the last \d+ bytes are lost"),
    ],
)
def test_of_a_tar_that_is_cut_what_lies_before_is_read(tmp_path, place, whole, fault):
    path = tmp_path / "00000.tar"
    shards.write_tars(tmp_path, [range(9)])
    header, start, end = cut_within("000000006.jpg", path)
    content = path.read_bytes()
    end_of = {
        "content": (start + end) // 2,
        "first byte": start + 1,
        "header": header + 100,
        "before the header": header,
        "padding": end + 1,
        "damaged header": None,
    }[place]
    if end_of is None:
        content = content[:header] + b"\xff" * 512 + content[header + 512 :]
    path.write_bytes(content[:end_of])
    source = open_tars(str(path))

    assert source.captions()[:6] == [shards.caption(number) for number in range(6)]
    assert source.read(5).image == shards.picture(5)
    assert len(source) == whole
    ((key, reason, detail),) = source.faults
    is_cut = place != "damaged header"
    expected = "the shard is cut short" if is_cut else "the rest of the shard is lost"
    assert (key, reason) == (str(path), expected)
    assert re.fullmatch(fault, detail)
    assert open_tars(str(path)).faults == source.faults  # as the index tells


def test_a_cut_record_file_is_read_up_to_there(tmp_path):
    shards.write_tfrecords(tmp_path, [range(9)])
    path = tmp_path / "00000.tfrecord"
    path.write_bytes(path.read_bytes()[:-10])
    source = create_source("tfrecord", str(path), config_key="c")

    assert source.captions() == [shards.caption(number) for number in range(len(source))]
    assert len(source) == 8
    assert source.faults == [(str(path), "the shard is cut short", "cut short after 8 records")]


def test_a_run_over_a_cut_and_a_vanished_shard_counts_both(tmp_path):
    """Of three shards one is cut short before the run, and one is gone after it was opened."""
    pattern = shards.write_tars(tmp_path, [range(0, 12), range(12, 24), range(24, 36)])
    first = tmp_path / "00000.tar"
    first.write_bytes(first.read_bytes()[: cut_within("000000010.png", first)[1] + 10])
    source = open_tars(pattern)
    assert len(source) == 10 + 12 + 12
    (tmp_path / "00001.tar").unlink()
    bad_examples = BadExamples(tmp_path / "bad.jsonl", 1.0, len(source))
    numbers = numbers_of(train(source, bad_examples, 12))

    assert set(numbers) <= {*range(10), *range(24, 36)} and len(set(numbers)) > 18
    assert bad_examples.by_reason == {"the file is missing": 12, "the shard is cut short": 1}
    names = named(tmp_path / "bad.jsonl")
    assert names.pop("00000.tar") == "the shard is cut short"
    assert set(names) == {f"#{number}" for number in range(12)}  # the shard told the names


def test_a_shard_that_is_open_can_be_unlinked(tmp_path):
    path = shards.write_tars(tmp_path, [range(4)])
    source = open_tars(path)
    source.read(0)
    (tmp_path / "00000.tar").unlink()

    assert [source.read(number).image for number in range(4)] == [
        shards.picture(number) for number in range(4)
    ]


def test_a_shard_that_was_cut_after_it_was_opened_is_no_longer_read(tmp_path):
    path = tmp_path / "00000.tar"
    source = open_tars(shards.write_tars(tmp_path, [range(4)]))
    with open(path, "r+b") as file:
        file.truncate(cut_within("000000002.webp", path)[1] + 5)

    assert source.read(1).image == shards.picture(1)
    with pytest.raises(ranges.Unreadable, match=r"the shard is cut short: .*00000\.tar at byte"):
        source.read(2)


def test_a_damaged_record_is_one_bad_example(tmp_path):
    records = [shards.tfrecord_example(jpg=shards.picture(0), txt=b"0 one"), b"\xff" * 50]
    path = shards.write_tfrecord(tmp_path / "a.tfrecord", [*records, records[0]])
    source = create_source("tfrecord", path, config_key="c")

    with pytest.raises(ranges.Unreadable, match="the record is damaged"):
        source.read(1)
    assert source.read(2) == source.read(0)


class Service:
    """Reads of shards as a busy service gives them: some fail at first, some always, some late."""

    def __init__(self, monkeypatch, refused=frozenset()):
        self.pauses, self.tries, self._refused = [], {}, refused
        self._read, self._lock = ranges.Files.read_once, threading.Lock()
        monkeypatch.setattr(ranges, "time", types.SimpleNamespace(sleep=self.pauses.append))
        monkeypatch.setattr(ranges.Files, "read_once", lambda *arguments: self.read(*arguments))

    def read(self, files, file, start, length):
        with self._lock:
            tries = self.tries[file, start] = self.tries.get((file, start), 0) + 1
        if file in self._refused:
            raise tf.errors.UnavailableError(None, None, "try again later")
        if tries < 3:
            raise OSError(110, "Connection timed out")
        if (start >> 9) % 7 == 0:
            time.sleep(0.02)
        return self._read(files, file, start, length)


@pytest.fixture
def thirds(tmp_path):
    return open_tars(shards.write_tars(tmp_path, [range(0, 8), range(8, 16), range(16, 24)]))


def test_a_busy_service_changes_nothing(thirds, tmp_path, monkeypatch):
    service = Service(monkeypatch)
    batches = train(thirds, BadExamples(tmp_path / "bad.jsonl", 0.0, 24), 4)

    assert numbers_of(batches) == [*order(5, 0, 24), *order(5, 1, 24)[:8]]
    assert set(service.pauses) == set(ranges.RETRY_AFTER[:2])
    assert len(service.tries) == 2 * 24 and min(service.tries.values()) >= 3


def test_a_shard_that_a_service_refuses_is_replaced_up_to_the_limit(thirds, tmp_path, monkeypatch):
    service = Service(monkeypatch, refused={1})
    bad_examples = BadExamples(tmp_path / "bad.jsonl", 8 / 24, 24)
    numbers = numbers_of(train(thirds, bad_examples, 9))
    assert set(numbers) == {*range(8), *range(16, 24)}
    assert bad_examples.by_reason == {"the file cannot be read": 8}
    assert set(service.pauses) == set(ranges.RETRY_AFTER)

    bad_examples = BadExamples(tmp_path / "again.jsonl", 5 / 24, 24)
    with pytest.raises(UserError) as error:
        train(thirds, bad_examples, 9)
    assert str(error.value) == (
        "25.00% of the examples cannot be read, more than the allowed 20.83%: 6 of 24 (6 × the "
        f"file cannot be read), named in {tmp_path}/again.jsonl; mend them, or raise "
        "config.data.max_bad_share"
    )
    lines = (tmp_path / "again.jsonl").read_text().splitlines()
    assert {json.loads(line)["detail"] for line in lines} == {"try again later"}


def test_captions_whose_json_is_damaged_are_named(tmp_path):
    def example(json_text):
        return {"jpg": jpeg(), "json": json_text}

    texts = [b'{"caption": "0 fine"}', b'{"caption": ', b"[1]", b'{"caption": null}', b"\xff"]
    path = shards.write_tar(tmp_path / "a.tar", {str(i): example(t) for i, t in enumerate(texts)})
    source = create_source("webdataset", path, config_key="c", caption_key="json:caption")

    assert source.captions() == ["0 fine", "", "", "", ""]
    for index, reason in enumerate([None, "JSON", "JSON", "empty", "JSON"]):
        if reason:
            with pytest.raises(ranges.Unreadable, match=f"the caption.*{reason}"):
                source.read(index)
