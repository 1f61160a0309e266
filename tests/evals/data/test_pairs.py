import csv
import dataclasses
import io
import json
import tarfile
import types

import numpy as np
import pytest
from PIL import Image

from cyclip_jax.data.sources import Unreadable
from cyclip_jax.errors import UserError
from cyclip_jax.evals import Output
from cyclip_jax.evals.data.labelled import open_images
from cyclip_jax.evals.data.pairs import open_pairs
from cyclip_jax.evals.encoders import unit_rows
from cyclip_jax.evals.evaluator import Opened
from cyclip_jax.evals.flat import flat_numbers
from cyclip_jax.evals.progress import rows_to_embed
from cyclip_jax.evals.retrieval import Retrieval
from tests.evals.fakes import fake_encoders
from tests.pictures import COLOURS, SHAPES, write_pairs

NAMES = [f"{colour}_{shape}" for shape in SHAPES for colour in COLOURS]


def captions_of(name):
    """Five captions that the fake text encoder takes for the same."""
    words = name.replace("_", " ")
    return [f"{start} {words}" for start in ("a", "one", "this", "here is a", "the")]


def write_karpathy(folder, **changes):
    """Writes dataset.json for the pictures of write_pairs; returns its path."""
    images = [
        {
            "filename": f"{name}.png",
            "split": "test",
            "sentences": [{"raw": text, "tokens": text.split()} for text in captions_of(name)],
        }
        | changes
        for name in NAMES
    ]
    images.insert(3, images[0] | {"split": "train", "sentences": [{"raw": "a drawing"}]})
    (folder / "dataset.json").write_text(json.dumps({"images": images, "dataset": "x"}))
    return folder / "dataset.json"


def write_tar(path, examples):
    """Writes a shard of examples, {ending: bytes} each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for number, members in enumerate(examples):
            for ending, content in members.items():
                member = tarfile.TarInfo(f"{number:04}.{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def quick(encoders):
    """The same encoders, but they read pictures as they are, without a pipeline."""

    def image_embeds(images):
        embeds = {}
        for index in range(len(images.source)):
            try:
                file = io.BytesIO(images.source.read(index).image)
                embeds[index] = encoders.encode_features(np.asarray(Image.open(file))[None])[0]
            except (Unreadable, OSError):
                continue
        return unit_rows(np.array(list(embeds.values()))), np.array(list(embeds))

    names = ("text_embeds", "loss", "batch_size")
    others = {name: getattr(encoders, name) for name in names}
    return types.SimpleNamespace(image_embeds=image_embeds, **others)


def score(pairs, encoders=None, **settings):
    evaluate = Retrieval("x", pairs=str(pairs), **settings).open()
    return flat_numbers(evaluate(encoders or quick(fake_encoders(8)), Output()))


def counts(results):
    return results["images"], results["captions"], results["pairs"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The 24 pictures, in a folder of their own."""
    path = tmp_path_factory.mktemp("pictures") / "images"
    write_pairs(path)
    return path


def test_karpathys_json_has_the_split_with_all_its_captions_in_file_order(folder, tmp_path):
    path = write_karpathy(tmp_path)
    pairs = open_pairs(path, config_key="x", images=folder)()
    assert pairs.captions[:6] == [*captions_of("red_square"), "a green square"]
    np.testing.assert_array_equal(pairs.image_ids, np.repeat(np.arange(24), 5))
    assert pairs.images.source.keys([0, 23]) == ["red_square.png", "grey_frame.png"]
    train = open_pairs(path, config_key="x", images=folder, split="train")()
    assert train.captions == ["a drawing"]
    assert train.images.identity != pairs.images.identity


def test_karpathys_json_is_scored_from_its_own_folder_or_another(folder, tmp_path):
    elsewhere = write_karpathy(tmp_path)
    results = score(elsewhere, images=folder)
    assert counts(results) == (24, 120, 120)
    assert results["text_to_image_recall@1"] == results["image_to_text_recall@1"] == 1.0
    below = write_karpathy(folder.parent, filepath="images")
    assert score(below) == results


def test_captions_that_are_not_scored_are_not_counted_before(folder, tmp_path):
    def counted(**settings):
        evaluator = Retrieval("x", pairs=str(path), images=str(folder), **settings).open()
        assert isinstance(evaluator, Opened)
        return rows_to_embed([evaluator.needs()])

    path = write_karpathy(tmp_path)
    assert counted() == {"images": 24, "texts": 120}
    assert counted(captions_per_image=2) == {"images": 24, "texts": 48}


@pytest.mark.parametrize(
    "content, settings, message",
    [
        (None, {}, "dataset.json does not exist; set config.evals.x.pairs"),
        ("{", {}, "dataset.json is not laid out as dataset_coco.json"),
        ('{"images": [{"split": "test"}]}', {}, "filename.*; set config.evals.x.pairs"),
        ('{"images": []}', {}, r"no captions in the split 'test' \(splits: none\)"),
        (
            '{"images": [{"filename": "a", "split": "val", "sentences": [{"raw": "b"}]}]}',
            {},
            r"no captions in the split 'test' \(splits: val\); set config.evals.x.split",
        ),
    ],
)
def test_a_wrong_json_is_refused_before_any_picture_is_read(tmp_path, content, settings, message):
    path = tmp_path / "dataset.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=message):
        Retrieval("x", pairs=str(path), **settings).open()


def test_a_json_is_read_as_utf8_whatever_it_starts_with(tmp_path):
    entry = {"filename": "é.png", "split": "test", "sentences": [{"raw": "un café"}]}
    text = json.dumps({"images": [entry]}, ensure_ascii=False)
    (tmp_path / "dataset.json").write_bytes(text.encode("utf-8-sig"))
    pairs = open_pairs(tmp_path / "dataset.json", config_key="x")()
    assert pairs.captions == ["un café"]
    assert pairs.images.source.keys([0]) == ["é.png"]


def test_a_folder_for_pictures_is_refused_beside_anything_but_a_json(pairs_csv):
    with pytest.raises(UserError, match=r"config.evals.x.images is /pictures, but"):
        Retrieval("x", pairs=str(pairs_csv), images="/pictures").open()


def clip_benchmark_folder(folder, target, kind="retrieval\n"):
    """Two shards of 12 pictures, with five captions each, a line each."""
    for shard in range(2):
        write_tar(
            target / "test" / f"{shard}.tar",
            [
                {
                    "txt": "\n".join(captions_of(name)).encode(),
                    "png": (folder / f"{name}.png").read_bytes(),
                }
                for name in NAMES[12 * shard :][:12]
            ],
        )
    (target / "test" / "nshards.txt").write_text("2")
    (target / "dataset_type.txt").write_text(kind)
    return target


def test_a_folder_of_clip_benchmark_has_a_caption_a_line(folder, tmp_path):
    data = clip_benchmark_folder(folder, tmp_path)
    pairs = open_pairs(data, config_key="x")()
    assert pairs.captions == [text for name in NAMES for text in captions_of(name)]
    results = score(data)
    assert counts(results) == (24, 120, 120)
    assert results["mean_recall"] == 1.0


def test_a_folder_of_clip_benchmark_for_another_task_or_without_the_split_is_refused(
    folder, tmp_path
):
    data = clip_benchmark_folder(folder, tmp_path, kind="classification")
    with pytest.raises(UserError, match="holds data for 'classification'"):
        score(data)
    (data / "dataset_type.txt").write_text("retrieval")
    with pytest.raises(UserError, match=r"val/nshards.txt .* set config.evals.x.split"):
        score(data, split="val")
    (data / "test" / "1.tar").unlink()
    message = r"1 of the files that config.evals.x.pairs names are missing: .*1.tar"
    with pytest.raises(UserError, match=message):
        score(data)


def test_lists_of_captions_in_records_are_all_scored(folder, tmp_path):
    examples = [
        {
            "json": json.dumps({"texts": captions_of(name)}).encode(),
            "png": (folder / f"{name}.png").read_bytes(),
        }
        for name in NAMES
    ]
    examples[3]["json"] = b'{"texts": []}'
    write_tar(tmp_path / "0.tar", examples)
    pairs = open_pairs(tmp_path / "0.tar", config_key="x", caption_key="json:texts")()
    assert pairs.captions == [t for name in NAMES if name != NAMES[3] for t in captions_of(name)]
    np.testing.assert_array_equal(pairs.image_ids, np.repeat(np.arange(23), 5))
    assert len(pairs.images.source) == 23
    pictures = [pairs.images.source.read(number).image for number in range(23)]
    assert pictures == [e["png"] for number, e in enumerate(examples) if number != 3]
    # By itself a text of several lines is one caption.
    write_tar(tmp_path / "1.tar", [{"txt": b"a\nb", "png": examples[0]["png"]}])
    assert open_pairs(tmp_path / "1.tar", config_key="x")().captions == ["a\nb"]


def rows_of_csv(path, rows):
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([("image", "caption"), *rows])
    return path


def test_a_picture_in_several_rows_is_embedded_once(folder):
    rows = [(f"{name}.png", captions_of(name)[place]) for place in range(5) for name in NAMES]
    path = rows_of_csv(folder / "five.csv", rows)
    known, embedded = fake_encoders(8), []

    def encode_features(images):
        embedded.append(len(images))
        return known.encode_features(images)

    results = score(path, dataclasses.replace(known, encode_features=encode_features))
    assert counts(results) == (24, 120, 120)
    assert results["mean_recall"] == 1.0
    assert sum(embedded) == 24


def test_a_row_without_caption_costs_its_picture_nothing(folder, caplog):
    rows = [(f"{name}.png", text) for name in NAMES for text in (" ", captions_of(name)[0])]
    path = rows_of_csv(folder / "blank.csv", [*rows, ("nowhere.png", "")])
    results = score(path)
    assert counts(results) == (24, 24, 24)
    assert results["mean_recall"] == 1.0
    assert "left out 25 of" in caplog.text
    with pytest.raises(UserError, match=r"blank.csv has a caption"):
        score(rows_of_csv(folder / "blank.csv", [("red_disc.png", "")]))


def test_pictures_that_all_have_one_row_are_embedded_for_all_evaluations_together(pairs_csv):
    settings = {"image_key": None, "caption_key": None, "delimiter": ","}
    whole = open_images(pairs_csv, config_key="x", **settings)
    assert open_pairs(pairs_csv, config_key="x", **settings)().images.identity == whole.identity


def test_blanks_elsewhere_leave_other_pictures_and_make_another_data_set(tmp_path):
    def images(*captions):
        rows = zip(("a.png", "b.png", "c.png"), captions, strict=True)
        path = rows_of_csv(tmp_path / "blanks.csv", rows)
        return open_pairs(path, config_key="x")().images

    without_b, without_a = images("one", "", "three"), images("", "two", "three")
    assert without_b.source.keys([0, 1]) == ["a.png", "c.png"]
    assert without_a.source.keys([0, 1]) == ["b.png", "c.png"]
    assert without_b.identity != without_a.identity
    assert without_b.identity == images("1", "", "3").identity
