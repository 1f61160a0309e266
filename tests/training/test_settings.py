"""The sections of a config: one constructor each, and what they refuse before anything slow."""

import dataclasses
import inspect
import json
import subprocess
import sys

import pytest

from configs import cc3m
from cyclip_jax import defaults
from cyclip_jax.data.reading import Reading
from cyclip_jax.data.transform import Transform
from cyclip_jax.errors import UserError
from cyclip_jax.training.objective import Objective
from cyclip_jax.training.settings import SECTIONS, Settings, checked
from tests.runs import ROOT


def arguments_of(constructor):
    """The names of its keyword arguments; none may take what it does not name."""
    parameters = inspect.signature(constructor).parameters.values()
    assert all(parameter.kind is parameter.KEYWORD_ONLY for parameter in parameters)
    return {parameter.name for parameter in parameters}


@pytest.mark.parametrize("section", sorted(SECTIONS.keys() - {"loss"}))
def test_a_constructors_arguments_are_the_keys_of_its_section_and_none_has_a_default(section):
    assert arguments_of(SECTIONS[section]) == set(defaults.get_config()[section])
    parameters = inspect.signature(SECTIONS[section]).parameters.values()
    assert all(parameter.default is parameter.empty for parameter in parameters)


def test_what_an_objective_does_by_itself_is_what_the_defaults_say():
    """It may be given the sections of terms, too, and refuses what is no term's."""
    *keys, sections = inspect.signature(Objective).parameters.values()
    assert {key.name: key.default for key in keys} == defaults.get_config().loss.to_dict()
    assert sections.kind is sections.VAR_KEYWORD
    with pytest.raises(UserError, match=r"config\.loss\.chunk_sise is not a setting of the loss"):
        Objective(chunk_sise={})


def test_the_top_level_has_a_constructor_too():
    assert arguments_of(Settings) == set(defaults.get_config())


def test_what_a_source_and_a_transform_do_by_themselves_is_what_the_defaults_say():
    data = defaults.get_config().data
    for part in (Reading(), Transform()):
        for field in dataclasses.fields(part):
            if field.name != "kept_examples":  # which follows from data.shuffle_window
                assert getattr(part, field.name) == data[field.name], field.name


def configured(**overrides):
    config = cc3m.get_config()
    config.data.train = "train.csv"
    config.update_from_flattened_dict(overrides)
    return config


def test_the_sections_of_a_good_config_are_made():
    settings = checked(configured(**{"data.shuffle_window": 50, "data.decoder": "fast"}))
    assert settings.data.transform == Transform(decoder="fast")
    assert settings.data.reading == Reading(kept_examples=100)
    assert settings.run_length(1000) == 64 * 7


@pytest.mark.parametrize(
    ("section", "sentence"),
    [
        ("", r"config has no field 'learning_rat'; it has seed, batch_size, "),
        (
            "optimizer",
            r"config\.optimizer has no field 'learning_rat'; did you mean learning_rate\?",
        ),
        ("data", r"config\.data has no field 'learning_rat'; "),
    ],
)
def test_a_field_that_a_file_adds_is_refused_with_the_nearest(section, sentence):
    config = configured()
    (config[section] if section else config).learning_rat = 1.0
    with pytest.raises(UserError, match=sentence):
        checked(config)


def test_a_section_that_lacks_a_field_says_where_to_begin():
    config = configured()
    del config.optimizer.eps
    with pytest.raises(UserError, match=r"config\.optimizer lacks the field 'eps'; let the config"):
        checked(config)


BAD = {
    "total_steps=5": "config.optimizer.warmup_steps 10000 must be at least 0 and less than",
    "profile_steps=(3,1)": "config.profile_steps (3, 1) is not (first, last)",
    "matmul_precision=half": "config.matmul_precision 'half' is unknown to JAX",
    "micro_batches=0": "config.micro_batches 0 must be at least 1",
    "batch_size=0": "config.batch_size 0 does not split evenly",
    "wandb.entity=me": "config.wandb.entity is set, but not config.wandb.project",
    "model.name=RN5": "unknown config.model.name 'RN5'",
    "model.dtype=int8": "unknown config.model.dtype 'int8'",
    "tokens.full_steps=-1": "config.tokens.full_steps -1 must be at least 0",
    "tokens.text_length=1": "config.tokens.text_length 1 must be from 2",
    "mesh.fsdp=0": "config.mesh.fsdp 0 must be at least 1",
    "loss.chunk_size=0": "config.loss.chunk_size 0 must be at least 1",
    "optimizer.warmup_steps=-1": "config.optimizer.warmup_steps -1 must be at least 0",
    "optimizer.weight_decay_rule=names": "unknown weight_decay_rule 'names'",
    "data.augmentation=crop": "there is no augmentation 'crop'",
    "data.crop_scale=0.5": "config.data.crop_scale is (0.5,)",
    "data.tokenizer=words": "unknown tokenizer 'words'",
    "data.source=cvs": "there is no data source 'cvs'",
    "data.source=mixture": "config.data.mixture is empty",
    "data.train=pairs": "config.data.train is pairs, whose ending does not tell the format",
    "data.delimiter=--": "config.data.delimiter is '--'",
    "data.templates=('a',)": "the template 'a' in config.data.templates has no {}",
    "evals.val.type=recall": "config.evals.val.type is 'recall'",
}


def test_what_the_config_alone_shows_is_said_without_tensorflow_and_orbax(tmp_path):
    code = (
        "import json, sys\n"
        "from cyclip_jax import main\n"
        "from cyclip_jax.runtime import command\n"
        "workdir, *overrides = sys.argv[1:]\n"
        "said = {}\n"
        "for override in overrides:\n"
        "    sys.argv = ['main', '--config=configs/cc3m.py', '--config.data.train=train.csv']\n"
        "    sys.argv += [f'--workdir={workdir}', f'--config.{override}']\n"
        "    try:\n"
        "        command.run(main.main, main.define_flags, doc='')\n"
        "    except SystemExit as end:\n"
        "        said[override] = end.code\n"
        "print(json.dumps([said, sorted({'tensorflow', 'orbax'} & set(sys.modules))]))\n"
    )
    process = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "run", *BAD],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    said, imported = json.loads(process.stdout.splitlines()[-1])
    assert imported == []
    assert said.keys() == BAD.keys()
    for override, sentence in BAD.items():
        assert said[override].startswith(f"error: {sentence}"), override
        assert "\n" not in said[override]
    assert not (tmp_path / "run").exists() or not list((tmp_path / "run").iterdir())


def test_a_bad_value_ends_the_command_with_one_line_and_exit_status_one(tmp_path):
    command = [sys.executable, "-m", "cyclip_jax.main", "--config=configs/cc3m.py"]
    process = subprocess.run(
        [*command, "--config.optimizer.warmup_steps=-1", f"--workdir={tmp_path}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert (process.returncode, process.stdout) == (1, "")
    *_, last = process.stderr.strip().splitlines()
    assert last == "error: config.optimizer.warmup_steps -1 must be at least 0"
    assert "Traceback" not in process.stderr


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("keep_checkpoints", 0, "config.keep_checkpoints is 0; set it to at least 1"),
        ("num_epochs", 0, "config.num_epochs is 0; set it to at least 1"),
        ("total_steps", 0, "config.total_steps is 0; set it to at least 1"),
        (
            "seed",
            2**63,
            f"config.seed is {2**63}, which does not fit into 64 bits; set it below 2**63",
        ),
    ],
)
def test_a_number_that_no_run_can_have_is_refused_by_its_own_name(field, value, sentence):
    own = {"num_epochs": None} if field == "total_steps" else {}
    with pytest.raises(UserError) as error:
        checked(configured(**own, **{field: value}))
    assert str(error.value) == sentence


def test_two_lengths_are_refused():
    with pytest.raises(UserError, match="set exactly one of config"):
        checked(configured(total_steps=20_000))
