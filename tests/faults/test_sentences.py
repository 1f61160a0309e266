"""Runs that see sentences: stopped in any stage and continued, exported, and with other files."""

import json
import shutil

import numpy as np
import pytest

from cyclip_jax import load
from cyclip_jax.errors import UserError
from cyclip_jax.workdir.metrics import read_metrics
from cyclip_jax.workdir.saved import newest_meta
from tests.test_train import TIMINGS

WORDS = ("red", "green", "blue", "disc", "square", "large", "small")
# Stages: sentences alone, both, pairs alone.
STAGES = {
    "total_steps": 8,
    "checkpoint_every_steps": 2,
    "keep_checkpoints": 9,
    "sentences.only_steps": 4,
    "sentences.until_step": 6,
    "sentences.batch_size": 8,
    "sentences.head": "mlp",
}


@pytest.fixture(scope="module")
def triplets(tmp_path_factory):
    """A table of 24 triplets, one of which cannot be used."""
    path = tmp_path_factory.mktemp("sentences") / "nli.csv"
    rng = np.random.default_rng(0)
    rows = [",".join(" ".join(rng.choice(WORDS, 3)) for _ in range(3)) for _ in range(24)]
    path.write_text("\n".join(["sent0,sent1,hard_neg", *rows[:9], "red disc,,blue", *rows[9:]]))
    return path


@pytest.fixture(scope="module")
def staged(small_run, triplets, tmp_path_factory):
    """The workdir of a run through all stages that nothing happened to."""
    workdir = tmp_path_factory.mktemp("staged")
    small_run(workdir, **STAGES, **{"sentences.train": str(triplets)})
    return workdir


def numbers(workdir):
    return [
        {
            name: value
            for name, value in line.items()
            if name not in (*TIMINGS, "sentences_per_second")
        }
        for line in read_metrics(workdir)
        if "loss" in line
    ]


def test_each_stage_reports_what_it_trains(staged):
    lines = {line["step"]: line for line in numbers(staged)}
    for step, (has_sentences, has_pairs) in {
        **dict.fromkeys((1, 4), (True, False)),
        **dict.fromkeys((5, 6), (True, True)),
        **dict.fromkeys((7, 8), (False, True)),
    }.items():
        assert ("sentence_loss" in lines[step]) == has_sentences, step
        assert ("contrastive_loss" in lines[step]) == has_pairs, step
    assert lines[4]["epoch"] == 0
    assert newest_meta(staged)[1]["position"]["examples"] == 32 % 24  # pairs of four steps


@pytest.mark.parametrize("step", [2, 4, pytest.param(6, marks=pytest.mark.slow)])
def test_stopped_in_any_stage_it_continues_to_the_last_bit(
    staged, small_run, triplets, tmp_path, step
):
    continued = tmp_path / "continued"
    shutil.copytree(staged, continued)
    for path in (continued / "checkpoints").iterdir():
        if int(path.name) > step:
            shutil.rmtree(path)
    small_run(continued, **STAGES, **{"sentences.train": str(triplets)})
    assert numbers(continued) == numbers(staged)


def test_what_cannot_be_used_is_named(staged, triplets):
    (line,) = (staged / "bad_sentences.jsonl").read_text().splitlines()
    assert json.loads(line)["key"] == f"{triplets}, line 11"
    assert json.loads(line)["reason"] == "a sentence is empty"


def test_a_changed_file_is_refused(staged, small_run, triplets, tmp_path):
    workdir = tmp_path / "changed"
    shutil.copytree(staged, workdir)
    other = tmp_path / "nli.csv"
    other.write_text(triplets.read_text().replace("red", "blue", 1))
    with pytest.raises(UserError, match=r"nli\.csv has other sentences than those that the run"):
        small_run(workdir, **STAGES, **{"sentences.train": str(other)})


def test_another_head_is_another_model(staged, small_run, triplets):
    settings = STAGES | {"sentences.train": str(triplets), "sentences.head": "none"}
    with pytest.raises(UserError, match=r"another model: sentences\.head \('mlp' there, 'none'"):
        small_run(staged, allow_changes=["sentences"], **settings)


def test_the_head_is_in_the_checkpoint_and_in_no_model(staged):
    model, _, tokenize = load(staged)
    assert model.sentence_head is None
    assert model.encode_text(tokenize(["red disc"])).shape == (1, 16)


@pytest.mark.slow
def test_the_steps_on_pairs_are_those_of_a_run_that_starts_from_the_sentences_model(
    staged, small_run, triplets, tmp_path
):
    """The optimiser, the schedule and the order of the pairs begin anew."""
    alone, after = tmp_path / "alone", tmp_path / "after"
    settings = {"sentences.train": str(triplets), **STAGES, "sentences.head": "none"}
    small_run(alone, **settings | {"total_steps": 8, "sentences.until_step": 4})
    shutil.copytree(alone, tmp_path / "first")
    for path in (tmp_path / "first" / "checkpoints").iterdir():
        if int(path.name) > 4:
            shutil.rmtree(path)
    small_run(after, total_steps=4, init_from=str(tmp_path / "first"))
    names = ("loss", "contrastive_loss", "learning_rate", "grad_norm", "epoch")
    whole = [[line[name] for name in names] for line in numbers(alone) if line["step"] > 4]
    apart = [[line[name] for name in names] for line in numbers(after)]
    np.testing.assert_allclose(whole, apart, rtol=1e-5)


def test_a_run_on_sentences_alone_needs_no_pairs(small_run, triplets, staged, tmp_path):
    """SimCSE on a model that was trained before; its image tower stays as it is."""
    run = {
        "data.train": None,
        "data.validation": None,
        "total_steps": 3,
        "sentences.only_steps": 3,
        "sentences.train": str(triplets),
        "sentences.batch_size": 8,
        "init_from": str(staged),
    }
    metrics = small_run(tmp_path / "run", **run)
    assert metrics["sentences_per_second"] > 0
    assert "images_per_second" not in metrics
    (before, *_), (after, *_) = load(staged), load(tmp_path / "run")
    np.testing.assert_array_equal(before.visual.conv1.kernel, after.visual.conv1.kernel)
    assert not np.array_equal(before.text.text_projection, after.text.text_projection)
    metrics = small_run(tmp_path / "new", **run | {"init_from": None})  # a vocabulary of sentences
    assert metrics["sentence_loss"] > 0


def test_captions_of_the_run_are_sentences(small_run, tmp_path):
    run = {"total_steps": 3, "sentences.batch_size": 8, "sentences.train": "captions"}
    metrics = small_run(tmp_path / "run", **run)
    assert metrics["sentence_loss"] > 0
    assert metrics["images_per_second"] > 0
    assert metrics["duplicate_sentences"] >= 0
