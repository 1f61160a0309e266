"""Labelled pictures in every layout: a model that sees everything must be right in each."""

import ast
import csv
import importlib.util
import json
import os
import shutil

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from cyclip_jax import defaults
from cyclip_jax.data.images import decode
from cyclip_jax.errors import UserError
from cyclip_jax.evals import Output, create_evaluators
from cyclip_jax.evals.data.class_names import checked_templates
from cyclip_jax.evals.data.labelled import labels_among, open_images, open_labelled
from cyclip_jax.evals.flat import flat_numbers
from cyclip_jax.evals.zeroshot import Zeroshot
from tests.data.shards import write_tar
from tests.evals.fakes import fake_encoders
from tests.pictures import COLOURS, SHAPES, draw, write_pairs

CLASSES = [f"{colour} {shape}" for shape in SHAPES for colour in COLOURS]
KEY = "config.evals.x.folder"


class Drawings(tfds.core.GeneratorBasedBuilder):
    """The pictures by class, in a data set of two splits."""

    VERSION = tfds.core.Version("1.0.0")
    code_path = None

    def __init__(self, *, pictures, names, **arguments):
        self._pictures, self._names = pictures, names
        super().__init__(**arguments)

    def _info(self):
        labels = tfds.features.ClassLabel(num_classes=len(CLASSES))
        if self._names is not None:
            labels = tfds.features.ClassLabel(names=self._names)
        features = {"image": tfds.features.Image(), "kind": labels, "text": tfds.features.Text()}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, manager):
        return {"train": self._generate_examples(), "test": self._generate_examples()}

    def _generate_examples(self):
        for number, name in enumerate(CLASSES):
            label = number if self._names is None else self._names.index(name.replace(" ", "_"))
            yield name, {"image": str(self._pictures / file_of(name)), "kind": label, "text": name}


def file_of(name):
    return f"{name.replace(' ', '_')}.png"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    write_pairs(folder)
    return folder


@pytest.fixture(scope="module")
def built(tmp_path_factory, pictures):
    """The folder of Drawings as TensorFlow Datasets builds it, {has names: …}."""
    tfds.disable_progress_bar()
    built = {}
    for names in (None, sorted(name.replace(" ", "_") for name in CLASSES)):
        folder = tmp_path_factory.mktemp("tfds")
        builder = Drawings(pictures=pictures, names=names, data_dir=str(folder))
        builder.download_and_prepare()
        built[names is not None] = builder.data_path
    return built


def folders(root, pictures, named=lambda name: name.replace(" ", "_")):
    for name in CLASSES:
        (root / named(name)).mkdir(parents=True)
        shutil.copy(pictures / file_of(name), root / named(name) / "1.png")
    return root


def exported(root, pictures, split="test", shards=3):
    """As CLIP_benchmark's export; the classes' order is not that of the pictures."""
    classes = sorted(CLASSES)
    for shard in range(shards):
        examples = {
            f"s{number:07d}": {
                "png": (pictures / file_of(name)).read_bytes(),
                "cls": str(classes.index(name)).encode(),
            }
            for number, name in list(enumerate(CLASSES))[shard::shards]
        }
        write_tar(root / split / f"{shard}.tar", examples)
    (root / split / "nshards.txt").write_text(f"{shards}\n")
    (root / "classnames.txt").write_text("\n".join(classes) + "\n")
    (root / "zeroshot_classification_templates.txt").write_text("the {c}\na drawing of a {c}\n")
    return root


def names_file(path, classes, templates=("a photo of a {}",)):
    path.write_text(json.dumps({"classes": classes, "templates": templates}))
    return str(path)


def is_right(dataset):
    """Whether each picture shows what its class is called."""
    shown = {draw(s, c).tobytes(): f"{c} {s}" for s in SHAPES for c in COLOURS}
    pixels = [
        decode(tf.constant(dataset.source.read(index).image)).numpy()
        for index in range(len(dataset.labels))
    ]
    assert len(pixels) == len(CLASSES)
    named = [dataset.classes[label] for label in dataset.labels]
    return [shown[picture.tobytes()] for picture in pixels] == named


def opened(data, **settings):
    return open_labelled(data, config_key=KEY, **settings)


def test_a_model_that_sees_everything_is_right_in_each_layout(pictures, built, tmp_path):
    names = names_file(tmp_path / "names.json", {n.replace(" ", "_"): n for n in CLASSES})
    by_layout = {
        "folders": {"folder": folders(tmp_path / "data", pictures), "classes": names},
        "export": {"folder": exported(tmp_path / "export", pictures)},
        "tfds": {"folder": f"tfds:{built[True]}", "label_key": "kind", "classes": names},
    }
    for layout, settings in by_layout.items():
        results = flat_numbers(Zeroshot("x", **settings).open()(fake_encoders(8), Output()))
        assert (results["top1"], results["images"]) == (1, 24), layout


def test_a_csv(pictures, tmp_path):
    with open(pictures / "other.csv", "w", newline="") as file:
        csv.writer(file).writerows([("file", "kind"), *((file_of(name), name) for name in CLASSES)])
    classes = names_file(tmp_path / "names.json", CLASSES)
    folder = pictures / "other.csv"
    dataset = opened(folder, image_key="file", label_key="kind", classes=classes)
    assert is_right(dataset) and dataset.classes == CLASSES
    assert opened(folder, image_key="file", label_key="kind").classes == sorted(CLASSES)


def test_a_folder_for_each_class(pictures, tmp_path):
    root = folders(tmp_path / "data", pictures)
    (root / CLASSES[0].replace(" ", "_") / "readme.txt").write_text("no picture")
    keys = sorted(name.replace(" ", "_") for name in CLASSES)
    assert opened(root).classes == keys
    by_order = names_file(tmp_path / "list.json", [key.replace("_", " ") for key in keys])
    assert is_right(opened(root, classes=by_order))
    by_key = {name.replace(" ", "_").upper(): name for name in reversed(CLASSES)}
    assert is_right(opened(root, classes=names_file(tmp_path / "dict.json", by_key)))
    names_file(root / "classes.json", by_key)
    assert is_right(opened(root))
    assert is_right(opened(tmp_path, split="data"))


def test_folders_that_are_numbers_are_in_the_order_of_their_values(pictures, tmp_path):
    root = folders(tmp_path / "data", pictures, named=lambda name: str(CLASSES.index(name)))
    dataset = opened(root)
    assert dataset.keys == [str(number) for number in range(24)]
    assert is_right(opened(root, classes=names_file(tmp_path / "list.json", CLASSES)))


def test_a_folder_within_a_class_belongs_to_it(pictures, tmp_path):
    root = folders(tmp_path / "data", pictures)
    inner = root / "red_disc" / "inner"
    inner.mkdir()
    shutil.move(root / "red_disc" / "1.png", inner / "2.PNG")
    names = names_file(tmp_path / "names.json", {n.replace(" ", "_"): n for n in CLASSES})
    assert is_right(opened(root, classes=names))


@pytest.mark.parametrize("shards", [1, 3])
def test_an_export_of_clip_benchmark(pictures, tmp_path, shards):
    root = exported(tmp_path, pictures, shards=shards)
    dataset = opened(root)
    assert dataset.templates == ["the {}", "a drawing of a {}"]
    assert dataset.classes == sorted(CLASSES)
    assert is_right(dataset) and is_right(opened(root, split="test"))
    assert is_right(opened(root / "test"))
    wrong = names_file(tmp_path / "wrong.json", CLASSES)
    assert not is_right(opened(root, classes=wrong))


def test_clip_benchmark_reads_the_same_export(pictures, tmp_path):
    """Its own reader gives the pictures the same classes and templates as ours."""
    root = exported(tmp_path, pictures)
    read = clip_benchmark_function("datasets/builder.py", "build_wds_dataset")
    theirs = read("drawings", lambda image: image, data_dir=str(root))
    ours = opened(root)
    assert theirs.classes == ours.classes
    assert [template.format(c="x") for template in theirs.templates] == [
        template.format("x") for template in ours.templates
    ]
    assert [label for _, label in theirs] == ours.labels.tolist()


def clip_benchmark_function(path, name):
    """One function of CLIP_benchmark, without what its module imports."""
    spec = importlib.util.find_spec("clip_benchmark")
    path = f"{spec.submodule_search_locations[0]}/{path}"
    with open(path) as file:
        nodes = ast.parse(file.read()).body
    module = ast.Module([node for node in nodes if getattr(node, "name", "") == name], [])
    namespace = {"os": os}
    exec(compile(module, path, "exec"), namespace)
    return namespace[name]


def test_tensorflow_datasets_by_its_names(built):
    place = f"tfds:{built[True]}"
    dataset = opened(place, label_key="kind")
    assert dataset.classes == sorted(name.replace(" ", "_") for name in CLASSES)
    train = opened(f"{place}@train[:50%]", label_key="kind")
    assert len(train.labels) == 12


def test_tensorflow_datasets_with_the_names_of_a_file(built, tmp_path):
    by_number = names_file(tmp_path / "list.json", CLASSES)
    place = f"tfds:{built[False]}"
    assert is_right(opened(place, label_key="kind", classes=by_number))
    assert is_right(opened(f"{place}@train", label_key="kind", classes=by_number))
    by_key = names_file(tmp_path / "dict.json", {n.replace(" ", "_"): n for n in CLASSES})
    assert is_right(opened(f"tfds:{built[True]}", label_key="kind", classes=by_key))


def test_the_default_split_follows_the_key(pictures, tmp_path):
    root = exported(tmp_path, pictures)
    exported(tmp_path, pictures, split="train", shards=2)
    for key, split in (("config.evals.x.train", "train"), ("config.evals.x.test", "test")):
        assert f"/{split}/" in open_labelled(root, config_key=key).path


def test_the_same_data_under_other_names_is_embedded_once(pictures, tmp_path):
    root = exported(tmp_path, pictures)
    names = names_file(tmp_path / "names.json", CLASSES)
    one, other = (opened(root, classes=file) for file in (None, names))
    assert one.identity == other.identity and one.classes != other.classes


def test_pictures_are_the_same_where_captions_are_read_from_the_same_column(tmp_path):
    """A row without a caption is not read, so that the columns tell which rows there are."""
    path = tmp_path / "pairs.csv"
    path.write_text("image,caption,title\n1.png,a,\n2.png,,b\n")

    def identity(**settings):
        return open_images(path, config_key=KEY, **settings).identity

    assert identity() == identity(image_key="image", caption_key="caption", delimiter=",")
    assert len({identity(), identity(caption_key="title"), identity(image_key="title")}) == 3
    assert hash(identity(caption_key=["caption", "title"])) != hash(identity())
    path.write_text("image,caption,title\n1.png,a,\n2.png,b,b\n")
    assert opened(path, label_key="caption").identity == identity()


def test_tars_have_defaults_of_their_own(pictures, tmp_path):
    """Their captions are `txt` by default, and so not those of a column named `caption`."""
    files = {"png": (pictures / file_of(CLASSES[0])).read_bytes(), "txt": b"a", "caption": b" "}
    write_tar(tmp_path / "0.tar", {"s0": files})
    one, other = (
        open_images(tmp_path / "0.tar", config_key=KEY, caption_key=key)
        for key in (None, "caption")
    )
    assert one.identity != other.identity


@pytest.mark.parametrize("labels", [range(1, 43), [5, 7], range(2, 45)])
def test_numbers_without_0_count_a_presets_classes_from_1_only_if_all_are_there(labels, tmp_path):
    def write(labels):
        rows = "".join(f"{label}.png,{label}\n" for label in labels)
        (tmp_path / "labels.csv").write_text(f"image,label\n{rows}")

    write(labels)
    with pytest.raises(UserError, match="from 0 or from 1 on cannot be told"):
        opened(tmp_path, preset="gtsrb")
    write(range(1, 44))
    dataset = opened(tmp_path, preset="gtsrb")
    assert dataset.classes[dataset.labels[14]] == "stop"  # the label 15


def test_numbers_are_no_names(tmp_path):
    (tmp_path / "labels.csv").write_text("image,label\n1.png,0\n2.png,1\n")
    assert not opened(tmp_path).is_named
    digits = names_file(tmp_path / "digits.json", ["0", "1"])
    assert opened(tmp_path, classes=digits).is_named


@pytest.mark.parametrize(
    "templates, message",
    [
        ("a {}", "must be a list of texts"),
        ((), "must be a list of texts"),
        ([1], "must be a list of texts"),
        (["a {}", "photo"], r"a \{\} in each template, and no other braces: photo"),
        (["{} {}"], "no other braces"),
        (["{x} {}"], "no other braces"),
        (["{{}} a"], "no other braces"),
        (["{0}"], "no other braces"),
    ],
)
def test_templates_are_texts_with_one_place_for_a_name(templates, message):
    assert checked_templates(("a {}.", "{}"), "x") == ["a {}.", "{}"]
    with pytest.raises(UserError, match=message) as raised:
        checked_templates(templates, "config.evals.x.templates")
    assert str(raised.value).startswith("config.evals.x.templates ")


def test_templates_default_to_a_photo_of_a(pictures, tmp_path):
    root = folders(tmp_path, pictures)
    assert opened(root).templates == ["a photo of a {}."]


def test_objectnet_is_its_classes_in_common_with_imagenet(pictures, tmp_path):
    folders(tmp_path / "images", pictures)
    (tmp_path / "mappings").mkdir()
    labels = {name.replace(" ", "_"): name.title() for name in CLASSES}
    shared = {name.title(): "n/a" for name in CLASSES[3:]}
    (tmp_path / "mappings" / "folder_to_objectnet_label.json").write_text(json.dumps(labels))
    (tmp_path / "mappings" / "objectnet_to_imagenet_1k.json").write_text(json.dumps(shared))
    dataset = opened(f"preset:objectnet={tmp_path}")
    assert sorted(dataset.classes) == sorted(CLASSES[3:]) and len(dataset.labels) == 21
    by_setting = opened(tmp_path, preset="objectnet")
    assert (by_setting.classes, by_setting.identity) == (dataset.classes, dataset.identity)


def test_a_preset_may_be_in_a_folder(pictures, tmp_path):
    """With a preset its classes have to be all there."""
    root = folders(tmp_path, pictures)
    with pytest.raises(UserError, match=r"has 24 classes and oxford_pets has 37"):
        opened(root, preset="oxford_pets")
    given = defaults.zeroshot(preset="oxford_pets")
    assert given.folder == "preset:oxford_pets" and given.preset == "oxford_pets"
    assert defaults.zeroshot(str(root), "oxford_pets").folder == str(root)


def test_an_evaluation_without_data_is_left_out():
    assert create_evaluators({"x": defaults.zeroshot()}) == {}


def test_classes_of_one_name_are_not_told_apart_by_it(pictures, tmp_path):
    root = folders(tmp_path / "data", pictures)
    keys = sorted(name.replace(" ", "_") for name in CLASSES)
    twice = names_file(tmp_path / "names.json", ["x", "x", *keys[2:]])
    one, same = (opened(root, classes=twice) for _ in range(2))
    np.testing.assert_array_equal(labels_among(one, same), one.labels)
    with pytest.raises(UserError, match="two classes of one name"):
        labels_among(opened(root), one)


@pytest.mark.parametrize(
    "data, settings, message",
    [
        ("{empty}", {}, r"has neither labels.csv, nor nshards.txt, .*set config\.evals\.x\.folder"),
        ("{missing}", {}, "has neither labels.csv"),
        ("{splits}", {}, r"no classes but splits \(train, val\); set config\.evals\.x\.split"),
        ("{export}", {"split": "val"}, "val has neither"),
        ("{folders}", {"classes": "{short}"}, "short.json names 2 classes, and .* has 24"),
        ("{folders}", {"classes": "{keys}"}, "keys.json has no name for the class 'blue_bar'"),
        ("{export}", {"classes": "{short}"}, "names 2 classes, and .* has 24"),
        ("{bad}", {}, "nshards.txt is 'three', not the number of tars"),
        ("{captions}", {}, "dataset_type.txt says retrieval"),
        ("preset:nothing", {}, r"config\.evals\.x\.folder: there is no preset 'nothing'"),
        ("preset:gtsrb", {}, "TensorFlow Datasets has no gtsrb"),
        ("preset:cifar10@train", {"split": "test"}, "names the split 'train'"),
        ("preset:cifar10", {"preset": "cifar100"}, "is of the preset 'cifar10'"),
        ("tfds:{built}@test", {}, r"has no feature 'label' .*set config\.evals\.x\.label_key"),
        ("tfds:{built}@test", {"label_key": "text"}, "'text' of .* is no ClassLabel"),
        ("tfds:{built}@dev", {"label_key": "kind"}, "has no split 'dev'"),
        ("x.csv", {"split": "test"}, "is one file and has no split"),
        ("", {}, r"config\.evals\.x\.folder is empty"),
    ],
)
def test_what_is_wrong_is_said(pictures, built, tmp_path, data, settings, message):
    places = {name: tmp_path / name for name in ("empty", "missing", "splits", "short", "keys")}
    places |= {name: tmp_path / name for name in ("folders", "export", "bad", "captions")}
    places |= {"built": built[True]}
    for name in ("short", "keys"):
        places[name] = places[name].with_suffix(".json")
    for name in ("empty", "splits/train", "splits/val", "bad", "captions/test"):
        (tmp_path / name).mkdir(parents=True)
    names_file(places["short"], ["a", "b"])
    names_file(places["keys"], {"red_disc": "red disc"})
    folders(places["folders"], pictures)
    exported(places["export"], pictures)
    (places["bad"] / "nshards.txt").write_text("three")
    (places["captions"] / "test" / "nshards.txt").write_text("1")
    (places["captions"] / "dataset_type.txt").write_text("retrieval\n")
    settings = {key: value.format(**places) for key, value in settings.items()}
    with pytest.raises(UserError, match=message):
        opened(data.format(**places), **settings)
