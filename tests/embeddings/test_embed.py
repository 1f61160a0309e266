"""The embeddings of a data set: their files, and that nothing but the data decides about them."""

import csv
import functools
import json
import shutil
import signal
import time

import numpy as np
import pyarrow.parquet
import pytest
from embedding_reader import EmbeddingReader
from PIL import Image

from cyclip_jax import load
from cyclip_jax.embed import define_flags, main
from cyclip_jax.embeddings import opening
from cyclip_jax.embeddings import write as module
from cyclip_jax.embeddings.layout import Embeddings
from cyclip_jax.embeddings.opening import open_collection
from cyclip_jax.embeddings.write import Wanted, embed_data, picture_sum
from cyclip_jax.errors import UserError
from cyclip_jax.export import export_checkpoint
from cyclip_jax.runtime import command
from tests.pictures import write_pairs
from tests.runs import finish, free_address, start_process, status_of

SHARDS = {"batch_size": 4, "shard_size": 10}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """24 pairs; one has no picture, one a damaged one and one no caption."""
    path = write_pairs(tmp_path_factory.mktemp("pool"))
    with open(path, newline="") as file:
        header, *rows = csv.reader(file)
    rows[4][0], rows[5][1] = "missing.png", " "
    (path.parent / rows[17][0]).write_bytes(b"no picture")
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


@pytest.fixture(scope="module", autouse=True)
def compiled_once():
    """The model is opened, and compiled, once for all commands here."""
    with pytest.MonkeyPatch.context() as patch:
        for using in (module, opening):
            patch.setattr(using, "open_model", functools.cache(using.open_model))
        yield


def embed(data, workdir, output, **wanted):
    return embed_data(Wanted(input=str(data), **SHARDS | wanted), workdir, output)


def bytes_of(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def embedded(data, finished, tmp_path_factory):
    folder = tmp_path_factory.mktemp("embedded") / "out"
    embed(data, finished[0], folder)
    return folder


def test_rows_are_the_models_embeddings_of_the_examples(data, finished, embedded):
    model, preprocess, tokenize = load(finished[0])
    with open(data, newline="") as file:
        rows = list(csv.DictReader(file))
    seen = []
    for images, texts, metadata in Embeddings(str(embedded)).shards:
        assert images.dtype == texts.dtype == np.float16
        for image, text, line in zip(images, texts, metadata.to_pylist(), strict=True):
            row = rows[line["example"]]
            assert (line["image_path"], line["caption"]) == (row["image"], row["caption"])
            path = data.parent / row["image"]
            assert line["picture_sum"] == picture_sum(path.read_bytes())
            if line["example"] % 8 == 0:
                expected = model(preprocess(Image.open(path)), tokenize([row["caption"]]))
                np.testing.assert_allclose(image, expected[0][0], atol=1e-3)
                np.testing.assert_allclose(text, expected[1][0], atol=1e-3)
            seen.append(line["example"])
    assert seen == [n for n in range(24) if n not in (4, 5, 17)]


def test_what_cannot_be_read_is_named_and_counted(embedded):
    manifest = json.loads((embedded / "embeddings.json").read_text())
    with open(embedded / "unreadable.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [int(line["example"]) for line in lines] == [4, 5, 17]
    assert lines[0]["name"] == "missing.png" and all(line["reason"] for line in lines)
    assert manifest["examples"] == 21 and sum(manifest["unreadable"].values()) == 3


@pytest.mark.parametrize("kind", ["img_emb", "text_emb"])
def test_autofaiss_s_reader_reads_them(embedded, kind):
    reader = EmbeddingReader(
        embeddings_folder=str(embedded / kind),
        metadata_folder=str(embedded / "metadata"),
        meta_columns=["caption", "image_path"],
        file_format="parquet_npy",
    )
    assert (reader.count, reader.dimension) == (21, 16)
    rows, lines = zip(*reader(batch_size=5), strict=True)
    shards = Embeddings(str(embedded)).shards
    own = [shard.images if kind == "img_emb" else shard.texts for shard in shards]
    np.testing.assert_array_equal(np.concatenate(rows), np.concatenate(own))
    captions = [caption for shard in shards for caption in shard.metadata["caption"].to_pylist()]
    assert [caption for line in lines for caption in line["caption"]] == captions


def test_a_killed_command_goes_on_to_the_same_bytes(
    data, finished, embedded, tmp_path, monkeypatch
):
    """Killed within the second of three shards, and before the manifest."""
    written, calls = module.write_atomically, []

    def killed(path, content):
        calls.append(path)
        if len(calls) in (6, 13):
            (path.parent / f"{path.name}.1.2.tmp").write_bytes(b"half")
            raise KeyboardInterrupt
        written(path, content)

    monkeypatch.setattr(module, "write_atomically", killed)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            embed(data, finished[0], tmp_path / "out")
    embed(data, finished[0], tmp_path / "out")
    assert len(calls) == 6 + 7 + 1  # no shard that was whole is written again
    assert bytes_of(tmp_path / "out") == bytes_of(embedded)


def test_several_processes_take_turns_at_shards(data, finished, embedded, tmp_path, monkeypatch):
    """Process 1 of 2 comes first, then process 0, which finishes the work of both."""
    for name in ("check_same_everywhere", "wait_for_all_processes"):
        monkeypatch.setattr(module, name, lambda *_: None)
    monkeypatch.setattr(module, "process_zero_first", lambda make: make())
    monkeypatch.setattr(module.jax, "process_count", lambda: 2)
    folder, shards = tmp_path / "out", []
    for index in (1, 0):
        monkeypatch.setattr(module.jax, "process_index", lambda index=index: index)
        if index == 1:
            with pytest.raises(FileNotFoundError):  # the manifest is for process 0 to write
                folder.mkdir()
                embed(data, finished[0], folder)
        else:
            embed(data, finished[0], folder)
        shards.append(len(list((folder / "img_emb").iterdir())))
    assert shards == [1, 3]
    assert bytes_of(folder) == bytes_of(embedded)


def test_captions_alone_or_pictures_alone(data, finished, embedded, tmp_path):
    texts = embed(data, finished[0], tmp_path / "texts", images=False)
    assert texts["examples"] == 23 and not (tmp_path / "texts/img_emb").exists()
    images = embed(data.parent, finished[0], tmp_path / "images", shard_size=100)
    assert images["examples"] == 23 and not images["texts"]
    (shard,) = Embeddings(str(tmp_path / "images")).shards
    assert shard.texts is None and shard.metadata["caption"].null_count == 23
    names = [name.rpartition("/")[2] for name in shard.metadata["image_path"].to_pylist()]
    assert names == sorted(names)
    whole = Embeddings(str(embedded)).shards
    expected = dict(
        zip(
            [name for one in whole for name in one.metadata["image_path"].to_pylist()],
            np.concatenate([one.images for one in whole]),
            strict=True,
        )
    )
    for name, row in zip(names, shard.images, strict=True):
        if name in expected:
            np.testing.assert_allclose(row, expected[name], atol=1e-3)
    metadata = pyarrow.parquet.read_table(tmp_path / "texts/metadata/metadata_0000.parquet")
    assert metadata["picture_sum"].null_count == metadata.num_rows


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"input": "{folder}", "texts": True}, "pictures without captions"),
        ({"images": False, "texts": False}, "neither pictures nor captions"),
        ({"input": "{folder}/none.csv"}, "none.csv"),
        ({"batch_size": 3}, "--batch_size was 4 and is 3"),
    ],
)
def test_what_is_wrong_is_said(data, finished, embedded, tmp_path, wanted, message):
    wanted = {"input": str(data)} | wanted
    wanted["input"] = wanted["input"].replace("{folder}", str(data.parent))
    output = embedded if "batch_size" in wanted else tmp_path / "out"
    before = bytes_of(embedded)
    with pytest.raises(UserError, match=message):
        embed_data(Wanted(**SHARDS | wanted), finished[0], output)
    assert bytes_of(embedded) == before


def run(arguments):
    command.run(main, define_flags, doc="", arguments=arguments)


def test_single_pictures_and_sentences_are_printed(data, finished, embedded, capfd):
    shard = Embeddings(str(embedded)).shards[0]
    line = shard.metadata.to_pylist()[0]
    picture = data.parent / line["image_path"]
    flags = [f"--checkpoint={finished[0]}", f"--image={picture}", f"--text={line['caption']}"]
    assert status_of(run, flags) == 0
    image, text = map(json.loads, capfd.readouterr().out.splitlines())
    assert (image["image"], text["text"]) == (picture.name, line["caption"])
    np.testing.assert_allclose(image["embedding"], shard.images[0], atol=1e-3)
    np.testing.assert_allclose(text["embedding"], shard.texts[0], atol=1e-3)
    assert status_of(run, [f"--checkpoint={finished[0]}"]) == 1
    assert "--data is missing" in capfd.readouterr().err


def test_a_collection_is_opened_with_the_model_and_the_data_that_made_it(
    data, embedded, tmp_path, caplog
):
    collection = open_collection(embedded)
    row = collection.find(collection.of_text("a red square"), 1).texts[0].row
    assert collection.caption(row) == "a red square"
    assert collection.thumbnail(row)[:3] == b"\xff\xd8\xff"
    shutil.copytree(embedded, tmp_path / "moved")
    manifest = tmp_path / "moved/embeddings.json"
    about = json.loads(manifest.read_text())

    def opened(**changes):
        manifest.write_text(json.dumps(about | changes))
        return open_collection(tmp_path / "moved")

    bare = opened(data=str(tmp_path / "none.csv"), checkpoint=str(tmp_path / "none"))
    assert bare.encoders is bare.source is None and bare.size == 21
    assert "--checkpoint" in caplog.text and "--data" in caplog.text
    with pytest.raises(UserError, match="its weights are others"):
        opened(weights_sum="0")
    opened(data=str(tmp_path / "none.csv"))
    assert open_collection(tmp_path / "moved", data=str(data)).thumbnail(row) is not None


def test_an_export_is_opened_as_the_model_that_made_them(finished, embedded, tmp_path):
    shutil.copytree(embedded, tmp_path / "embedded")
    export = tmp_path / "export"
    export_checkpoint(finished[0], export_format="open_clip", output=export)
    manifest = tmp_path / "embedded/embeddings.json"
    about = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(about | {"checkpoint": str(export)}))
    assert about["step"] is not None  # which an export tells of itself, but nobody chooses there
    assert open_collection(tmp_path / "embedded").encoders is not None


@pytest.mark.slow
def test_two_processes_write_what_one_writes(data, finished, tmp_path, environment):
    flags = [f"--checkpoint={finished[0]}", f"--data={data}", "--batch_size=4", "--shard_size=6"]
    finish(start_process(environment, "embed", *flags, f"--output={tmp_path / 'one'}"))
    flags += [f"--output={tmp_path / 'two'}", "--distributed", "--num_processes=2"]
    flags += [f"--coordinator_address={free_address()}"]
    processes = [
        start_process(environment, "embed", *flags, f"--process_id={index}") for index in range(2)
    ]
    first, second = map(finish, processes)
    assert "21 examples are embedded" in first and "embedded" not in second
    assert bytes_of(tmp_path / "two") == bytes_of(tmp_path / "one")


@pytest.mark.slow
def test_sigkill_at_any_time_changes_no_byte(data, finished, tmp_path, environment):
    flags = [f"--checkpoint={finished[0]}", f"--data={data}", "--batch_size=1", "--shard_size=2"]

    def start(folder):
        return start_process(environment, "embed", *flags, f"--output={tmp_path / folder}")

    finish(start("whole"))
    for shards in (1, 4, 9):
        process = start("killed")
        folder = tmp_path / "killed/metadata"
        while not folder.exists() or len(list(folder.iterdir())) < shards:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
    finish(start("killed"))
    assert bytes_of(tmp_path / "killed") == bytes_of(tmp_path / "whole")
