"""Models of the Hugging Face Hub by name: what is fetched, and what is said where it cannot be."""

import csv
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

import cyclip_jax
from cyclip_jax import defaults, evals
from cyclip_jax.data.tokenizers import train_sentencepiece
from cyclip_jax.errors import UserError
from cyclip_jax.evals.metric import SHARE
from cyclip_jax.evaluate import evaluate_checkpoint
from cyclip_jax.export import export_checkpoint, main, write_export
from cyclip_jax.interop import hub as of_hub
from cyclip_jax.interop import to_torch
from cyclip_jax.interop.class_head import FILE as HEAD_FILE
from cyclip_jax.interop.files import read_weights, write_safetensors
from cyclip_jax.interop.hub import LIMIT, as_recorded, parsed, pinned
from cyclip_jax.interop.names import COUNT
from cyclip_jax.interop.pretrained import completed, open_checkpoint
from cyclip_jax.train import train
from cyclip_jax.training.finetuning import set_field
from cyclip_jax.training.settings import with_absolute_paths
from cyclip_jax.training.starting_point import begun_from, inherit_vocabulary, with_commit
from cyclip_jax.workdir.config_json import read_config, write_config
from cyclip_jax.workdir.saved import newest_meta
from tests.hub import READS, TOKEN, use_hub
from tests.interop.models import VIT, drawn_checkpoint, write_tokenizers_once
from tests.runs import ROOT
from tests.tiny import get_config

NAME = "hf-hub:lab/model"


@pytest.fixture(scope="module")
def exports(small_checkpoint, tmp_path_factory):
    """{format: {file: bytes}} of the small model's exports."""
    folder = tmp_path_factory.mktemp("exports")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "torch", None)  # openai.pt is not needed
        write_tokenizers_once(patch)
        for name in ("open_clip", "transformers"):
            write_export(small_checkpoint, folder / name, export_format=name)
    return {name: files_of(folder / name) for name in ("open_clip", "transformers")}


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def same_weights(found, expected):
    names = [name for name in expected if not name.endswith(COUNT)]
    assert found.keys() >= set(names)
    for name in names:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


def only(files, *names):
    return {name: files[name] for name in names}


def test_an_export_on_the_hub_is_loaded_bit_for_bit(hub, exports, small_checkpoint, capsys):
    repository = hub.add("lab/model", exports["open_clip"])
    model, _, tokenize = cyclip_jax.load(NAME)
    same_weights(to_torch(model), small_checkpoint.weights)
    assert tokenize("a red square").shape == (1, 9)
    commit = repository.branches["main"]
    assert capsys.readouterr().err.count(f"{NAME} is commit {commit}\n") == 1


@pytest.mark.parametrize(
    ("export", "files"),
    [
        ("open_clip", ("open_clip_config.json", "open_clip_model.safetensors")),
        ("transformers", ("config.json", "model.safetensors", "preprocessor_config.json")),
    ],
)
def test_what_open_clip_and_transformers_publish_is_opened(
    hub, exports, small_checkpoint, export, files
):
    hub.add("lab/model", only(exports[export], *files))
    opened = open_checkpoint(NAME)
    same_weights(opened.weights, small_checkpoint.weights)
    assert opened.model["vision_heads"] == 3


def test_open_clips_other_name_of_safetensors_is_opened(hub, exports, small_checkpoint):
    files = only(exports["open_clip"], "open_clip_config.json")
    weights = exports["open_clip"]["open_clip_model.safetensors"]
    hub.add("lab/model", files | {"open_clip_pytorch_model.safetensors": weights})
    same_weights(open_checkpoint(NAME).weights, small_checkpoint.weights)


def sharded(exports, tmp_path):
    """A transformers repository whose weights are two files and an index."""
    files = dict(exports["transformers"])
    whole = tmp_path / "whole.safetensors"
    whole.write_bytes(files.pop("model.safetensors"))
    weights, index = read_weights(whole), {}
    for number in (1, 2):
        shard = f"model-0000{number}-of-00002.safetensors"
        part = {name: weights[name] for name in sorted(weights)[number - 1 :: 2]}
        write_safetensors(tmp_path / shard, part)
        files[shard] = (tmp_path / shard).read_bytes()
        index |= dict.fromkeys(part, shard)
    del files["cyclip_jax.json"], files["README.md"]
    return files | {"model.safetensors.index.json": json.dumps({"weight_map": index}).encode()}


def test_weights_in_several_files_are_put_together(hub, exports, small_checkpoint, tmp_path):
    hub.add("lab/model", sharded(exports, tmp_path))
    same_weights(open_checkpoint(NAME).weights, small_checkpoint.weights)


def test_nothing_is_fetched_that_could_run_or_that_no_reader_takes(hub, exports):
    others = {
        "open_clip_pytorch_model.bin": b"\x80\x04pickle",
        "model.pt": b"\x80\x04pickle",
        "modeling_clip.py": b"raise SystemExit",
        "notes.txt": b"",
        "onnx/config.json": b"{}",
    }
    own = exports["open_clip"]
    hub.add("lab/model", own | others | only(exports["transformers"], "model.safetensors"))
    opened = open_checkpoint(NAME)
    expected = {"open_clip_config.json", "cyclip_jax.json", "tokenizer.model"}
    assert hub.fetched() == expected | {"open_clip_model.safetensors"}
    assert opened.tokenizer["vocabulary"].endswith("tokenizer.model")


def test_pickles_that_another_program_has_put_into_the_cache_are_not_read(hub, exports):
    hub.add("lab/model", only(exports["transformers"], "config.json", "model.safetensors"))
    folder = of_hub.located(NAME)
    (folder / "open_clip_pytorch_model.bin").write_bytes(b"\x80\x04pickle")
    open_checkpoint(NAME)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"pytorch_model.bin": b"x", "config.json": b"{}"}, "has no safetensors of one model"),
        ({"a.safetensors": b"x", "b.safetensors": b"x"}, "has no safetensors of one model"),
        ({HEAD_FILE: b"x"}, "has no safetensors of one model"),
        (
            {"cyclip_jax.json": b'{"weights": ["cyclip.pt"]}', "cyclip.pt": b"x"},
            "names its file 'cyclip.pt'",
        ),
        (
            {"cyclip_jax.json": b'{"tokenizer": {"vocabulary": "/etc/passwd"}}'},
            "names its file '/etc/passwd'",
        ),
        (
            {"model.safetensors.index.json": b'{"weight_map": {"x": "../../x.safetensors"}}'},
            r"names its file '../../x.safetensors'",
        ),
    ],
)
def test_a_repository_without_what_is_fetched_is_named_in_a_sentence(hub, files, message):
    hub.add("lab/model", files)
    with pytest.raises(UserError, match=message) as error:
        open_checkpoint(NAME)
    assert "\n" not in str(error.value)


def test_a_size_above_the_limit_is_said_before_weights_are_fetched(hub, exports, monkeypatch):
    hub.add("lab/model", exports["open_clip"])
    size = len(exports["open_clip"]["open_clip_model.safetensors"])
    monkeypatch.setenv(LIMIT, str(size / 1e9))  # the vocabulary comes on top
    with pytest.raises(UserError, match=rf"more than the limit of .* GB; set \${LIMIT}"):
        open_checkpoint(NAME)
    assert "open_clip_model.safetensors" not in hub.fetched()
    monkeypatch.setenv(LIMIT, "0.001")
    open_checkpoint(NAME)
    monkeypatch.setenv(LIMIT, "much")
    of_hub._fetched.cache_clear()
    with pytest.raises(UserError, match="set it to a number of gigabytes"):
        open_checkpoint(NAME)


def test_the_limit_lets_the_largest_published_models_pass():
    assert of_hub.DEFAULT_LIMIT > 4 * 5.045e9 / 1e9  # EVA02-E-14-plus in float32


def test_a_revision_is_a_branch_a_tag_or_a_commit(hub, exports, capsys):
    repository = hub.add("lab/model", exports["open_clip"])
    first = repository.branches["main"]
    repository.branches["v1"] = first
    repository.commit({"README.md": b"newer"})
    second = repository.branches["main"]
    assert pinned(NAME) == f"{NAME}@{second}"
    assert pinned(f"{NAME}@v1") == pinned(f"{NAME}@{first}") == f"{NAME}@{first}"
    assert of_hub.located(f"{NAME}@v1").name == first
    assert "is commit" in capsys.readouterr().err


def test_a_process_stays_with_the_commit_that_it_began_with(hub, exports):
    repository = hub.add("lab/model", exports["open_clip"])
    before = of_hub.located(NAME)
    repository.commit({"README.md": b"newer"})
    assert of_hub.located(NAME) == before


def test_what_is_in_the_cache_needs_no_network(hub, exports, small_checkpoint, monkeypatch):
    hub.add("lab/model", exports["open_clip"])
    folder = of_hub.located(NAME)
    home = os.environ["HF_HOME"]
    use_hub(monkeypatch, hub, home, HF_HUB_OFFLINE="1")
    count = len(hub.requests)
    same_weights(open_checkpoint(NAME).weights, small_checkpoint.weights)
    assert open_checkpoint(f"{NAME}@{folder.name}").source == str(folder)
    assert len(hub.requests) == count
    for name in ("hf-hub:lab/other", f"{NAME}@{'0' * 40}"):
        with pytest.raises(UserError, match=r"is not in the cache, and \$HF_HUB_OFFLINE") as error:
            open_checkpoint(name)
        assert str(error.value).endswith("unset that once")


def test_a_network_that_is_away_is_a_sentence_and_the_cache_serves(hub, exports, monkeypatch):
    hub.add("lab/model", exports["open_clip"])
    of_hub.located(NAME)
    home = os.environ["HF_HOME"]
    use_hub(monkeypatch, hub, home, HF_ENDPOINT="http://127.0.0.1:9")  # nobody listens there
    open_checkpoint(NAME)
    with pytest.raises(UserError, match=r"hf-hub:lab/other cannot be fetched: .*; try again"):
        open_checkpoint("hf-hub:lab/other")


def test_what_the_hub_refuses_is_a_sentence_with_a_remedy(hub, exports, monkeypatch):
    hub.add("lab/model", exports["open_clip"], private=True)
    hub.add("lab/gated", exports["open_clip"], gated=True)
    missing = rf"no repository lab/{{}} that you may read on {hub.endpoint}; check .*\$HF_TOKEN"
    told = {
        f"{NAME}@v9": "has no branch, tag or commit 'v9'; choose one",
        "hf-hub:lab/none": missing.format("none"),
        "hf-hub:lab/gated": "is gated; ask for access on its page, and log in",
    }
    for name, message in told.items():
        with pytest.raises(UserError, match=message):
            open_checkpoint(name)
    home = os.environ["HF_HOME"]
    use_hub(monkeypatch, hub, home, HF_TOKEN="")
    with pytest.raises(UserError, match=missing.format("model")):
        open_checkpoint(NAME)
    use_hub(monkeypatch, hub, home, HF_TOKEN="hf_" + "0" * 32)
    with pytest.raises(UserError, match="does not know your token; log in") as error:
        open_checkpoint(NAME)
    assert "hf_" not in str(error.value)
    use_hub(monkeypatch, hub, home, HF_TOKEN=READS)
    open_checkpoint(NAME)


@pytest.mark.parametrize(
    "name", ["hf-hub:", "hf-hub:model", "hf-hub:a/b/c", "hf-hub:a/b@", "hf-hub:../x", "hf-hub:a/-b"]
)
def test_a_name_that_is_none_is_refused(name):
    with pytest.raises(UserError, match=r"must be hf-hub:user/name, or hf-hub:user/name@revision"):
        parsed(name)


def test_without_huggingface_hub_a_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    of_hub._commit.cache_clear()
    with pytest.raises(UserError, match=r"hf-hub:a/b needs .*pip install 'cyclip_jax\[hub\]'"):
        open_checkpoint("hf-hub:a/b")


def test_a_run_records_the_commit_and_goes_on_with_it(hub, exports, tmp_path):
    repository = hub.add("lab/model", exports["open_clip"])
    first = repository.branches["main"]
    config = defaults.get_config()
    config.init_from, config.data.tokenizer = NAME, "sentencepiece"
    config = with_absolute_paths(config)
    assert config.init_from == NAME  # and no path of this machine
    begun = with_commit(config, tmp_path)
    assert begun.init_from == f"{NAME}@{first}"
    inherit_vocabulary(begun, tmp_path)
    expected = exports["open_clip"]["tokenizer.model"]
    assert (tmp_path / "tokenizer.model").read_bytes() == expected
    write_config(begun, tmp_path)
    repository.commit({"README.md": b"newer"})
    for known in (of_hub._commit, of_hub._fetched):
        known.cache_clear()  # as in a later process
    count = len(hub.requests)
    assert with_commit(config, tmp_path).init_from == f"{NAME}@{first}"
    assert len(hub.requests) == count
    assert begun_from(f"{NAME}@main", tmp_path) == f"{NAME}@{repository.branches['main']}"
    assert begun_from("runs/a", tmp_path) == "runs/a"


def test_a_run_that_has_checkpoints_says_what_it_began_from(hub, exports):
    hub.add("lab/model", exports["open_clip"])
    recorded = f"{NAME}@{'a' * 40}"
    for path in (NAME, f"{NAME}@main", f"{NAME}@{'b' * 40}"):
        assert as_recorded(path, recorded, goes_on=True) == recorded
    assert as_recorded(NAME, "hf-hub:lab/x@" + "a" * 40, goes_on=True) == pinned(NAME)


def test_evaluations_of_a_model_on_the_hub_leave_the_cache_as_it_is(
    hub, exports, tmp_path, monkeypatch
):
    told = {}

    def evaluated(evaluators, encoders, **arguments):
        told.update(arguments)
        return {"pairs": {"top1": SHARE.metric(0.5)}}

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(evals, "create_evaluators", lambda _: {})
    monkeypatch.setattr(evals, "evaluate", evaluated)
    repository = hub.add("lab/model", exports["open_clip"])
    found = evaluate_checkpoint(NAME, config=defaults.get_config())
    assert found == {"step": 7, "pairs/top1": 0.5}
    assert told["checkpoint"] == f"{NAME}@{repository.branches['main']}"
    assert (tmp_path / "model.evals" / "step_7.json").exists()
    assert not (of_hub.located(NAME) / "evals").exists()


@pytest.mark.usefixtures("tokenizer_written_once")
def test_a_model_of_the_hub_is_exported_as_one_of_this_machine(hub, exports, tmp_path):
    hub.add("lab/model", exports["open_clip"])
    export_checkpoint(NAME, export_format="transformers", output=tmp_path / "x")
    expected = exports["transformers"]["model.safetensors"]
    assert (tmp_path / "x" / "model.safetensors").read_bytes() == expected
    with pytest.raises(SystemExit, match="error: hf-hub:a must be hf-hub:user/name"):
        main(["--checkpoint=hf-hub:a", "--format=onnx", f"--output={tmp_path}/y"])


def test_a_process_takes_the_hub_from_its_environment(hub, exports, tmp_path):
    hub.add("lab/model", exports["open_clip"], private=True)
    program = "import cyclip_jax; cyclip_jax.load('hf-hub:lab/model')"
    process = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "HF_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert process.returncode == 0, process.stderr
    commit = hub.repositories["lab/model"].branches["main"]
    assert f"{NAME} is commit {commit}" in process.stderr
    assert TOKEN not in process.stdout + process.stderr
    written = [path for path in pathlib.Path(tmp_path).rglob("*") if path.is_file()]
    assert not any(TOKEN.encode() in path.read_bytes() for path in written)


@pytest.mark.slow
def test_a_run_starts_from_the_hub_and_goes_on_without_it(hub, tmp_path, pairs_csv):
    vocabulary = tmp_path / "tokenizer.model"
    captions = [row["caption"] for row in csv.DictReader(pairs_csv.read_text().splitlines())]
    train_sentencepiece(captions, vocab_size=64, output=str(vocabulary))
    told = {"tokenizer": "sentencepiece", "vocabulary": str(vocabulary)}
    model = {**VIT, "vocab_size": 64}
    write_export(
        completed(drawn_checkpoint(model, told)), tmp_path / "x", export_format="open_clip"
    )
    repository = hub.add("lab/model", files_of(tmp_path / "x"))
    config = get_config()
    config.init_from, config.model.name = NAME, "ViT-tiny"
    for name, value in VIT.items():
        if name != "name":
            set_field(config, f"model.{name}", value)
    config.model.vocab_size = 64
    config.data.train = config.data.validation = str(pairs_csv)
    config.total_steps, config.optimizer.warmup_steps = 1, 0
    recorded = f"{NAME}@{repository.branches['main']}"
    train(config, tmp_path / "run")
    assert read_config(tmp_path / "run").init_from == recorded
    repository.commit({"README.md": b"newer"})
    of_hub._commit.cache_clear()
    count, config.total_steps = len(hub.requests), 2
    train(config, tmp_path / "run", allow_changes=["total_steps"])
    assert read_config(tmp_path / "run").init_from == recorded
    assert newest_meta(tmp_path / "run")[1]["config"]["init_from"] == recorded
    assert len(hub.requests) == count
