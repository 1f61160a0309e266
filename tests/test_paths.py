"""Every path that a user gives: from another folder, with ~, oddly written, and far away."""

import json
import os

import pytest
import tensorflow as tf
from absl import flags

import cyclip_jax
from cyclip_jax import defaults, evals, evaluate, sweep
from cyclip_jax.data import preprocess, shard_writer, tokenizers
from cyclip_jax.data.prepare import prepare
from cyclip_jax.data.sources import create_source, ranges
from cyclip_jax.errors import UserError
from cyclip_jax.evals import presets
from cyclip_jax.evals.data import choices
from cyclip_jax.export import export_checkpoint
from cyclip_jax.files import absolute
from cyclip_jax.interop import pretrained
from cyclip_jax.interop.checkpoint import Checkpoint
from cyclip_jax.interop.files import read_weights
from cyclip_jax.report.write import write_report
from cyclip_jax.runtime import command, config_file, sections
from cyclip_jax.train import train
from cyclip_jax.training import open_run
from tests import tiny
from tests.evals.everything import every_evaluation
from tests.runs import status_of

HERE = "config.data.train"


def csv(path):
    return create_source("csv", path, config_key=HERE)


def evaluation(**settings):
    return evals.create_evaluators({"x": settings})


def vocabulary(name):
    sizes = {"vocab_size": 64, "context_length": 8}
    return lambda path: tokenizers.create_tokenizer(name, vocabulary=path, **sizes)


def prepared(path, output="out"):
    return prepare(shard_writer.Preparation((path,)), output)


# {what is named: (how the file is called, function that opens it)}; those that open what a user
# names by a flag, or by an argument of a function.
GIVEN = {
    "table": ("a.csv", csv),
    "shard": ("a.tar", lambda path: create_source("webdataset", path, config_key=HERE)),
    "input": ("a.csv", prepared),
    "captions": ("a.csv", tokenizers.read_captions),
    "sentencepiece": ("a.model", vocabulary("sentencepiece")),
    "clip_bpe": ("a.gz", vocabulary("clip_bpe")),
    "picture": ("a.png", preprocess.preprocessor(4, mean=(0, 0, 0), std=(1, 1, 1))),
    "model": ("a.pt", cyclip_jax.load),
    "weights": ("a.pt", read_weights),
    "checkpoint": ("a.pt", lambda path: evaluate.evaluate_checkpoint(path, output="out")),
    "exported": ("a.pt", lambda p: export_checkpoint(p, export_format="cyclip", output="out")),
    "run": ("a", lambda path: write_report([path])),
}
FILES_OF_PYTHON = {
    "config": ("a.py", lambda path: config_file.ConfigFileParser().parse(path)),
    "sweep": ("a.py", sweep.read_runs),
}
LABELLED = {"type": "linear_probe", "test": "/none"}
# The same of what evaluations name.
EVALUATED = {
    "pairs": ("a.csv", lambda path: evaluation(type="retrieval", pairs=path)),
    "karpathy": ("a.json", lambda path: evaluation(type="retrieval", pairs=path)),
    "geometry": ("a.csv", lambda path: evaluation(type="geometry", pairs=path)),
    "sentences": ("a", lambda path: evaluation(type="sts", sentences=path)),
    "examples": ("a.json", lambda path: evaluation(type="compositional", examples=path)),
    "folder": ("a", lambda path: evaluation(type="zeroshot", folder=path)),
    "labels": ("a.csv", lambda path: evaluation(type="zeroshot", folder=path)),
    "classes": ("a.json", lambda p: evaluation(type="zeroshot", folder="/none", classes=p)),
    "probe": ("a.csv", lambda path: evaluation(train=path, **LABELLED)),
    "preset": ("a.csv", lambda p: evaluation(type="zeroshot", folder=f"preset:cifar10={p}")),
    "shift": (
        "a.csv",
        lambda path: evaluation(
            type="robustness", reference={"folder": path}, shifts={"y": {"folder": path}}
        ),
    ),
}


def named(mapping):
    return pytest.mark.parametrize("name, opened", mapping.values(), ids=list(mapping))


def outcome(call, *arguments):
    """The sentence that a call raises, or the type of what it gives."""
    try:
        return type(call(*arguments)).__name__
    except UserError as error:
        return str(error)


@named(GIVEN | FILES_OF_PYTHON)
def test_the_home_folder_is_known_by_its_short_name(tmp_path, monkeypatch, name, opened):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    empty_safetensors = b"\2" + bytes(7) + b"{}"
    (tmp_path / name).write_bytes(empty_safetensors if ".pt" in name else b"image,caption\n")
    assert outcome(opened, f"~/{name}") == outcome(opened, f"{tmp_path}/{name}")


@named(GIVEN | FILES_OF_PYTHON | EVALUATED)
def test_a_missing_path_says_what_is_odd_about_it(tmp_path, monkeypatch, name, opened):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    there = tmp_path / "data" / name
    there.write_bytes(b"")
    said = outcome(opened, f"{tmp_path}/data\\{name}")
    assert f"it has backslashes, and / stands between folders; there is {there}" in said
    said = outcome(opened, f"{there} ")
    assert f"it has blanks around a name; there is {there}" in said
    said = outcome(opened, f"{tmp_path}/gone\\{name}")
    assert "(it has backslashes, and / stands between folders)" in said
    assert "it has" not in outcome(opened, f"{tmp_path}/gone/{name}")


@pytest.mark.parametrize("scheme", ["s3", "https", "hf"])
@named(GIVEN | EVALUATED)
def test_a_scheme_that_nothing_opens_is_said_in_a_sentence(
    tmp_path, monkeypatch, name, opened, scheme
):
    monkeypatch.chdir(tmp_path)
    said = outcome(opened, f"{scheme}://bucket/{name}")
    assert said.endswith(
        f"{scheme}://bucket/{name}, and nothing here opens {scheme}://; give a path of this "
        "machine or of gs://, and download or mount there what lies elsewhere"
    )
    assert not os.listdir(tmp_path)


def test_a_config_in_the_home_folder_is_taken_with_its_overrides(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.py").write_text("from tests.tiny import get_config  # noqa: F401\n")
    values = flags.FlagValues()
    argv = ["main", "--config=~/a.py", "--config.total_steps=7"]
    config_file.define_config(values, "The file.", argv=argv)
    command.parse(values, argv)
    assert values.config.total_steps == 7 and config_file.config_name(values) == "a"


def tiny_with(**overrides):
    config = tiny.get_config()
    config.data.train = "/none/train.csv"
    config.update_from_flattened_dict(overrides)
    return config.lock()


@pytest.mark.parametrize(
    "field",
    ["init_from", "compilation_cache", "data.train", "data.validation", "data.vocabulary"],
)
def test_a_scheme_in_a_config_is_said_before_anything_is_opened(tmp_path, monkeypatch, field):
    monkeypatch.setattr(open_run, "open_source", None)
    with pytest.raises(UserError, match=r"is s3://b/x\.csv, and nothing here opens s3://"):
        train(tiny_with(**{field: "s3://b/x.csv"}), tmp_path)


def test_a_scheme_in_a_mixture_is_said_before_anything_is_opened(tmp_path, monkeypatch):
    monkeypatch.setattr(open_run, "open_source", None)
    config = tiny.get_config()
    config.data.source = "mixture"
    config.data.mixture.far = defaults.part("hf://b/x.csv")
    with pytest.raises(UserError, match=r"^config.data.mixture.far.train is hf://b/x.csv, and"):
        train(config.lock(), tmp_path)


OUTPUTS = {
    "--workdir": lambda path: train(tiny_with(), path),
    "--workdir of a sweep": lambda path: sweep.sweep({"a": tiny_with()}, path),
    "--output of evaluate": lambda path: evaluate.evaluate_checkpoint("/none", output=path),
    "--output of export": lambda p: export_checkpoint("/none", export_format="cyclip", output=p),
    "--output of prepare": lambda path: prepared("/none.csv", path),
    "--output of report": lambda path: write_report(["/none"], output=path),
}


@pytest.mark.parametrize("opened", OUTPUTS.values(), ids=list(OUTPUTS))
def test_an_output_that_nothing_opens_is_said_at_once(opened, request):
    said = outcome(opened, "s3://bucket/x")
    assert "s3://bucket/x, and nothing here opens s3://; give a path" in said


def test_the_commands_that_write_one_file_say_so_too(tmp_path, capsys):
    captions = tmp_path / "a.csv"
    captions.write_text("caption\na red disc\n")
    flags = [f"--train={captions}", "--vocab_size=40", "--output=https://h/a.model"]
    assert status_of(tokenizers.main, flags) == 1
    assert status_of(presets.main, ["--preset=cifar10", "--output=https://h/a.json"]) == 1
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and all("nothing here opens https://" in line for line in said)


def test_what_is_registered_with_tensorflow_is_opened(monkeypatch, tmp_path):
    with tf.io.gfile.GFile("ram://folder/a.csv", "w") as file:
        file.write("image,caption\na.png,a disc\n")
    assert csv("ram://folder/a.csv").captions() == ["a disc"]
    monkeypatch.setattr(tf.io.gfile, "get_registered_schemes", lambda: ["file", "", "gs", "s3"])
    with pytest.raises(tf.errors.OpError):  # which goes to TensorFlow
        csv("s3://bucket/a.csv")
    assert "nothing here opens ram://" in outcome(csv, "ram://folder/a.csv")


def test_what_epath_opens_without_tensorflow_is_opened_but_no_data(monkeypatch):
    monkeypatch.setenv("EPATH_USE_TF", "false")
    assert str(absolute("s3://bucket/run")) == "s3://bucket/run"
    assert "nothing here opens https://" in outcome(absolute, "https://host/run")
    assert "nothing here opens s3://" in outcome(csv, "s3://bucket/a.csv")


def test_a_bucket_is_never_refused(monkeypatch):
    monkeypatch.setattr(tf.io.gfile, "get_registered_schemes", lambda: [])
    seen = []
    monkeypatch.setattr(tf.io.gfile, "exists", lambda path: bool(seen.append(path)))
    assert outcome(csv, "gs://bucket/a.csv").startswith("gs://bucket/a.csv is not a file; set")
    assert seen == ["gs://bucket/a.csv"]


# What stands in the column of a table.


def reason_of(folder, monkeypatch, picture):
    """(reason, detail) of a row with such a picture; nothing is tried again."""
    monkeypatch.setattr(ranges.time, "sleep", lambda _: pytest.fail("it is tried again"))
    (folder / "t.tsv").write_text(f"image\tcaption\n{picture}\ta disc\n")
    with pytest.raises(ranges.Unreadable) as error:
        csv(f"{folder}/t.tsv").read(0)
    return error.value.reason, error.value.detail


@pytest.mark.parametrize(
    "written, fault",
    [
        ("images\\a.png", "it has backslashes, and / stands between folders"),
        ("images/a.png ", "it has blanks around a name"),
        (" images/a.png", "it has blanks around a name"),
        (
            "images\\a.png\u3000",
            "it has backslashes, and / stands between folders and it has blanks",
        ),
        ("~/images/a.png", "~ stands for the home folder only in flags and settings"),
    ],
)
def test_a_picture_that_is_missing_says_how_it_is_written(tmp_path, monkeypatch, written, fault):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").touch()
    reason, detail = reason_of(tmp_path, monkeypatch, written)
    assert reason.startswith(f"the file is missing: its path is odd, as {fault}")
    assert detail == f"{tmp_path}/{written}; there is {tmp_path}/images/a.png"
    (tmp_path / "images" / "a.png").unlink()
    assert reason_of(tmp_path, monkeypatch, written) == (reason, f"{tmp_path}/{written}")


def test_a_name_with_backslashes_or_blanks_that_is_there_is_read(tmp_path):
    for name in ("images\\a.png", "b.png "):
        (tmp_path / name).write_bytes(name.encode())
        (tmp_path / "t.tsv").write_text(f"image\tcaption\n{name}\ta disc\n")
        assert csv(f"{tmp_path}/t.tsv").read(0).image == name.encode()


@pytest.mark.parametrize("scheme", ["https", "s3", "hf"])
def test_an_address_for_a_picture_is_one_plain_reason(tmp_path, monkeypatch, scheme):
    reason, detail = reason_of(tmp_path, monkeypatch, f"{scheme}://host/a.jpg?size=2")
    assert reason == (
        f"the picture is at {scheme}://, which nothing here opens; download the pictures"
    )
    assert detail == f"{scheme}://host/a.jpg?size=2"


@pytest.mark.parametrize("size", [4, 50_000])
def test_a_picture_within_the_table_is_one_plain_reason(tmp_path, monkeypatch, size):
    for kind in ("data:image/png;base64,", "DATA:;base64,", "data:image/svg+xml;charset=utf-8,"):
        reason, detail = reason_of(tmp_path, monkeypatch, kind + "A" * size)
        assert reason == "the picture is a data: URI; pictures have to be files"
        assert detail.startswith(kind) and len(detail) <= 301
    reason, detail = reason_of(tmp_path, monkeypatch, "iVBORw0KGgo" + "A" * 50_000)
    assert reason == "the path is longer than one can be; pictures have to be files"
    assert len(detail) <= 301


def test_a_data_uri_that_is_given_to_preprocess_is_said_to_be_one():
    _, opened = GIVEN["picture"]
    said = outcome(opened, "data:image/png;base64," + "A" * 9_000)
    assert said == "a picture is given as a data: URI; give its bytes, by base64.b64decode"


def test_choices_name_pictures_as_tables_do(tmp_path):
    names = ["https://h/a.png", "data:image/png;base64,AAAA", "images\\a.png", "a.png"]
    rows = [{"image": name, "caption": "a disc", "negative_caption": "a bar"} for name in names]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    pictures = choices.open_choices(
        f"{tmp_path}/a.json", images=None, layout="choice", category_key=None, config_key="x"
    ).images.source
    reasons = []
    for number in range(4):
        with pytest.raises(ranges.Unreadable) as error:
            pictures.read(number)
        reasons.append(error.value.reason)
    assert reasons[0].startswith("the picture is at https://")
    assert reasons[1].startswith("the picture is a data: URI")
    assert reasons[2].startswith("the file is missing: its path is odd")
    assert reasons[3] == "the file is missing"


# From another folder.


class Stop(Exception):
    pass


def as_a_run_sees_it(config, workdir, monkeypatch):
    """The config that a run goes by, as a flat dict."""
    seen = []

    def checked(config):
        seen.append(sections.flat(config.to_dict()))
        raise Stop

    monkeypatch.setattr(open_run, "checked", checked)
    with pytest.raises(Stop), open_run.open_run(config.lock(), workdir, began=0):
        pass
    return seen[0]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder of a run, in one that is the home folder; with folders of data sets that exist."""
    monkeypatch.setenv("HOME", str(tmp_path))
    here = tmp_path / "here@1"
    for built in (here / "built" / "1.0.0", tmp_path / "built" / "1.0.0"):
        built.mkdir(parents=True)
    monkeypatch.chdir(here)
    return here


# {what is written: what it is from any folder}, with HERE and HOME for these folders.
FILES = {
    "a.csv": "HERE/a.csv",
    "./a.csv": "HERE/a.csv",
    "../b/a.csv": "HOME/b/a.csv",
    "b/../a.csv": "HERE/b/../a.csv",  # b may be a link
    "b/": "HERE/b/",
    ".": "HERE",
    "~/b/a.csv": "HOME/b/a.csv",
    "/b/../a.csv": "/b/../a.csv",
    "file:///b/a.csv": "/b/a.csv",
    "gs://b/a.csv": "gs://b/a.csv",
    "{workdir}/../b/a.csv": "HERE/runs/b/a.csv",
    "a\\b.csv ": "HERE/a\\b.csv ",
    "": "",
}
DATA = FILES | {
    "b/{00..09}-*.tar": "HERE/b/{00..09}-*.tar",
    "~/b/[0-9].tar": "HOME/b/[0-9].tar",
    "tfds:coco_captions@train": "tfds:coco_captions@train",
    "tfds:coco/2017": "tfds:coco/2017",
    "tfds:built/1.0.0@train[:9%]": "tfds:HERE/built/1.0.0@train[:9%]",
    "tfds:~/built/1.0.0": "tfds:HOME/built/1.0.0",
    "preset:cifar10@test": "preset:cifar10@test",
    "preset:cifar10=a@test": "preset:cifar10=HERE/a@test",
    "preset:cifar10=~@test": "preset:cifar10=HOME@test",
    "preset:dtd=tfds:built/1.0.0@test": "preset:dtd=tfds:HERE/built/1.0.0@test",
    "preset:dtd=/b/c": "preset:dtd=/b/c",
}


def config_with_every_path(written):
    config = defaults.get_config()
    config.init_from = config.compilation_cache = config.data.vocabulary = written
    config.data.train = config.data.validation = written
    config.data.mixture.a = defaults.part(written)
    config.evals.pairs = defaults.retrieval(config, written, images=written)
    config.evals.choices = defaults.compositional(written, images=written)
    config.evals.zeroshot = defaults.zeroshot(written, classes=written)
    shift = {"folder": written, "classes": written}
    config.evals.shifts = defaults.robustness(shift, {"b": shift, "c": None}, models=written)
    config.evals.linear = defaults.linear_probe(written, written, classes=written)
    config.evals.logistic = defaults.logistic_probe(written, written, classes=written)
    config.evals.few = defaults.few_shot(written, written, classes=written)
    config.evals.gda = defaults.gda(written, written, classes=written)
    config.evals.both = defaults.consistency(written, written, superclasses=written, pairs=written)
    config.evals.space = defaults.geometry(written, reference=written, superclasses=written)
    config.evals.sts = defaults.sts(written, similarities=written)
    return config


# Fields that name one file, and know neither tfds: nor preset:.
PLAIN = ("init_from", "compilation_cache", "vocabulary", "images", "examples", "classes", "models")
PLAIN += ("superclasses", "sentences", "similarities")


@pytest.mark.parametrize("written", DATA)
def test_every_path_of_a_config_means_the_same_from_any_folder(folder, monkeypatch, written):
    seen = as_a_run_sees_it(config_with_every_path(written), folder / "runs" / "x", monkeypatch)
    expected = DATA[written].replace("HERE", str(folder)).replace("HOME", str(folder.parent))
    paths = config_with_every_path("a path of its own").to_dict()
    paths = [name for name, value in sections.flat(paths).items() if value == "a path of its own"]
    assert len(paths) == 39
    for name in paths:
        if written in FILES or name.rpartition(".")[2] not in PLAIN:
            assert seen[name] == expected, name


def test_every_evaluator_says_which_of_its_settings_are_paths(folder, monkeypatch):
    absolute = every_evaluation(folder)
    config = defaults.get_config()
    config.evals = json.loads(json.dumps(absolute).replace(str(folder), "."))
    seen = as_a_run_sees_it(config, folder / "x", monkeypatch)
    for name, value in sections.flat(absolute, "evals.").items():
        assert not isinstance(value, str) or seen[name] == value, name


def test_names_that_are_no_paths_stay_names(folder, monkeypatch):
    config = defaults.get_config()
    config.model.name, config.wandb.project, config.data.templates = "a/b", "c/d", ("e/{}",)
    config.data.source, config.data.train = "tfds", "coco_captions/2017@train"
    config.evals.both = defaults.consistency("a", "b", superclasses="cifar100", templates=("{}",))
    config.evals.preset = defaults.zeroshot(preset="cifar10", split="test")
    config.evals.broken = {"type": "none", "pairs": "a.csv"}
    seen = as_a_run_sees_it(config, folder / "x", monkeypatch)
    given = sections.flat(config.to_dict())
    changed = {name for name in given if given[name] != seen[name]}
    assert changed == {"evals.both.train", "evals.both.test"}


def test_a_path_of_pathlib_is_one_of_text_in_a_run(folder, monkeypatch):
    config = defaults.get_config()
    config.evals.choices = defaults.compositional(folder / "a.json")
    seen = as_a_run_sees_it(config, folder / "x", monkeypatch)
    assert seen["evals.choices.examples"] == f"{folder}/a.json"


def test_evaluations_of_a_checkpoint_know_the_home_folder_and_say_where_they_look(
    folder, monkeypatch
):
    config = defaults.get_config()
    config.evals.choices = defaults.compositional("~/a.json", images="b")
    model = Checkpoint(str(folder), {}, {}, None, {}, config=None)
    monkeypatch.setattr(pretrained, "open_checkpoint", lambda path, **of: model)
    seen = []

    def create_evaluators(settings):
        seen.append(settings.choices.to_dict())
        raise Stop

    monkeypatch.setattr(evals, "create_evaluators", create_evaluators)
    with pytest.raises(Stop):
        evaluate.evaluate_checkpoint(folder, config=config, output=folder)
    assert (seen[0]["examples"], seen[0]["images"]) == (f"{folder.parent}/a.json", f"{folder}/b")


def test_a_folder_with_braces_in_its_name_is_that_folder(tmp_path, monkeypatch):
    inner = tmp_path / "lr={1,2}" / "shards"
    inner.mkdir(parents=True)
    for number in range(3):
        (inner / f"{number}.tar").touch()
    found = ranges.expand(f"{inner}/{{0..1}}.tar", config_key=HERE, endings=(".tar",))
    assert found == [f"{inner}/0.tar", f"{inner}/1.tar"]
    found = ranges.expand(f"{inner}/*.tar", config_key=HERE, endings=(".tar",))
    assert len(found) == 3
