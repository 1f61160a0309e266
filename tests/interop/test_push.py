"""Exports that are sent to the Hugging Face Hub: what is sent, and what never is."""

import base64
import dataclasses
import getpass
import io
import json
import os
import sys

import numpy as np
import pytest
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from PIL import Image

import cyclip_jax
from cyclip_jax import defaults
from cyclip_jax.errors import UserError
from cyclip_jax.export import main, write_export
from cyclip_jax.files import write_json
from cyclip_jax.interop import push as of_push
from cyclip_jax.interop import to_torch
from cyclip_jax.interop.card import model_card
from cyclip_jax.interop.formats import READERS_TOWERS
from cyclip_jax.interop.hub import located
from cyclip_jax.interop.names import COUNT
from cyclip_jax.interop.privacy import check_private, without_folders
from cyclip_jax.interop.push import check_push, push
from tests.hub import READS, TOKEN, use_hub
from tests.runs import status_of

METRICS = {
    "loss": 1.5,
    "val/image_to_text_recall@1": 0.25,
    "val/image_to_text_recall@1_ci_low": 0.125,
    "val/image_to_text_recall@1_ci_high": 0.4375,
    "val/chance_image_to_text_recall@1": 0.0417,
    "val/pairs": 24.0,
    "birds/top1": 0.75,
}


@pytest.fixture(autouse=True)
def without_torch(monkeypatch, tokenizer_written_once):
    """Nothing here needs openai.pt, and importing PyTorch takes seconds."""
    del tokenizer_written_once
    monkeypatch.setitem(sys.modules, "torch", None)


@pytest.fixture
def of_anna(monkeypatch):
    """The machine of somebody whose login name stands in every path."""
    monkeypatch.setattr(getpass, "getuser", lambda: "annaschmidt")


@pytest.fixture
def run(small_checkpoint, tmp_path):
    """The Checkpoint of a run whose settings name folders of a person."""
    config = defaults.get_config()
    config.data.train = "/home/annaschmidt/my data/{00..09}.tar+gs://annaschmidt-lab/b/pool.csv"
    config.data.validation = r"C:\Users\annaschmidt\val.csv"
    config.init_from, config.compilation_cache = "file:///scratch/annaschmidt", "~annaschmidt/x"
    config.wandb.entity = "annaschmidt"
    config.evals.birds = defaults.zeroshot("preset:birds=/data/annaschmidt/cub@test")
    workdir = tmp_path / "annaschmidt" / "run"
    jpeg = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), 77, np.uint8)).save(jpeg, "JPEG")
    answer = {"jpeg": base64.b64encode(jpeg.getvalue()).decode(), "is_partner": True}
    query = {"caption": "a *red* <b>disc</b>", "rank": 2, "of": 24, "images": [answer] * 2}
    write_json(workdir / "evals" / "val" / "gallery.json", [query])
    return dataclasses.replace(
        small_checkpoint, config=config, metrics=METRICS, source=str(workdir)
    )


def export(checkpoint, folder, **arguments):
    arguments = {"export_format": "open_clip", "repository": "anna/tiny", **arguments}
    return write_export(checkpoint, folder, **arguments)


@pytest.fixture
def source(small_checkpoint, tmp_path):
    """An export, which the command line can export again."""
    export(small_checkpoint, tmp_path / "source", export_format="transformers", repository=None)
    return tmp_path / "source"


def arguments(source, tmp_path, *others):
    return [
        f"--checkpoint={source}",
        "--format=open_clip",
        f"--output={tmp_path}/out",
        "--push=anna/tiny",
        *others,
    ]


def same_weights(model, expected):
    found = to_torch(model)
    for name in (name for name in expected if not name.endswith(COUNT)):
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


def test_what_is_pushed_is_loaded_bit_for_bit(hub, source, small_checkpoint, tmp_path, capsys):
    main(arguments(source, tmp_path, "--license=cc-by-4.0"))
    model, _, _ = cyclip_jax.load("hf-hub:anna/tiny")
    same_weights(model, small_checkpoint.weights)
    repository = hub.repositories["anna/tiny"]
    assert repository.private
    written = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert repository.commits[repository.branches["main"]] == {".gitattributes": b"", **written}
    output = capsys.readouterr().out
    sizes = [f"  {name}  " for name in written]
    assert all(size in output for size in sizes)
    assert output.index(sizes[0]) < output.index("anna/tiny is new, and private")
    assert f"sent as commit {repository.branches['main']}: {hub.endpoint}/anna/tiny" in output
    card = written["README.md"].decode()
    for how in ('create_model_and_transforms("hf-hub:anna/tiny")', 'load("hf-hub:anna/tiny")'):
        assert how in card
    assert "local-dir" not in card and "# tiny" in card and "license: cc-by-4.0" in card


def test_only_the_files_of_the_export_are_sent(hub, small_checkpoint, tmp_path, capsys):
    names = export(small_checkpoint, tmp_path / "x")
    (tmp_path / "x" / "checkpoint").write_text("a leftover")
    (tmp_path / "x" / "assets").mkdir()
    push(tmp_path / "x", "anna/tiny")
    sent = hub.repositories["anna/tiny"]
    assert set(sent.commits[sent.branches["main"]]) == {*names, ".gitattributes"}
    assert b"a leftover" not in hub.received
    assert "checkpoint\n" not in capsys.readouterr().out


def test_a_new_repository_is_public_only_if_that_is_asked_for(hub, source, tmp_path, capsys):
    main(arguments(source, tmp_path, "--public"))
    assert not hub.repositories["anna/tiny"].private
    assert "anna/tiny is new, and public" in capsys.readouterr().out


@pytest.mark.parametrize("private", [True, False])
def test_an_existing_repository_keeps_its_visibility(
    hub, small_checkpoint, tmp_path, capsys, private
):
    repository = hub.add("lab/clip", {"old.safetensors": b"x"}, private=private)
    export(small_checkpoint, tmp_path / "x", repository="lab/clip")
    push(tmp_path / "x", "lab/clip", is_public=private)
    output = capsys.readouterr().out
    assert f"lab/clip is {'private' if private else 'public'}, and stays so" in output
    assert "lab/clip also has old.safetensors, which this export neither needs nor" in output
    assert repository.private == private
    assert "old.safetensors" in repository.commits[repository.branches["main"]]


def test_nothing_that_is_sent_said_or_logged_has_a_folder_an_account_or_the_token(
    hub, of_anna, run, tmp_path, capfd, caplog
):
    export(run, tmp_path / "out", with_pictures=True)
    push(tmp_path / "out", "anna/tiny")
    output = capfd.readouterr()
    for text in (hub.received, output.out.encode(), output.err.encode(), caplog.text.encode()):
        for private in (b"annaschmidt", b"/home/", b"/scratch", b"gs://", b"Users", TOKEN.encode()):
            assert private not in text
    assert str(tmp_path).encode() not in hub.received
    card = (tmp_path / "out" / "README.md").read_text()
    assert '"train": "{00..09}.tar+pool.csv"' in card and '"validation": "val.csv"' in card
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert not any(TOKEN.encode() in path.read_bytes() for path in files)


def test_pictures_are_sent_only_with_the_flag(hub, run, tmp_path):
    jpeg = b"\xff\xd8\xff"
    names = export(run, tmp_path / "out")
    push(tmp_path / "out", "anna/tiny")
    assert not any("images" in name for name in names) and jpeg not in hub.received
    assert "## Pictures" not in (tmp_path / "out" / "README.md").read_text()
    names = export(run, tmp_path / "out", with_pictures=True)
    assert {"images/val_1_1.jpg", "images/val_1_2.jpg"} < set(names)
    push(tmp_path / "out", "anna/tiny")
    sent = hub.repositories["anna/tiny"]
    assert sent.commits[sent.branches["main"]]["images/val_1_1.jpg"].startswith(jpeg)
    card = (tmp_path / "out" / "README.md").read_text()
    assert r"a \*red\* &lt;b&gt;disc&lt;/b&gt; (its own picture comes 2 of 24)" in card
    assert "![answer](images/val_1_1.jpg)" in card
    assert located("hf-hub:anna/tiny").joinpath("cyclip_jax.json").exists()
    assert not any(name.endswith(".jpg") for name in hub.fetched())
    export(run, tmp_path / "out")  # and the pictures go with the export that they were of
    assert not (tmp_path / "out" / "images").exists()


def test_pictures_of_somebody_in_the_folder_of_pictures_are_left_alone(run, tmp_path):
    from cyclip_jax.export import check_replaceable

    export(run, tmp_path / "out", with_pictures=True)
    (tmp_path / "out" / "images" / "mine.jpg").write_bytes(b"x")
    with pytest.raises(UserError, match=r"is left alone, .* \(images/mine.jpg\)"):
        check_replaceable(tmp_path / "out")


def test_without_pictures_the_flag_is_refused(run, small_checkpoint, source, tmp_path):
    os.remove(f"{run.source}/evals/val/gallery.json")
    with pytest.raises(UserError, match=r"has no pictures; leave out --with_pictures"):
        export(run, tmp_path / "x", with_pictures=True)
    write_json(f"{run.source}/evals/val/gallery.json", [{"caption": "x"}])
    with pytest.raises(UserError, match=r"gallery.json cannot be read .*--with_pictures"):
        export(run, tmp_path / "x", with_pictures=True)
    with pytest.raises(UserError, match="is not the workdir of a run, which alone has pictures"):
        export(small_checkpoint, tmp_path / "x", with_pictures=True)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("name", ["tiny", "a/b/c", "anna/", "anna/ti ny", "hf-hub:a/b", "-a/b"])
def test_a_name_that_no_repository_has_is_refused(hub, tmp_path, name):
    with pytest.raises(UserError, match=r"must be user/name or organisation/name"):
        check_push(name, tmp_path)
    assert not hub.requests


def test_what_keeps_an_export_from_being_sent_is_said_before_it_is_made(
    hub, source, tmp_path, monkeypatch, capsys
):
    def refused(*others):
        assert status_of(main, arguments(source, tmp_path, *others)) == 1
        assert not (tmp_path / "out").exists() and not hub.requests
        return capsys.readouterr().err

    home = os.environ["HF_HOME"]
    use_hub(monkeypatch, hub, home, HF_TOKEN="")
    assert f"error: --push needs a token of {hub.endpoint} that may write; log in" in refused()
    use_hub(monkeypatch, hub, home, HF_HUB_OFFLINE="1")
    assert "error: --push needs the network, which $HF_HUB_OFFLINE forbids" in refused()
    use_hub(monkeypatch, hub, home)
    assert "sends files of this machine" in refused("--output=gs://bucket/x")
    monkeypatch.setitem(sys.modules, "huggingface_hub.constants", None)
    assert "error: --push needs huggingface_hub; run pip install 'cyclip_jax[hub]'" in refused()
    monkeypatch.undo()


def test_public_without_push_is_refused(source, tmp_path):
    command = [f"--checkpoint={source}", "--format=open_clip", f"--output={tmp_path}/out"]
    with pytest.raises(SystemExit, match="error: --public is about the repository of --push"):
        main([*command, "--public"])


def test_where_the_hub_refuses_the_export_stays(hub, source, tmp_path, monkeypatch, capsys):
    home, command = os.environ["HF_HOME"], arguments(source, tmp_path)
    other = [*command, "--push=somebody/tiny"]
    hub.add("somebody/known", {})
    cases = [
        (READS, command, "your token may not write to anna/tiny"),
        (TOKEN, other, "your token may not write to somebody/tiny"),
        (TOKEN, [*command, "--push=somebody/known"], "may not write to somebody/known"),
        ("hf_" + "0" * 32, command, f"{hub.endpoint} does not know your token"),
    ]
    for token, given, message in cases:
        use_hub(monkeypatch, hub, home, HF_TOKEN=token)
        assert status_of(main, given) == 1
        told = capsys.readouterr().err.strip().splitlines()[-1]
        assert message in told and f"the export is in {tmp_path}/out, and the same" in told
        assert "hf_" not in told and (tmp_path / "out" / "README.md").exists()
    use_hub(monkeypatch, hub, home, HF_ENDPOINT="http://127.0.0.1:9")
    assert status_of(main, command) == 1
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert "http://127.0.0.1:9 cannot be reached" in told and f"is in {tmp_path}/out" in told
    use_hub(monkeypatch, hub, home)
    assert status_of(main, command) == 0  # as the sentence says


def test_an_error_never_has_the_token(hub, small_checkpoint, tmp_path, monkeypatch):
    export(small_checkpoint, tmp_path / "x")

    def broken(*_):
        raise ValueError(f"Authorization: Bearer {TOKEN}")

    monkeypatch.setattr(of_push, "_sent", broken)
    with pytest.raises(UserError, match=r"Bearer …; the export is in") as error:
        push(tmp_path / "x", "anna/tiny")
    assert TOKEN not in str(error.value) and error.value.__cause__ is None


def test_a_file_with_something_private_is_not_sent(hub, small_checkpoint, tmp_path, monkeypatch):
    export(small_checkpoint, tmp_path / "x")
    monkeypatch.setenv("HOME", "/homes/anna")
    vocabulary = tmp_path / "x" / "tokenizer.model"
    for private, what in ((TOKEN, "your token"), ("/homes/anna/corpus", "a path of your home")):
        vocabulary.write_bytes(b"x" * (2**20 - 5) + private.encode())  # across two blocks
        with pytest.raises(UserError, match=rf"^tokenizer.model has {what}.*nothing is sent"):
            push(tmp_path / "x", "anna/tiny")
    assert not hub.requests
    check_private([tmp_path / "x" / "README.md"], TOKEN)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("/mnt/data/{00..09}.tar", "{00..09}.tar"),
        ("/home/me/my data/train.csv", "train.csv"),
        ("/home/me/", "user"),
        ("preset:dtd=/home/me/dtd@test", "preset:dtd=dtd@test"),
        ("~/x.csv, ~me/y.csv", "x.csv, y.csv"),
        (r"C:\Users\me\x.csv", "x.csv"),
        ("C:/Users/me", "user"),
        (r"\\server\share\x.csv", "x.csv"),
        ("file:///home/me/x.csv", "x.csv"),
        ("gs://me-bucket/pool/x-{0..9}.tar", "x-{0..9}.tar"),
        ("gs://me-bucket", "user"),
        ("/a/x.csv+/b/y.csv", "x.csv+y.csv"),
        ("/a/x.csv,gs://b/y.csv", "x.csv,y.csv"),
        ("drawn from /a/b/x.csv and /a/y.csv, twice", "drawn from x.csv and y.csv, twice"),
        ("('/a/b', \"/c/d\")", "('b', \"d\")"),
        ("../../me/x.csv", "x.csv"),
        ("/data/annaschmidt", "user"),
        ("/data/train_annaschmidt.csv", "train_user.csv"),
        ({"/a/b": ["/c/d", ("/e/f",)]}, {"b": ["d", ["f"]]}),
        *((same, same) for same in ("visual/.*", ".+/kernel", "ViT-B/32", "a photo of a {}.", "/")),
        *((same, same) for same in ("{workdir}/../val.csv", "hf-hub:me/x@1a", "tfds:cifar10/2", 3)),
    ],
)
def test_a_path_is_its_last_name_alone(of_anna, value, expected):
    assert without_folders(value) == expected


def test_the_results_of_a_run_come_back_from_the_card_as_they_were(run, tmp_path):
    export(run, tmp_path / "x")
    data = ModelCard.load(tmp_path / "x" / "README.md").data
    assert isinstance(data, ModelCardData)
    recall = "image_to_text_recall@1"
    told = {
        "task_type": "image-text-retrieval",
        "task_name": "Image and text retrieval",
        "dataset_type": "val.csv",
        "dataset_name": "val",
        "dataset_config": "val",
    }
    assert data.eval_results == [
        EvalResult(
            **told,
            metric_type=recall,
            metric_value=0.25,
            metric_name=f"{recall}: 25.0% [12.5, 43.8], with its 95 % interval",
            metric_args={"interval_low": 0.125, "interval_high": 0.4375},
        ),
        EvalResult(
            task_type="zero-shot-image-classification",
            task_name="Zero-shot image classification",
            dataset_type="preset:birds=cub@test",
            dataset_name="birds",
            dataset_config="birds",
            metric_type="top1",
            metric_value=0.75,
            metric_name="top1",
        ),
    ]
    again = ModelCardData(**data.to_dict())
    assert again.eval_results == data.eval_results and again.model_name == "tiny"
    assert again.to_dict() == data.to_dict()


@pytest.mark.parametrize("export_format", READERS_TOWERS)
@pytest.mark.parametrize("repository", [None, "anna/tiny"])
def test_the_card_of_every_export_is_read_by_huggingface_hub(
    small_checkpoint, export_format, repository
):
    license_name = "other: no #1 'license'\n---"
    card = model_card(
        small_checkpoint,
        name="tiny",
        export_format=export_format,
        dtype="float32",
        license_name=license_name,
        repository=repository,
    )
    library = {} if export_format == "cyclip" else {"library_name": export_format}
    assert ModelCard(card).data.to_dict() == {
        "license": license_name,
        **library,
        "pipeline_tag": "zero-shot-image-classification",
        "tags": ["clip", "cyclip", "contrastive", "image-text"],
    }
    is_loaded = 'cyclip_jax.load("hf-hub:anna/tiny")' in card
    assert is_loaded == (repository is not None and export_format in ("open_clip", "transformers"))


def test_an_export_describes_all_of_its_files(run, tmp_path):
    names = export(run, tmp_path / "x", with_pictures=True)
    told = json.loads((tmp_path / "x" / "cyclip_jax.json").read_text())
    found = [path for path in (tmp_path / "x").rglob("*") if path.is_file()]
    paths = sorted(str(path.relative_to(tmp_path / "x")) for path in found)
    assert told["files"] == names == paths
