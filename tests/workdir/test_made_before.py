"""A config file, a workdir and a checkpoint made by version 0.1.0 go on working."""

import pathlib
import shutil
import tarfile

import numpy as np
import pytest

import cyclip_jax
from cyclip_jax.evaluate import evaluate_checkpoint
from cyclip_jax.report.write import write_report
from cyclip_jax.train import train
from cyclip_jax.workdir.config_json import read_config
from cyclip_jax.workdir.metrics import read_metrics
from tests.pictures import SHAPES, write_pairs
from tests.runs import unpack
from tests.workdir import made_before

HERE = pathlib.Path(__file__).parent
# What the clock says is another run's.
TIMES = ("second", "share", "goodput")
YOUNGER = {"embedding_rank"}  # metrics that it did not have


@pytest.fixture(scope="module")
def old_run(tmp_path_factory):
    """The workdir of the old run, with its data where its config says."""
    folder = tmp_path_factory.mktemp("made_before")
    with tarfile.open(HERE / "made_before.tar.xz") as archive:
        unpack(archive, folder)
    write_pairs(folder / "pairs")
    for name, colours in (("train", ("red", "green", "blue")), ("test", ("grey",))):
        rows = [f"{colour}_{shape}.png,{shape}" for shape in SHAPES for colour in colours]
        (folder / "pairs" / f"labels_{name}.csv").write_text("\n".join(["image,label", *rows]))
    return folder / "run"


@pytest.fixture
def workdir(old_run, tmp_path):
    shutil.copytree(old_run.parent, tmp_path, dirs_exist_ok=True)
    return tmp_path / "run"


def numbers(line):
    return {name: value for name, value in line.items() if not any(word in name for word in TIMES)}


def test_an_old_run_goes_on_as_it_did(workdir, monkeypatch):
    before = [numbers(line) for line in read_metrics(workdir)]
    config = made_before.get_config()
    # Data are compared by their names, and what is recorded holds from any folder.
    monkeypatch.chdir(workdir.parent)
    config.data.train, config.data.validation = "pairs/train.csv", "./pairs/train.csv"
    train(config.lock(), workdir)
    recorded = read_config(workdir)
    pairs = f"{workdir.parent}/pairs/train.csv"
    assert recorded.data.train == recorded.evals.val.pairs == pairs
    assert recorded.evals.probe.train == "{workdir}/../pairs/labels_train.csv"
    after = [numbers(line) for line in read_metrics(workdir)]
    before, after = ([line for line in lines if len(line) > 1] for lines in (before, after))
    assert [line["step"] for line in after] == [line["step"] for line in before]
    assert {"val/image_to_text_recall@1", "probe/top1"} <= set().union(*after)
    for old, new in zip(before, after, strict=True):
        assert new.keys() - YOUNGER == old.keys()
        if "loss" in old:  # recall of an untrained model turns on the last bit of a similarity
            for name, value in old.items():
                assert new[name] == pytest.approx(value, rel=1e-3), (old["step"], name)


def test_an_old_run_is_loaded_evaluated_and_reported(workdir, monkeypatch):
    model, preprocess, tokenize = cyclip_jax.load(workdir)
    picture = workdir.parent / "pairs" / "red_disc.png"
    image_embeds, text_embeds, scale = model(preprocess(picture), tokenize(["a red disc"]))
    assert image_embeds.shape == text_embeds.shape == (1, 8)
    np.testing.assert_allclose(np.linalg.norm(image_embeds, axis=1), 1, rtol=1e-6)
    assert scale > 1
    config = workdir / "config.json"
    config.write_text(config.read_text().replace("{workdir}/../pairs/t", "~/pairs/t"))
    monkeypatch.setenv("HOME", str(workdir.parent))
    found = evaluate_checkpoint(workdir)
    of_last_step = read_metrics(workdir)[-1]
    assert found.keys() - {"step"} == {name for name in of_last_step if "/" in name}
    page = write_report([workdir]).read_text()
    assert "probe" in page and "val" in page
