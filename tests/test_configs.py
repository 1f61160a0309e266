import importlib
import inspect
import itertools
import pathlib
import subprocess
import sys

import ml_collections
import pytest
from flax import nnx

from configs import common
from cyclip_jax import evals
from cyclip_jax.models import create_model
from cyclip_jax.optim import create_optimizer

ROOT = pathlib.Path(__file__).parent.parent
NAMES = sorted(
    path.stem for path in (ROOT / "configs").glob("*.py") if path.stem not in ("__init__", "common")
)


def load(name):
    return importlib.import_module(f"configs.{name}").get_config()


@pytest.mark.parametrize("name", NAMES)
def test_every_config_builds_its_model_optimizer_and_evals(name):
    config = load(name)
    assert isinstance(config, ml_collections.ConfigDict)
    nnx.eval_shape(lambda: create_model(**config.model, rngs=nnx.Rngs(0)))
    create_optimizer(**config.optimizer, total_steps=config.total_steps or 10**6)
    for settings in config.evals.values():
        inspect.signature(evals.EVALUATORS[settings.type]).bind("x", **_without_type(settings))
    assert (config.total_steps is None) != (config.num_epochs is None)


def _without_type(settings):
    return {key: value for key, value in settings.items() if key != "type"}


@pytest.mark.parametrize("name", NAMES)
def test_every_config_keeps_to_the_fields_of_common(name):
    def fields(config):
        return {
            (key, *inner)
            for key, value in config.items()
            if key != "evals"
            for inner in (fields(value) if isinstance(value, ml_collections.ConfigDict) else [()])
        }

    assert fields(load(name)) == fields(common.get_config())


def test_every_default_has_a_comment():
    lines = (ROOT / "configs" / "common.py").read_text().splitlines()
    clear = ("optimizer.beta1", "optimizer.beta2", "optimizer.eps")
    for before, line in itertools.pairwise(lines):
        name, _, value = line.strip().partition(" = ")
        is_field = name.startswith(("config.", "model.", "loss.", "optimizer.", "data."))
        if is_field and value and "ConfigDict()" not in value and ".evals." not in name:
            assert "#" in line or before.strip().startswith("#") or name in clear, line


def test_cc3m_is_the_published_recipe():
    config = load("cc3m")
    assert config.model.name == "RN50" and config.model.dtype == "float32"
    assert (config.batch_size, config.num_epochs) == (128, 64)
    assert config.loss.inmodal_weight == config.loss.crossmodal_weight == 0.25
    assert config.loss.cyclic_normalization == "reference"
    assert dict(config.optimizer) == {
        "learning_rate": 5e-4,
        "warmup_steps": 10_000,
        "beta1": 0.9,
        "beta2": 0.999,
        "eps": 1e-8,
        "weight_decay": 0.1,
        "gradient_clip_norm": None,
    }
    assert (config.data.augmentation, config.data.tokenizer) == ("none", "clip_bpe")


def test_cc3m_clip_differs_in_the_two_weights_alone():
    cyclip, clip = load("cc3m").to_dict(), load("cc3m_clip").to_dict()
    assert clip.pop("loss") == {**cyclip.pop("loss"), "inmodal_weight": 0, "crossmodal_weight": 0}
    assert cyclip == clip


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
