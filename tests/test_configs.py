import importlib
import inspect
import itertools
import json
import pathlib
import subprocess
import sys
import tarfile

import ml_collections
import pytest
from flax import nnx
from PIL import Image

from cyclip_jax import defaults, evals
from cyclip_jax.errors import UserError
from cyclip_jax.interop.files import write_safetensors
from cyclip_jax.models import create_model
from cyclip_jax.runtime.config_file import ConfigFileParser
from cyclip_jax.training.objective import configured_objective
from cyclip_jax.training.optimizer import create_optimizer
from cyclip_jax.training.settings import checked
from cyclip_jax.workdir.config_json import check_same_model, read_config, write_config
from tests.interop.models import VIT, drawn_weights

ROOT = pathlib.Path(__file__).parent.parent
NAMES = sorted(
    path.stem for path in (ROOT / "configs").glob("*.py") if path.stem not in ("__init__", "common")
)


def load(name, *arguments):
    return importlib.import_module(f"configs.{name}").get_config(*arguments)


@pytest.fixture
def load_any(pairs_csv, tmp_path):
    """`load`, with data for the experiments that need some."""
    model = tmp_path / "model.safetensors"
    arguments = {"own_data": pairs_csv, "lit": model, "long_clip": model}
    sizes = {"vision_width": 64, "vision_heads": 1, "text_width": 64, "text_heads": 1}
    write_safetensors(model, drawn_weights({**VIT, **sizes, "context_length": 77}))
    return lambda name: load(name, *([str(arguments[name])] if name in arguments else []))


@pytest.mark.parametrize("name", NAMES)
def test_every_config_builds_its_model_optimizer_and_evals(name, load_any):
    config = load_any(name)
    assert isinstance(config, ml_collections.ConfigDict)
    nnx.eval_shape(lambda: create_model(**config.model, rngs=nnx.Rngs(0)))
    length = {"total_steps": config.total_steps or 10**6, "steps_per_epoch": 10**4}
    create_optimizer(**config.optimizer, **length)
    configured_objective(config)
    for settings in config.evals.values():
        inspect.signature(evals.EVALUATORS[settings.type]).bind("x", **_without_type(settings))
    assert (config.total_steps is None) != (config.num_epochs is None)


def _without_type(settings):
    return {key: value for key, value in settings.items() if key != "type"}


@pytest.mark.parametrize("name", NAMES)
def test_every_config_keeps_to_the_fields_of_common(name, load_any):
    def fields(config):
        return {
            (key, *inner)
            for key, value in config.items()
            if key != "evals"
            for inner in (fields(value) if isinstance(value, ml_collections.ConfigDict) else [()])
        }

    config = load_any(name)
    assert fields(config) == fields(defaults.get_config())
    # Fields that are not set can be set on a command line: they know their type.
    assert config.data.get_type("train") is config.data.get_type("vocabulary") is str


def test_every_default_has_a_comment():
    lines = (ROOT / "cyclip_jax" / "defaults.py").read_text().splitlines()
    clear = ("optimizer.beta1", "optimizer.beta2", "optimizer.eps", "settings.pairs")
    for before, line in itertools.pairwise(lines):
        name, _, value = line.strip().partition(" = ")
        is_field = name.startswith(
            ("config.", "model.", "loss.", "optimizer.", "data.", "settings.")
        )
        if is_field and value and "ConfigDict()" not in value and ".evals." not in name:
            assert "#" in line or before.strip().startswith("#") or name in clear, line


def test_cc3m_is_the_published_recipe():
    config = load("cc3m")
    assert config.model.name == "RN50" and config.model.dtype == "float32"
    assert (config.batch_size, config.num_epochs) == (128, 64)
    assert config.loss.inmodal_weight == config.loss.crossmodal_weight == 0.25
    assert config.loss.cyclic_normalization == "reference"
    assert config.loss.detached_gather_devices == 1
    recipe = {
        "name": "adamw",
        "learning_rate": 5e-4,
        "warmup_steps": 10_000,
        "schedule": "cosine",
        "schedule_offset_epochs": 0,
        "beta1": 0.9,
        "beta2": 0.999,
        "eps": 1e-8,
        "first_moment_dtype": "float32",
        "weight_decay": 0.1,
        "weight_decay_rule": "matrices",
        "gradient_clip": "none",
        "gradient_clip_norm": None,
        "freeze": (),
        "layer_decay": 1.0,
        "tower_rates": {"visual": 1.0, "text": 1.0},
    }
    assert config.optimizer.to_dict() == defaults.get_config().optimizer.to_dict() | recipe
    assert (config.data.augmentation, config.data.tokenizer) == ("none", "clip_bpe")


def test_cc3m_clip_differs_in_the_two_weights_alone():
    cyclip, clip = load("cc3m").to_dict(), load("cc3m_clip").to_dict()
    assert clip.pop("loss") == {**cyclip.pop("loss"), "inmodal_weight": 0, "crossmodal_weight": 0}
    assert cyclip == clip


def test_cc3m_reference_differs_from_cc3m_in_the_quirks_alone():
    def fields(config, *path):
        for key, value in config.items():
            if isinstance(value, dict):
                yield from fields(value, *path, key)
            else:
                yield ".".join((*path, key)), value

    right, reference = (dict(fields(load(name).to_dict())) for name in ("cc3m", "cc3m_reference"))
    differing = {
        name: value
        for name, value in reference.items()
        if name not in right or right[name] != value
    }
    columns = {
        f"evals.coco.{name}": right[f"data.{name}"]
        for name in ("source", "image_key", "caption_key", "delimiter")
    }
    assert right.keys() < reference.keys()
    assert differing == columns | {
        "optimizer.schedule_offset_epochs": 1,
        "optimizer.weight_decay_rule": "official_names",
        "loss.detached_gather_devices": 4,
        "model.batch_norm_group_size": 32,
        "model.initial_weights_dtype": "float16",
        "data.keep_end_of_text": False,
        "evals.coco.type": "retrieval",
        "evals.coco.pairs": None,
        "evals.coco.images": None,
        "evals.coco.split": "test",
        "evals.coco.captions_per_image": 1,
        "evals.coco.published_recall": True,
        "evals.linear_probe.type": "linear_probe",
        "evals.linear_probe.train": None,
        "evals.linear_probe.test": None,
        "evals.linear_probe.batch_size": 128,
    }


def own_data(argument):
    return ConfigFileParser().parse(f"{ROOT / 'configs' / 'own_data.py'}:{argument}")


def write_captions(path, captions, column="caption"):
    lines = [f"image,{column}", *(f"{number}.png,{text}" for number, text in enumerate(captions))]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_own_data_fits_length_batch_and_vocabulary_to_the_data(tmp_path):
    def sizes(pairs, words):
        captions = [f"word{number % words} and more" for number in range(pairs)]
        config = own_data(write_captions(tmp_path / "train.csv", captions))
        checked(config)
        return config.batch_size, config.total_steps, config.model.vocab_size

    assert sizes(24, 5) == (8, 600, 256)
    assert sizes(1000, 900) == (32, 937, 900 + 2 + 19)
    assert sizes(9000, 9000) == (128, 2109, 8000 + 19)
    config = own_data(tmp_path / "train.csv")
    assert config.optimizer.warmup_steps == 210 and config.loss.cyclic_warmup_steps == 1054
    assert config.data.validation is None and config.evals.val.pairs is None
    longer = own_data(write_captions(tmp_path / "long.csv", ["a " * 40, "b"] * 9))
    assert (config.model.context_length, longer.model.context_length) == (16, 42)


def test_own_data_takes_what_data_train_takes(tmp_path):
    train = write_captions(tmp_path / "train.csv", ["a", "b"])
    config = own_data(f"{train},val.csv")
    assert (config.data.train, config.data.validation) == (str(train), "val.csv")
    assert config.evals.val.pairs == "val.csv" and config.evals.val.gallery_captions == 8
    config = own_data(write_captions(tmp_path / "a, b.csv", ["a", "b"]))
    assert config.data.train.endswith("a, b.csv") and config.data.validation is None
    other = write_captions(tmp_path / "other.csv", ["a", "b"], column="text")
    config = own_data(f"{other},caption_key=text,val.csv")
    assert (config.data.caption_key, config.data.validation) == ("text", "val.csv")
    for name in ("a", "b"):
        with tarfile.open(tmp_path / f"{name}.tar", "w") as tar:
            for path in ("other.csv", "train.csv"):
                member = f"{name}.{'txt' if path == 'other.csv' else 'png'}"
                tar.add(tmp_path / path, member)
    config = own_data(f"{tmp_path}/{{a,b}}.tar,{tmp_path}/b.tar")
    assert config.data.train.endswith("{a,b}.tar") and config.data.validation.endswith("/b.tar")


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        ("", "name the pairs to train on, .*own_data.py:train.csv,val.csv"),
        (",val.csv", "name the pairs to train on"),
        ("a.csv,b.csv,c.csv", "name the pairs to train on"),
        ("/no/train.csv", "own_data.py:train.csv,val.csv,.*: /no/train.csv is not a file"),
        ("/no/train", "/no/train, whose ending does not tell the format"),
        ("{other},{other}", r"caption_key=text is how .* has no column 'caption' \(columns: image"),
    ],
)
def test_own_data_says_what_is_missing(tmp_path, argument, sentence):
    other = write_captions(tmp_path / "other.csv", ["a", "b"], column="text")
    with pytest.raises(UserError, match=sentence):
        own_data(argument.format(other=other))


def test_own_data_without_an_argument_says_what_is_missing():
    with pytest.raises(UserError, match="name the pairs to train on"):
        ConfigFileParser().parse(str(ROOT / "configs" / "own_data.py"))


def test_a_run_from_before_a_field_has_its_default(tmp_path):
    config = load("quickstart")
    write_config(config, tmp_path)
    path = tmp_path / "config.json"
    written = json.loads(path.read_text())
    for section, name in (("model", "initial_weights_dtype"), ("loss", "detached_gather_devices")):
        del written["config"][section][name]
    del written["config"]["max_skipped_in_a_row"]
    for settings in written["config"]["evals"].values():
        if settings["type"] == "retrieval":
            del settings["captions_per_image"], settings["published_recall"]
    path.write_text(json.dumps(written))
    read = read_config(tmp_path)
    assert read.model.initial_weights_dtype == "float32"
    assert read.loss.detached_gather_devices == 1
    assert read.max_skipped_in_a_row == 10
    assert read.total_steps == config.total_steps and read.model.vocab_size == 1024
    # An evaluation's own defaults are those of its evaluator, and none is added.
    assert read.evals.keys() == config.evals.keys()
    assert "published_recall" not in read.evals.new_drawings
    check_same_model(config, tmp_path)


def test_a_misspelt_key_names_the_right_one(tmp_path):
    command = [sys.executable, "-m", "cyclip_jax.main", "--config=configs/cc3m.py"]
    process = subprocess.run(
        [*command, "--config.optimizer.learning_rat=1e-3", f"--workdir={tmp_path}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert process.returncode != 0
    assert "learning_rat" in process.stderr and 'Did you mean "learning_rate"' in process.stderr


def test_the_papers_evaluations_are_of_its_fourteen_data_sets():
    evaluations = importlib.import_module("configs.evals.paper").get_config().evals
    kinds = [settings.type for settings in evaluations.values()]
    assert {kind: kinds.count(kind) for kind in kinds} == {
        "zeroshot": 14,
        "linear_probe": 14,
        "consistency": 3,
        "robustness": 1,
    }
    for settings in evaluations.values():
        inspect.signature(evals.EVALUATORS[settings.type]).bind("x", **_without_type(settings))


def test_the_papers_evaluations_run_on_a_folder(tmp_path):
    for split in ("train", "test"):
        for name in [
            "airplane",
            "automobile",
            "bird",
            "cat",
            "deer",
            "dog",
            "frog",
            "horse",
            "ship",
            "truck",
        ]:
            (tmp_path / split / name).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(tmp_path / split / name / "a.png")
    config = importlib.import_module("configs.evals.paper").get_config(f"cifar10={tmp_path}")
    opened = evals.create_evaluators(config.evals)
    assert opened.keys() == {"zeroshot_cifar10", "probe_cifar10", "consistency_cifar10"}


def test_the_tasks_of_sentences_are_read_from_the_folder_that_the_argument_names():
    config = importlib.import_module("configs.evals.sts").get_config("/data/senteval")
    (settings,) = config.evals.values()
    assert settings.to_dict() == {"type": "sts", "sentences": "/data/senteval"}
    with pytest.raises(UserError, match=r"name SentEval's folder, as in --config=.*sts.py:/data/"):
        importlib.import_module("configs.evals.sts").get_config()
