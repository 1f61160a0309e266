"""Any data set as TFRecord shards: what is written, what is dropped, what a killed run leaves."""

import csv
import fcntl
import hashlib
import io
import json
import os
import pathlib
import re
import tarfile
import time

import numpy as np
import pytest
import skimage.data
import tensorflow as tf
import tqdm
from PIL import Image

from cyclip_jax.data.prepare import main
from cyclip_jax.data.sources import create_source
from cyclip_jax.data.sources.shard_index import index_path
from tests.runs import start_process, status_of

PICTURES = ("astronaut", "coffee", "chelsea", "rocket")


def picture(name, size=(60, 45)):
    return Image.fromarray(getattr(skimage.data, name)()).resize(size)


def encode(image, file_format="JPEG", **options):
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def write_data(folder, rows, columns=("image", "caption")):
    """Writes train.csv and its pictures, from [(name, bytes or None, captions…)]; its path."""
    folder.mkdir(exist_ok=True)
    with open(folder / "train.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for name, content, *captions in rows:
            if content is not None:
                (folder / name).write_bytes(content)
            writer.writerow([name, *captions])
    return folder / "train.csv"


def write_tar(path, members):
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def run(data, output, *options, code=0):
    """The command line within this process, by one worker unless the options say another."""
    arguments = [f"--input={data}", f"--output={output}", "--workers=1", *options]
    assert status_of(main, arguments) == code


def read_back(output):
    """[(picture's file, captions)] as training reads them."""
    source = create_source("auto", f"{output}/*.tfrecord", config_key="config.data.train")
    records = [source.read(index) for index in range(len(source))]
    return [(record.image, record.captions) for record in records]


def examples(output):
    """The features of all records, as TensorFlow's own reader gives them."""
    paths = sorted(map(str, pathlib.Path(output).glob("*.tfrecord")))
    return [
        dict(tf.train.Example.FromString(record).features.feature)
        for record in tf.data.TFRecordDataset(paths).as_numpy_iterator()
    ]


def contents(folder):
    """{name: bytes} of a folder; of an index all but the time at which its shard was written."""
    result = {}
    for path in folder.iterdir():
        result[path.name] = path.read_bytes()
        if path.suffix == ".npz":
            arrays = dict(np.load(io.BytesIO(result[path.name])))
            arrays["about"] = arrays["about"][:-1]
            result[path.name] = {name: array.tolist() for name, array in arrays.items()}
    return result


def manifest(output):
    return json.loads((output / "manifest.json").read_text())


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """[(name, JPEG, caption)] of seven pictures, and the path of their CSV."""
    sizes = [(60, 45), (45, 60), (50, 50), (64, 40), (61, 45), (52, 47), (48, 48)]
    rows = [
        (f"{i}.jpg", encode(picture(PICTURES[i % 4], size)), f"picture {i}, naïve")
        for i, size in enumerate(sizes)
    ]
    return rows, write_data(tmp_path_factory.mktemp("pairs"), rows)


@pytest.fixture(scope="module")
def slow_data(tmp_path_factory):
    """A CSV of 24 times the same large photograph, each a noticeable time to make small."""
    content = encode(picture("coffee", (2100, 1400)))
    rows = [("large.jpg", content if i == 0 else None, f"picture {i}") for i in range(24)]
    return write_data(tmp_path_factory.mktemp("slow"), rows)


SLOW = ("--examples_per_shard=2", "--resize=40")


@pytest.fixture(scope="module")
def uninterrupted(slow_data, tmp_path_factory):
    output = tmp_path_factory.mktemp("uninterrupted")
    run(slow_data, output, *SLOW)
    return contents(output)


def test_pictures_and_captions_come_back_as_they_were(pairs, tmp_path, capsys):
    rows, data = pairs
    run(data, tmp_path / "out", "--examples_per_shard=3")

    assert read_back(tmp_path / "out") == [(content, [caption]) for _, content, caption in rows]
    printed = capsys.readouterr().out
    assert "7 examples in 3 shards" in printed
    assert f"--config.data.train='{tmp_path}/out/*.tfrecord'" in printed


def test_records_have_the_features_of_img2dataset(pairs, tmp_path):
    rows, data = pairs
    run(data, tmp_path / "out")
    first = examples(tmp_path / "out")[0]

    assert sorted(first) == ["height", "jpg", "key", "txt", "width"]
    assert first["key"].bytes_list.value == [b"0.jpg"]
    assert first["jpg"].bytes_list.value == [rows[0][1]]
    assert first["txt"].bytes_list.value == ["picture 0, naïve".encode()]
    sides = [first[name].int64_list.value for name in ("width", "height")]
    assert sides == [[60], [45]]


def test_reports_and_manifest_agree_with_the_shards(pairs, tmp_path):
    output = tmp_path / "out"
    run(pairs[1], output, "--examples_per_shard=4")

    shards = manifest(output)["shards"]
    assert list(shards) == ["00000.tfrecord", "00001.tfrecord"]
    assert [shard["examples"] for shard in shards.values()] == [4, 3]
    for name, shard in shards.items():
        content = (output / name).read_bytes()
        assert shard["bytes"] == len(content)
        assert shard["sha256"] == hashlib.sha256(content).hexdigest()
        assert shard.items() <= json.loads((output / name).with_suffix(".json").read_text()).items()
        assert os.path.exists(index_path(str(output / name)))


def test_bad_rows_are_dropped_counted_and_named(tmp_path, capsys):
    good = encode(picture("coffee"))
    rows = [
        ("good.jpg", good, "good"),
        ("missing.jpg", None, "missing"),
        ("text.jpg", b"<html>not found</html>", "text"),
        ("cut.jpg", good[: len(good) // 2], "cut"),
        ("blank.jpg", good, "  "),
        ("large.jpg", encode(picture("coffee", (101, 100))), "large"),
        ("empty.jpg", b"", "empty"),
        ("good.jpg", good, "good again"),
    ]
    output = tmp_path / "out"
    data = write_data(tmp_path / "in", rows)
    run(data, output, "--examples_per_shard=3", "--max_pixels=10000")

    assert read_back(output) == [(good, ["good"]), (good, ["good again"])]
    assert manifest(output)["dropped"] == {
        "the image cannot be decoded": 3,
        "the caption is empty": 1,
        "the file is missing": 1,
        "the image is too large": 1,
    }
    dropped = [json.loads(line) for line in (output / "dropped.jsonl").read_text().splitlines()]
    assert [(row["index"], row["key"]) for row in dropped] == [(i, rows[i][0]) for i in range(1, 7)]
    assert dropped[1]["reason"] == "the image cannot be decoded"
    assert dropped[1]["detail"] == "no picture of a known format"
    assert dropped[4]["detail"] == "101 × 100 pixels, more than --max_pixels=10000"
    assert json.loads((output / "00000.json").read_text())["examples"] == 1
    assert "2 examples in 3 shards" in capsys.readouterr().out


def test_without_check_damaged_pictures_are_copied(tmp_path):
    cut = encode(picture("coffee"))[:700]
    data = write_data(tmp_path / "in", [("cut.jpg", cut, "cut")])
    run(data, tmp_path / "out", "--no-check")

    assert read_back(tmp_path / "out") == [(cut, ["cut"])]


def test_resize_makes_the_shorter_side_small_and_leaves_small_pictures(tmp_path):
    wide, tall = picture("rocket", (97, 64)), picture("chelsea", (40, 90))
    small = encode(picture("coffee", (32, 200)))
    rows = [("wide.png", encode(wide, "PNG")), ("tall.jpg", encode(tall)), ("small.jpg", small)]
    data = write_data(tmp_path / "in", [(*row, "a caption") for row in rows])
    run(data, tmp_path / "out", "--resize=32", "--quality=80")

    stored = [content for content, _ in read_back(tmp_path / "out")]
    expected = wide.resize((48, 32), Image.Resampling.BICUBIC)
    assert stored[0] == encode(expected, quality=80)
    assert Image.open(io.BytesIO(stored[1])).size == (32, 72)
    assert stored[2] == small
    widths = [features["width"].int64_list.value[0] for features in examples(tmp_path / "out")]
    assert widths == [48, 32, 32]


def test_the_content_decides_about_the_format_and_others_become_png(tmp_path):
    image = picture("chelsea")
    rows = [
        ("a.jpg", encode(image, "PNG"), "png"),
        ("b.jpg", encode(image, "WEBP"), "webp"),
        ("c.jpg", encode(image, "GIF"), "gif"),
        ("d.jpg", encode(image, "BMP"), "bmp"),
    ]
    run(write_data(tmp_path / "in", rows), tmp_path / "out")
    stored = examples(tmp_path / "out")

    formats = [({"jpg", "png", "webp"} & set(features)).pop() for features in stored]
    assert formats == ["png", "webp", "png", "png"]
    assert stored[0]["png"].bytes_list.value == [rows[0][1]]
    assert stored[1]["webp"].bytes_list.value == [rows[1][1]]
    for features, (_, content, _) in zip(stored[2:], rows[2:], strict=True):
        (png,) = features["png"].bytes_list.value
        original = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png))), original)


def test_all_captions_of_an_example_survive(tmp_path):
    content = encode(picture("coffee"))
    columns = ("image", "title", "alt")
    rows = [("a.jpg", content, "a title", "a text"), ("b.jpg", content, "", "only one")]
    data = write_data(tmp_path / "in", rows, columns)
    run(data, tmp_path / "out", "--caption_key=title", "--caption_key=alt")

    captions = [captions for _, captions in read_back(tmp_path / "out")]
    assert captions == [["a title", "a text"], ["only one"]]


def test_several_inputs_follow_one_another(pairs, tmp_path):
    rows, data = pairs
    write_tar(tmp_path / "more.tar", {"x.jpg": rows[0][1], "x.txt": b"from a tar file"})
    run(data, tmp_path / "out", f"--input={tmp_path}/more.tar")

    captions = [captions[0] for _, captions in read_back(tmp_path / "out")]
    assert captions == [*(caption for *_, caption in rows), "from a tar file"]


def test_half_a_character_neither_stops_the_run_nor_the_report(tmp_path):
    content = encode(picture("coffee"))
    members = {
        "a.jpg": content,
        "a.json": b'{"caption": "a \\ud83d picture"}',
        "b\udce9.jpg": b"no picture",
        "b\udce9.json": b'{"caption": "another"}',
    }
    write_tar(tmp_path / "in.tar", members)
    run(tmp_path / "in.tar", tmp_path / "out", "--caption_key=json:caption")

    assert read_back(tmp_path / "out") == [(content, ["a ? picture"])]
    assert len((tmp_path / "out" / "dropped.jsonl").read_text().splitlines()) == 1


def test_shuffling_keeps_the_examples_and_depends_on_the_seed_alone(pairs, tmp_path):
    rows, data = pairs
    orders = []
    for number, seed in enumerate((0, 0, 1)):
        run(data, tmp_path / f"{number}", f"--shuffle_seed={seed}")
        orders.append([captions[0] for _, captions in read_back(tmp_path / f"{number}")])

    in_order = [caption for *_, caption in rows]
    assert sorted(orders[0]) == in_order != orders[0]
    assert orders[0] == orders[1] != orders[2]


def test_two_workers_write_the_bytes_of_one(slow_data, uninterrupted, tmp_path):
    run(slow_data, tmp_path, *SLOW, "--workers=2")

    assert contents(tmp_path) == uninterrupted


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def is_running(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_killed_run_continues_to_the_same_bytes(slow_data, uninterrupted, environment, tmp_path):
    flags = [f"--input={slow_data}", f"--output={tmp_path}", *SLOW, "--workers=2"]
    process = start_process(environment, "data.prepare", *flags)
    wait_for(lambda: list(tmp_path.glob("00*.json")))
    children = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.kill()
    process.communicate()
    wait_for(lambda: not any(map(is_running, children)))
    finished = {path: path.stat().st_mtime_ns for path in tmp_path.glob("00*.json")}
    (tmp_path / "00011.tfrecord.1.tmp").write_bytes(b"half a shard")
    (tmp_path / "manifest.json.1.2.tmp").write_bytes(b"half a manifest")

    assert len(children) >= 2
    assert 0 < len(finished) < 12
    assert not (tmp_path / "manifest.json").exists()

    run(slow_data, tmp_path, *SLOW)

    assert contents(tmp_path) == uninterrupted
    assert {path: path.stat().st_mtime_ns for path in finished} == finished


def test_an_interrupted_run_says_that_the_command_continues(
    slow_data, uninterrupted, tmp_path, capsys, monkeypatch
):
    class Interrupting(tqdm.tqdm):
        """A bar that, once a shard is there, does what Ctrl-C does where it is not ignored."""

        def update(self, n=1):
            super().update(n)
            if list(tmp_path.glob("00*.json")):
                raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("cyclip_jax.runtime.progress.tqdm.tqdm", Interrupting)
        run(slow_data, tmp_path, *SLOW, code=130)

    said = capsys.readouterr().err
    assert said.endswith("\ninterrupted; the same command continues\n")
    assert re.match(r"0 of \d+ examples, \? examples/s, \? left\n\d+ of \d+ examples, ", said)
    assert not list(tmp_path.glob("*.tmp"))
    assert 0 < len(list(tmp_path.glob("00*.json"))) < 12

    run(slow_data, tmp_path, *SLOW)
    assert contents(tmp_path) == uninterrupted


def test_a_shard_that_has_changed_is_written_again(pairs, tmp_path):
    options = ("--examples_per_shard=3",)
    run(pairs[1], tmp_path, *options)
    whole = contents(tmp_path)
    shard = tmp_path / "00001.tfrecord"

    shard.write_bytes(whole[shard.name][:-1])
    run(pairs[1], tmp_path, *options)
    assert contents(tmp_path) == whole

    shard.write_bytes(whole[shard.name][:-1] + b"?")
    run(pairs[1], tmp_path, *options)
    assert contents(tmp_path) != whole
    run(pairs[1], tmp_path, *options, "--verify")
    assert contents(tmp_path) == whole


def test_other_settings_or_another_input_are_refused(pairs, tmp_path, capsys):
    rows, data = pairs
    output = tmp_path / "out"
    run(data, output, "--resize=40")
    before = contents(output)

    run(data, output, "--resize=32", "--quality=90", code=1)
    refusal = capsys.readouterr().err.splitlines()[-1]
    assert refusal == (
        f"error: {output} was begun with other settings: --resize was 40 and is 32; "
        "--quality was 95 and is 90; repeat the earlier command, or set --output to another folder"
    )

    copy = write_data(tmp_path / "copy", rows)
    run(copy, tmp_path / "other")
    write_data(tmp_path / "copy", rows[:-1])
    run(copy, tmp_path / "other", code=1)
    assert "the number of input examples was 7 and is 6" in capsys.readouterr().err
    assert contents(output) == before


def test_a_folder_with_shards_of_others_is_refused(pairs, tmp_path, capsys):
    foreign = tmp_path / "00000.tfrecord"
    foreign.write_bytes(b"another's")
    run(pairs[1], tmp_path, code=1)

    assert (
        f"{tmp_path} holds shards that this command did not write: 00000.tfrecord; set --output"
        in (capsys.readouterr().err)
    )
    assert [path.name for path in tmp_path.iterdir()] == [foreign.name]
    assert foreign.read_bytes() == b"another's"

    foreign.unlink()
    run(pairs[1], tmp_path)
    (tmp_path / "validation.tfrecord").write_bytes(b"another's")
    run(pairs[1], tmp_path, code=1)
    assert "that this command did not write: validation.tfrecord" in capsys.readouterr().err


def test_a_second_run_at_the_same_time_is_refused(pairs, tmp_path, capsys):
    descriptor = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    run(pairs[1], tmp_path, code=1)
    os.close(descriptor)

    assert f"another process is writing into {tmp_path}" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_data_without_any_good_example_are_an_error(tmp_path, capsys):
    rows = [("a.jpg", None, "missing"), ("b.jpg", b"text", "no picture")]
    run(write_data(tmp_path / "in", rows), tmp_path / "out", code=1)

    assert capsys.readouterr().err.splitlines()[-1] == (
        "error: none of the 2 examples can be used (1 × the file is missing, 1 × the image cannot "
        f"be decoded); {tmp_path}/out/dropped.jsonl names each"
    )
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_what_a_source_refuses_is_said_in_the_words_of_the_options(pairs, tmp_path, capsys):
    run(pairs[1], tmp_path / "out", "--caption_key=title", code=1)
    message = capsys.readouterr().err
    assert "has no column 'title' (columns: image, caption); set --caption_key" in message

    run(pairs[1], tmp_path / "out", "--template=a photo", code=1)
    assert "the template 'a photo' in --template has no {}" in capsys.readouterr().err
