"""The sections of a config: one constructor each, and what they refuse before anything slow."""

import dataclasses
import inspect
import json
import subprocess
import sys

import pytest

from configs import cc3m
from cyclip_jax import defaults, evals
from cyclip_jax.data.reading import Reading
from cyclip_jax.data.second_views import SecondViews
from cyclip_jax.data.transform import Transform
from cyclip_jax.errors import UserError
from cyclip_jax.models.presets import resolve_sizes
from cyclip_jax.runtime.sections import constructed
from cyclip_jax.training.objective import Objective
from cyclip_jax.training.settings import SECTIONS, Settings, checked
from cyclip_jax.workdir.config_json import write_config
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
    for part in (Reading(), Transform(), SecondViews()):
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
    "mesh.gradient_dtype=float16": "config.mesh.gradient_dtype 'float16' must be 'float32' or",
    "mesh.gradient_dtype=bfloat16": "config.mesh.gradient_dtype 'bfloat16' is for models that",
    "loss.contrastive=triplet": "unknown config.loss.contrastive 'triplet'",
    "loss.contrastive=sigmoid": "config.loss.contrastive 'sigmoid' learns a bias, and the model",
    "loss.label_smoothing=1": "config.loss.label_smoothing 1.0 must be at least 0 and less than 1",
    "loss.initial_logit_scale=0.5": "config.loss.initial_logit_scale 0.5 must be at least 1",
    "loss.nested_dims=(32,16)": "config.loss.nested_dims (32, 16) must begin with the model's",
    "loss.uniformity_warmup_steps=-1": "config.loss.uniformity_warmup_steps -1 must be at least 0",
    "loss.second_view_warmup_steps=-1": "config.loss.second_view_warmup_steps -1 must be at least",
    "sentences.warmup_steps=-1": "config.sentences.warmup_steps -1 must be at least 0",
    "loss.chunk_size=0": "config.loss.chunk_size 0 must be at least 1",
    "loss.cyclic_warmup_steps=-1": "config.loss.cyclic_warmup_steps -1 must be at least 0",
    "loss.primary_components_weight=1": "config.loss.primary_components_weight is that of a term",
    "loss.primary_components_kept=0": "config.loss.primary_components_kept 0 must be at least 1",
    "init_parts=visual": "config.init_parts says what is taken from config.init_from",
    "init_keep_positions=20": "config.init_keep_positions stretches the positions of config.init_f",
    "optimizer.layer_decay=2": "config.optimizer.layer_decay 2.0 must be greater than 0",
    "optimizer.freeze=visual/(": "config.optimizer.freeze has 'visual/(', which is no regular",
    "optimizer.warmup_steps=-1": "config.optimizer.warmup_steps -1 must be at least 0",
    "keep_best=val/mean_recall": "config.keep_best 'val/mean_recall' is no metric of an evaluation",
    "optimizer.gradient_clip=agcc": "unknown config.optimizer.gradient_clip 'agcc'; choose one of",
    "optimizer.name=sgd": "unknown config.optimizer.name 'sgd'; choose one of adamw, lion",
    "optimizer.muon.beta=1": "config.optimizer.muon.beta 1.0 must be from 0 to below 1",
    "optimizer.zclip.threshold=-1": "config.optimizer.zclip.threshold -1.0 must be above 0",
    "optimizer.schedule=sine": "unknown config.optimizer.schedule 'sine'; choose one of cosine,",
    "optimizer.cooldown_steps=9": "config.optimizer.schedule 'cosine' falls to zero by itself",
    "optimizer.weight_decay_rule=names": "unknown config.optimizer.weight_decay_rule 'names'",
    "data.augmentation=crop": "there is no augmentation 'crop'",
    "data.crop_scale=0.5": "config.data.crop_scale is (0.5,)",
    "data.second_image=crop": "there is no second_image 'crop'; set config.data.second_image to",
    "data.second_image=crops": "config.data.second_image is 'crops', but config.data.augmentation",
    "data.second_caption=another_one": "there is no second_caption 'another_one'",
    "data.second_caption_draws=twice": "there is no second_caption_draws 'twice'",
    "data.tokenizer=words": "unknown tokenizer 'words'",
    "data.source=cvs": "there is no data source 'cvs'",
    "data.source=mixture": "config.data.mixture is empty",
    "data.train=/pairs": "config.data.train is /pairs, whose ending does not tell the format",
    "data.delimiter=--": "config.data.delimiter is '--'",
    "data.templates=('a',)": "the template 'a' in config.data.templates has no {}",
    "evals.val.type=recall": "config.evals.val.type is 'recall'",
}


# Settings of each evaluator that are good, whether or not there are such files.
PROBED = {"train": "train", "test": "test"}
GOOD_EVALUATIONS = {
    "compositional": {"examples": "choices.json"},
    "consistency": PROBED,
    "few_shot": PROBED,
    "gda": PROBED,
    "geometry": {"pairs": "pairs.csv"},
    "binding": {"train": "scenes.json", "test": "more_scenes.json"},
    "labclip": {"train": "pairs.csv", "examples": "choices.json"},
    "linear_probe": PROBED,
    "logistic_probe": PROBED,
    "retrieval": {"pairs": "pairs.csv"},
    "robustness": {"reference": {"folder": "a"}, "shifts": {"v2": {"folder": "b"}}},
    "sts": {"sentences": "pairs.csv"},
    "zeroshot": {"folder": "pictures"},
}
# (evaluator, a bad value, what is said of it); "…" stands for config.evals.x.
BAD_EVALUATIONS = [
    ("compositional", {"layout": "aro"}, "….layout is 'aro'; choose one of 'choice', 'winoground'"),
    ("compositional", {"examples": ""}, "….examples is empty; name a file there"),
    ("compositional", {"category_key": 3}, "….category_key 3 must be a text or None"),
    ("consistency", {"templates": ["a photo"]}, "….templates needs a {} in each template"),
    ("consistency", {"templates": []}, "….templates must be a list of texts"),
    ("consistency", {"superclasses": ""}, "….superclasses is empty; name a file there"),
    (
        "consistency",
        {"pairs": "/pairs"},
        "….pairs is /pairs, whose ending does not tell the format",
    ),
    ("consistency", {"train": ""}, "….train is empty; set it to labelled pictures"),
    ("few_shot", {"shots": []}, "….shots [] must be whole numbers of at least 1"),
    ("few_shot", {"shots": [0, 1]}, "….shots [0, 1] must be whole numbers of at least 1"),
    ("few_shot", {"shots": "4"}, "….shots '4' must be a whole number or a list of whole numbers"),
    ("few_shot", {"seeds": 0}, "….seeds 0 must be at least 1"),
    ("few_shot", {"regularization": -1}, "….regularization -1 must be above 0"),
    ("few_shot", {"max_iterations": 0}, "….max_iterations 0 must be at least 1"),
    ("few_shot", {"normalize": "no"}, "….normalize 'no' must be True or False"),
    ("gda", {"shots": 1}, "….shots 1 must be at least 2: one image has no covariance"),
    ("gda", {"alpha": -1.0}, "….alpha -1.0 must be at least 0"),
    ("gda", {"alpha": "auto"}, "….alpha 'auto' must be a finite number or None"),
    ("gda", {"alpha": float("nan")}, "….alpha nan must be a finite number or None"),
    ("gda", {"validation_share": 0.0}, "….validation_share 0.0 must be between 0 and 1"),
    ("gda", {"templates": "a {}"}, "….templates must be a list of texts"),
    ("binding", {"template": "a {noun}"}, "….template 'a {noun}' needs {attribute} and {noun}"),
    ("binding", {"regularization": 0}, "….regularization 0 must be above 0"),
    ("zeroshot", {"held_out_share": 1.0}, "….held_out_share 1.0 must be from 0 to below 1"),
    ("labclip", {"negatives": "all"}, "unknown ….negatives 'all'"),
    ("labclip", {"negatives": "given"}, "….negatives 'given' and ….negative_caption_key belong"),
    ("labclip", {"epochs": 0}, "….epochs 0 must be at least 1"),
    ("labclip", {"train": "/pairs"}, "….train is /pairs, whose ending does not tell the format"),
    ("geometry", {"pairs": ""}, "….pairs is empty; set it to a CSV"),
    ("geometry", {"reference": "/pairs"}, "….reference is /pairs, whose ending does not tell"),
    ("geometry", {"superclasses": ""}, "….superclasses is empty; name a file there"),
    ("geometry", {"caption_key": ["a", 1]}, "….caption_key ['a', 1] must be a text or a list of"),
    ("linear_probe", {"batch_size": 0}, "….batch_size 0 must be at least 1"),
    ("linear_probe", {"batch_size": "16"}, "….batch_size '16' must be a whole number"),
    ("linear_probe", {"batch_size": 1.5}, "….batch_size 1.5 must be a whole number"),
    ("linear_probe", {"epochs": 0}, "….epochs 0 must be at least 1"),
    ("linear_probe", {"learning_rate": -0.1}, "….learning_rate -0.1 must be at least 0"),
    ("linear_probe", {"weight_decay": -1}, "….weight_decay -1 must be at least 0"),
    ("linear_probe", {"seed": -1}, "….seed -1 must be at least 0"),
    ("linear_probe", {"classes": ""}, "….classes is empty; name a file there"),
    ("linear_probe", {"train": "preset:cifar11"}, "….train: there is no preset 'cifar11'"),
    ("linear_probe", {"train": "preset:imagenet_a"}, "….train: imagenet_a has no training split"),
    ("logistic_probe", {"regularization": 0.0}, "….regularization 0.0 must be above 0"),
    ("logistic_probe", {"validation_share": 1.0}, "….validation_share 1.0 must be between 0 and 1"),
    ("logistic_probe", {"max_iterations": -1}, "….max_iterations -1 must be at least 1"),
    ("retrieval", {"embed_dims": [0]}, "….embed_dims [0] must be whole numbers of at least 1"),
    ("retrieval", {"captions_per_image": 0}, "….captions_per_image 0 must be at least 1"),
    ("retrieval", {"captions_per_image": "5"}, "….captions_per_image '5' must be a whole number"),
    ("retrieval", {"gallery_captions": -1}, "….gallery_captions -1 must be at least 0"),
    ("retrieval", {"images": "/pictures"}, "….images is /pictures, but ….pairs is no .json"),
    ("retrieval", {"source": "cvs"}, "there is no data source 'cvs'"),
    ("retrieval", {"delimiter": "--"}, "config.data.delimiter is '--'"),
    ("retrieval", {"pairs": ""}, "….pairs is empty; set it to a CSV"),
    ("robustness", {"scale": "cubic"}, "….scale is 'cubic'; choose 'logit' or 'linear'"),
    ("robustness", {"shifts": {}}, "….shifts is empty; name zero-shot settings there"),
    ("robustness", {"shifts": "v2"}, "….shifts 'v2' must be settings by name"),
    ("robustness", {"shifts": {"v2": 5}}, "….shifts.v2 5 must be settings by name or None"),
    ("robustness", {"shifts": {"v2": {"folder": "a", "splt": "x"}}}, "….shifts.v2: got an unexp"),
    (
        "robustness",
        {"reference": {"folder": "a", "split": 5}},
        "….reference.split 5 must be a text",
    ),
    ("robustness", {"reference": {"preset": "mnst"}}, "….reference.folder: there is no preset 'mn"),
    ("robustness", {"models": ""}, "….models is empty; name a file there"),
    ("sts", {"sentences": ""}, "….sentences is empty; name a file there"),
    ("sts", {"similarities": ""}, "….similarities is empty; name a file there"),
    ("sts", {"split": "train"}, "….split is 'train'; choose 'test' or 'dev'"),
    ("sts", {"delimiter": "--"}, "….delimiter is '--'; set it to one character, e.g. ',' or '\\t'"),
    ("sts", {"score_key": 3}, "….score_key 3 must be a text"),
    ("sts", {"positive_from": "high"}, "….positive_from 'high' must be a finite number or None"),
    ("zeroshot", {"folder": ""}, "….folder is empty; set it to labelled pictures"),
    ("zeroshot", {"folder": 5}, "….folder 5 must be a text"),
    ("zeroshot", {"preset": "mnst"}, "….folder: there is no preset 'mnst'; choose"),
    (
        "zeroshot",
        {"folder": "/a.csv", "split": "test"},
        "/a.csv is one file and has no split 'test'",
    ),
    ("zeroshot", {"folder": "tfds:a@b", "split": "c"}, "….folder names the split 'b', and `split`"),
    ("zeroshot", {"fodler": "a"}, "…: got an unexpected keyword argument 'fodler'"),
]


def test_every_key_of_every_evaluator_is_checked_by_its_type():
    """And the good settings, which the bad values are put into, are good."""
    assert GOOD_EVALUATIONS.keys() == evals.EVALUATORS.keys()
    for kind, good in GOOD_EVALUATIONS.items():
        constructed = evals.EVALUATORS[kind]("x", **good)
        for field in dataclasses.fields(constructed)[1:]:
            with pytest.raises(UserError, match=rf"^config\.evals\.x\.{field.name}\b.* must be "):
                evals.EVALUATORS[kind]("x", **good | {field.name: object()})


def test_a_whole_number_may_be_written_with_a_point():
    evaluator = evals.EVALUATORS["few_shot"]("x", **PROBED, max_iterations=1e3)
    assert repr(evaluator.max_iterations) == "1000"


def test_an_evaluation_that_is_no_section_is_refused():
    with pytest.raises(UserError, match=r"config\.evals\.x 'zeroshot' must be settings by name"):
        evals.check_settings({"x": "zeroshot"})


def said_without_tensorflow_and_orbax(commands):
    """What ends each command, [door, *flags] of cyclip_jax, which all run in one process."""
    code = (
        "import importlib, json, sys\n"
        "from cyclip_jax.runtime import command\n"
        "said = []\n"
        "for door, *flags in json.loads(sys.argv[1]):\n"
        "    module, sys.argv = importlib.import_module('cyclip_jax.' + door), [door, *flags]\n"
        "    try:\n"
        "        command.run(module.main, module.define_flags, doc='')\n"
        "    except SystemExit as end:\n"
        "        said.append(end.code)\n"
        "print(json.dumps([said, sorted({'tensorflow', 'orbax'} & set(sys.modules))]))\n"
    )
    process = subprocess.run(
        [sys.executable, "-c", code, json.dumps(commands)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    said, imported = json.loads(process.stdout.splitlines()[-1])
    assert imported == []
    assert len(said) == len(commands)
    assert all(sentence.startswith("error: ") and "\n" not in sentence for sentence in said)
    return [sentence.removeprefix("error: ") for sentence in said]


def test_what_the_config_alone_shows_is_said_without_tensorflow_and_orbax(tmp_path):
    run = ["main", "--config=configs/cc3m.py", "--config.data.train=train.csv"]
    commands = [[*run, f"--workdir={tmp_path}/run", f"--config.{override}"] for override in BAD]
    said = said_without_tensorflow_and_orbax(commands)
    for override, found in zip(BAD, said, strict=True):
        assert found.startswith(BAD[override]), override
    assert not (tmp_path / "run").exists() or not list((tmp_path / "run").iterdir())


def test_a_bad_value_of_an_evaluation_is_said_without_tensorflow_and_orbax(tmp_path):
    """By main and by evaluate, before it looks for the checkpoint, also of a run's own config."""
    (tmp_path / "config.py").write_text(
        "from configs import cc3m\n\n\n"
        "def get_config(written):\n"
        "    config = cc3m.get_config()\n"
        "    config.data.train = 'train.csv'\n"
        "    config.evals.x = eval(written, {'nan': float('nan')})\n"
        "    return config\n"
    )
    commands = []
    for kind, bad, _ in BAD_EVALUATIONS:
        config = (
            f"--config={tmp_path}/config.py:{ ({'type': kind} | GOOD_EVALUATIONS[kind] | bad)!r}"
        )
        commands.append(["main", config, f"--workdir={tmp_path}/run"])
        commands.append(["evaluate", config, f"--checkpoint={tmp_path}/none"])
    config = configured()
    with config.unlocked():
        config.evals.val.type = "recall"
    write_config(config, tmp_path / "trained")
    commands.append(["evaluate", f"--checkpoint={tmp_path}/trained"])
    *said, of_workdir = said_without_tensorflow_and_orbax(commands)
    assert of_workdir.startswith("config.evals.val.type is 'recall'; choose one of")
    for (_, bad, sentence), *found in zip(BAD_EVALUATIONS, said[::2], said[1::2], strict=True):
        for one in found:
            assert one.startswith(sentence.replace("…", "config.evals.x")), bad
    assert not (tmp_path / "run").exists() or not list((tmp_path / "run").iterdir())


def test_a_bad_value_ends_the_command_with_one_line_and_exit_status_one(tmp_path):
    command = [sys.executable, "-m", "cyclip_jax.main", "--config=configs/cc3m.py"]
    process = subprocess.run(
        [*command, "--config.optimizer.warmup_steps=-1", f"--workdir={tmp_path}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    started = f"starting: configs/cc3m.py in {tmp_path}\n"  # said before the settings are read
    assert (process.returncode, process.stdout) == (1, started)
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


@pytest.mark.parametrize(
    "own, sentence",
    [
        ({"keep_best": "mean_recall"}, "'mean_recall' is no metric .* the evaluations are val$"),
        ({"keep_best": "coco/mean_recall"}, "'coco/mean_recall' is no metric of an evaluation"),
        ({"keep_best": "val/mean_recall", "eval_every_steps": 0}, "needs evaluations during the"),
        ({"keep_best": "val/mean_recall"}, None),
        ({"keep_best": None, "eval_every_steps": 0}, None),
    ],
)
def test_a_best_that_is_never_measured_is_refused(own, sentence):
    config = configured(**{"data.validation": "val.csv", "eval_every_steps": 5} | own)
    if sentence is None:
        assert checked(config)
    else:
        with pytest.raises(UserError, match=rf"config\.keep_best .*{sentence}"):
            checked(config)


def test_two_lengths_are_refused():
    with pytest.raises(UserError, match="set exactly one of config"):
        checked(configured(total_steps=20_000))


def test_cyclic_weights_that_never_grow_whole_are_refused():
    own = {"num_epochs": None, "optimizer.warmup_steps": 0, "total_steps": 300}
    sentence = (
        r"config\.loss\.cyclic_warmup_steps 300 must be at least 0 and less than the run's 300"
    )
    with pytest.raises(UserError, match=sentence):
        checked(configured(**own, **{"loss.cyclic_warmup_steps": 300}))
    unknown = {"loss.cyclic_warmup_steps": 300, "optimizer.warmup_steps": 0}
    settings = checked(configured(**unknown))  # of an unknown length
    with pytest.raises(UserError, match=sentence):
        settings.check_length(300)
    settings.check_length(301)


def test_a_cool_down_for_which_a_run_has_no_room_is_refused():
    own = {"num_epochs": None, "total_steps": 300, "optimizer.warmup_steps": 100}
    own |= {"optimizer.schedule": "constant"}
    with pytest.raises(UserError, match=r"config\.optimizer\.cooldown_steps 200 must be less than"):
        checked(configured(**own, **{"optimizer.cooldown_steps": 200}))
    assert checked(configured(**own, **{"optimizer.cooldown_steps": 199}))


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("caption_key", 7, "a text or a list of texts or None"),
        ("caption_weights", "3", "a list of numbers or None"),
        ("crop_scale", (0.5, [1.0]), "a list of numbers"),
        ("crop_scale", 0.5, "a list of numbers"),
        ("delimiter", 3, "a text"),
        ("max_bad_share", "all", "a number"),
        ("max_pixels", None, "a whole number"),
        ("mixture", [], "settings by name"),
        ("shuffle", "no", "True or False"),
        ("image_mean", (0.5, 0.5), "three numbers"),
        ("image_std", (0.5, 0.5, 0.0), "three numbers, all above 0"),
    ],
)
def test_a_value_of_another_type_is_refused(field, value, words):
    section = defaults.get_config().data.to_dict() | {field: value}
    with pytest.raises(UserError) as error:
        constructed(SECTIONS["data"], section, "config.data")
    assert str(error.value) == f"config.data.{field} {value!r} must be {words}"


@pytest.mark.parametrize(
    ("name", "value", "must"),
    [
        ("vision_width", "8", "a whole number of at least 0"),
        (
            "vision_layers",
            (1, 2, "3", 4),
            "a whole number of at least 0, or one for each of four stages",
        ),
        ("text_heads", -1, "a whole number of at least 0"),
        ("text_width", {}, "a whole number of at least 0"),
        ("pool", ["mean"], "a name"),
    ],
)
def test_a_size_of_a_model_is_a_number(name, value, must):
    with pytest.raises(UserError) as error:
        resolve_sizes("ViT-tiny", **{name: value})
    assert str(error.value) == f"config.model.{name} {value!r} must be {must}"
    with pytest.raises(UserError, match=r"unknown config\.model\.name"):
        resolve_sizes(["RN50"])
