"""Presets against TensorFlow Datasets' own builders, which run here without their downloads."""

import collections
import json
import pathlib
import subprocess
import sys
from unittest import mock

import numpy as np
import pytest
import tensorflow_datasets as tfds
from etils import epath
from tensorflow_datasets.core.utils import file_utils

from cyclip_jax.data.images import decode
from cyclip_jax.errors import UserError
from cyclip_jax.evals import presets
from cyclip_jax.evals.data import known
from cyclip_jax.evals.data.known import PRESETS
from cyclip_jax.evals.data.labelled import open_labelled

CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
STL10 = ["airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"]
EMPTY_TAR = "\0" * 10240
# What the archives hold that class names are read from.
ARCHIVES = {
    "cifar-10-batches-bin/batches.meta.txt": "\n".join(CIFAR10),
    "cifar-100-binary/coarse_label_names.txt": "\n".join(f"group_{n}" for n in range(20)),
    "cifar-100-binary/fine_label_names.txt": "\n".join(f"fine_name_{n}" for n in range(100)),
    "stl10_binary/class_names.txt": "\n".join(STL10),
    "ILSVRC2012_img_train.tar": EMPTY_TAR,
    "ILSVRC2012_img_val.tar": EMPTY_TAR,
    "ILSVRC2012_img_test.tar": EMPTY_TAR,
}
CLASS_IDS = [f"n{number:08d}" for number in range(1000)]  # as many as ImageNet has
ROOT = pathlib.Path(__file__).parents[2]
IN_TFDS = [name for name, preset in PRESETS.items() if preset.tfds]


class Unpacked:
    """A download manager whose archives are all one folder."""

    downloaded_size = 0

    def __init__(self, folder):
        self.manual_dir = self._folder = epath.Path(folder)

    def download_and_extract(self, what):
        if isinstance(what, dict):
            return dict.fromkeys(what, self._folder)
        return [self._folder] * len(what) if isinstance(what, list | tuple) else self._folder

    download = extract = download_and_extract

    def iter_archive(self, _):
        return iter(())


def value_of(feature, number):
    """Something that a feature can hold; of a picture, one that tells the number."""
    if isinstance(feature, tfds.features.Image):
        shape = [side or 8 for side in feature.shape]
        return np.full(shape, number % 200 + 20, np.uint8)
    if isinstance(feature, tfds.features.BBoxFeature):
        return tfds.features.BBox(0.0, 0.0, 1.0, 1.0)
    if isinstance(feature, tfds.features.Text):
        return f"{number}"
    return 0


def labels_of(preset):
    """Labels of the examples: first and last, or every fifth where 200 of 1,000 take part."""
    return range(3, 1000, 5) if preset.own_classes else [preset.classes - 1, 0, 2]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A data directory in which TensorFlow Datasets has what the presets name, very small."""
    tfds.disable_progress_bar()
    archives, root = tmp_path_factory.mktemp("archives"), tmp_path_factory.mktemp("tfds")
    for name, content in ARCHIVES.items():
        (archives / name).parent.mkdir(exist_ok=True)
        (archives / name).write_text(content)
    for preset in PRESETS.values():
        if preset.tfds is not None:
            build(tfds.builder(preset.tfds, data_dir=root), preset, archives)
    file_utils.add_data_dir(root)
    yield root
    file_utils.clear_registered_data_dirs()


def build(builder, preset, archives):
    """Runs the builder's own code, but for what reads the examples."""

    def examples(self, *_, **__):
        features = self.info.features
        for number, label in enumerate(labels_of(preset)):
            example = {key: value_of(feature, number) for key, feature in features.items()}
            yield number, example | {"label": label}

    with (
        mock.patch.object(type(builder), "_generate_examples", examples),
        mock.patch.object(
            type(builder), "_make_download_manager", lambda *_, **__: Unpacked(archives)
        ),
    ):
        builder.download_and_prepare()


@pytest.mark.parametrize("name", IN_TFDS)
def test_a_preset_opens_what_tensorflow_datasets_has(built, name):
    preset = PRESETS[name]
    dataset = open_labelled(f"preset:{name}", config_key="config.evals.x.folder")
    assert len(dataset.classes) == preset.classes
    theirs = tfds.builder(preset.tfds).info.features["label"].names
    labels = list(labels_of(preset))
    # The picture's label, by the data set's own number, is the class of that number.
    expected = [theirs[label] for label in labels]
    read = {decode(dataset.source.read(i).image).numpy().flat[0]: i for i in range(len(labels))}
    for number, key in enumerate(expected):
        index = read[number % 200 + 20]
        assert dataset.keys[dataset.labels[index]] == key
    assert all("{}" in template for template in dataset.templates)
    assert not any("_" in name for name in dataset.classes)


@pytest.mark.parametrize("name", IN_TFDS)
def test_a_preset_knows_what_probes_are_trained_on(built, name):
    key = "config.evals.x.train"
    if PRESETS[name].train is None:
        with pytest.raises(UserError, match="no training split"):
            open_labelled(f"preset:{name}", config_key=key)
        return
    parts = PRESETS[name].train.count("+") + 1
    train = open_labelled(f"preset:{name}@train", config_key=key)
    assert len(train.labels) == parts * len(list(labels_of(PRESETS[name])))
    assert train.identity == open_labelled(f"preset:{name}", config_key=key).identity


def test_names_stand_at_the_number_that_the_data_set_gives_them(built):
    def names(preset):
        return open_labelled(f"preset:{preset}", config_key="config.evals.x.folder").classes

    assert names("cifar10") == CIFAR10
    assert names("cifar100")[7] == "fine name 7"
    assert names("svhn")[3] == "three"
    caltech = dict(
        zip(
            tfds.builder("caltech101").info.features["label"].names,
            names("caltech101"),
            strict=True,
        )
    )
    assert caltech["faces_easy"] == "centered face" and caltech["crocodile"] == "crocodile"
    imagenet = dict(zip(known.imagenet_ids(), names("imagenet"), strict=True))
    assert imagenet["n01440764"] == "tench" and imagenet["n04507155"] == "umbrella"
    # Their own classes alone: labels 3, 8, 13, … of the thousand.
    assert names("imagenet_r") == names("imagenet")[3::5]


@pytest.mark.parametrize("name", ["flowers102", "caltech101", "oxford_pets"])
def test_names_that_a_package_has_in_their_order_are_matched_by_their_words(name):
    """The package's list is in the order of TensorFlow Datasets', and is found without that."""
    listed = json.loads(
        known.installed_path("clip_benchmark", "datasets/en_classnames.json").read_text()
    )[PRESETS[name].names]
    keys = tfds.builder(PRESETS[name].tfds).info.features["label"].names
    assert known.class_names(name, keys, "data") == listed
    order = np.random.default_rng(0).permutation(len(keys))
    shuffled = [keys[number].upper().replace("_", " ") for number in order]
    assert known.class_names(name, shuffled, "data") == [listed[number] for number in order]


@pytest.mark.parametrize("first, width", [(0, 5), (1, 1)])
def test_classes_that_are_numbers_are_counted_from_0_or_from_1(first, width):
    keys = [f"{number + first:0{width}d}" for number in range(43)]
    assert known.class_names("gtsrb", keys, "data")[14] == "stop"


def test_svhns_own_labels_have_10_for_the_digit_0():
    names = known.class_names("svhn", [str(number) for number in range(1, 11)], "data")
    assert names[:3] == ["one", "two", "three"] and names[9] == "zero"
    by_digit = known.class_names("svhn", [str(number) for number in range(10)], "data")
    assert by_digit[0] == "zero" and by_digit[9] == "nine"


@pytest.mark.parametrize(
    "name, keys, message",
    [
        ("gtsrb", [str(n) for n in range(42)], "data has 42 classes and gtsrb has 43"),
        ("gtsrb", [str(n + 2) for n in range(43)], "no numbers from 0 or 1 on"),
        ("oxford_pets", [f"cat {n}" for n in range(37)], "no classes of the preset: cat 0"),
        ("oxford_pets", ["pug"] * 18 + ["Pug"] * 19, "two classes of one name"),
        ("imagenet_r", [str(n) for n in range(200)], "do not tell what part of ImageNet's"),
        ("gtsrb", ["0", "0", *map(str, range(2, 43))], "no numbers from 0 or 1 on"),
        ("imagenet_r", ["n00000000"] * 200, "no WordNet ids of ImageNet's classes"),
        ("cifar10", [str(n) for n in range(10)], "has numbers for classes"),
    ],
)
def test_classes_that_cannot_be_matched_are_refused(name, keys, message):
    with pytest.raises(UserError, match=message):
        known.class_names(name, keys, "data")


def only(package):
    """As if no other package were installed."""
    find = known.installed_path
    return mock.patch.object(
        known, "installed_path", lambda other, path: find(other, path) if other == package else None
    )


def test_both_packages_call_imagenets_classes_the_same():
    listed = []
    for package in ("clip_benchmark", "open_clip"):
        with only(package):
            names = known.class_names("imagenet", CLASS_IDS, "")
            listed.append((names, known.class_templates("imagenet")))
    assert listed[0] == listed[1]
    # Two pairs of classes have one name; see zeroshot.ranks_of_label.
    counts = collections.Counter(listed[0][0])
    assert [name for name, count in counts.items() if count > 1] == ["missile", "sunglasses"]


def test_both_packages_have_the_same_wordnet_ids():
    ids = known.imagenet_ids()
    with only("clip_benchmark"):
        assert known.imagenet_ids() == ids == sorted(ids)


def test_without_a_package_words_are_names_and_numbers_are_refused():
    with mock.patch.object(known, "installed_path", lambda *_: None):
        assert known.class_names("oxford_pets", [f"a_{n}" for n in range(37)], "")[5] == "a 5"
        assert known.class_templates("oxford_pets") is None
        with pytest.raises(UserError, match="pip install clip_benchmark"):
            known.class_names("gtsrb", [str(n) for n in range(43)], "")
        with pytest.raises(UserError, match="pip install clip_benchmark"):
            known.class_names("imagenet", CLASS_IDS, "")


@pytest.mark.parametrize("name", ["imagenet_a", "caltech101", "gtsrb", "cifar10"])
def test_the_command_writes_what_classes_reads(built, tmp_path, name, capsys):
    output = tmp_path / "names.json"
    presets.main([f"--preset={name}", f"--output={output}"])
    assert str(output) in capsys.readouterr().out
    content = json.loads(output.read_text())
    assert content["templates"] == known.class_templates(name)
    if PRESETS[name].tfds is None:
        assert content["classes"][14] == "stop"
        return
    key = "config.evals.x.folder"
    by_preset = open_labelled(f"preset:{name}", config_key=key)
    with mock.patch.object(known, "class_names"):  # not asked
        by_file = open_labelled(f"preset:{name}", config_key=key, classes=output)
    if "classes" in content:
        assert by_file.classes == by_preset.classes
    assert by_file.templates == by_preset.templates


def test_the_command_imports_neither_pytorch_nor_tensorflow_datasets():
    """Nor do the evaluators, which are in the same package."""
    code = (
        "import runpy, sys\n"
        "sys.argv[1:] = ['--help']\n"
        "try:\n"
        "    runpy.run_module('cyclip_jax.evals.presets', run_name='__main__', alter_sys=True)\n"
        "finally:\n"
        "    assert 'cyclip_jax.evals.data.known' in sys.modules\n"
        "    assert not {'torch', 'tensorflow_datasets'} & sys.modules.keys()"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert shown.returncode == 0, shown.stderr
    assert "--preset" in shown.stdout and "RuntimeWarning" not in shown.stderr
