"""Whole runs, as a user starts, kills and continues them."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from configs import cc3m
from cyclip_jax.errors import UserError
from cyclip_jax.runtime.clock import PHASES
from cyclip_jax.train import train
from cyclip_jax.training.settings import checked
from cyclip_jax.workdir.config_json import read_config
from cyclip_jax.workdir.metrics import metrics_at, read_metrics
from tests import tiny
from tests.runs import ROOT, finish, wait_for_step
from tests.workdir.test_checkpoints import data_file, flip_bit

# What a line says of the clock, not of the mathematics.
TIMINGS = (
    "images_per_second",
    "data_wait_share",
    "goodput",
    "goodput_of_all_processes",
    *(f"{phase}_seconds" for phase in PHASES),
)


def mathematics(workdir):
    """Every line of metrics.jsonl without its timings."""
    lines = []
    for line in read_metrics(workdir):
        line = {name: value for name, value in line.items() if name not in TIMINGS}
        if len(line) > 1:
            lines.append(line)
    return lines


def test_a_run_learns_its_pairs(finished):
    workdir, _ = finished
    first, last = metrics_at(workdir, 1), metrics_at(workdir, 120)
    assert last["loss"] < first["loss"] / 2
    for direction in ("image_to_text", "text_to_image"):
        assert last[f"val/{direction}_recall@1"] > 3 * last[f"val/chance_{direction}_recall@1"]


def test_a_run_writes_what_it_promises(finished):
    workdir, output = finished
    assert {path.name for path in workdir.iterdir()} >= {
        "config.json",
        "checkpoints",
        "metrics.json",
        "metrics.jsonl",
        "tensorboard",
        "tokenizer.model",
        "train.log",
    }
    curves = EventAccumulator(str(workdir / "tensorboard")).Reload().Tags()["tensors"]
    assert {"train/loss", "train/grad_norm", "system/goodput", "val/loss"} <= set(curves)
    assert {"system/compile_seconds", "system/images_per_second"} <= set(curves)
    assert {name.partition("/")[0] for name in curves} == {
        *("train", "system", "val", "report", "_hparams_"),
    }
    assert not [name for name in curves if "_ci_" in name or "chance_" in name]
    lines = [line for line in mathematics(workdir) if "loss" in line]
    assert [line["step"] for line in lines] == list(range(1, 121))
    assert lines[0].keys() >= {
        "loss",
        "contrastive_loss",
        "inmodal_cyclic_loss",
        "crossmodal_cyclic_loss",
        "inmodal_consistency",
        "crossmodal_consistency",
        "temperature",
        "embedding_rank",
        "image_to_text_accuracy",
        "text_to_image_accuracy",
        "learning_rate",
        "grad_norm",
        "skipped_steps",
        "epoch",
    }
    assert lines[0]["learning_rate"] == pytest.approx(5e-4)  # 1/10 of the warm-up
    assert lines[9]["learning_rate"] == pytest.approx(5e-3)
    assert {line["step"]: line["collapsed"] for line in lines if "collapsed" in line} == {
        step: 0 for step in range(100, 121)
    }
    evaluated = [line["step"] for line in mathematics(workdir) if "val/loss" in line]
    assert evaluated == [40, 80, 120]
    saved = sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())
    assert saved == [80, 100, 120]
    described = json.loads((workdir / "config.json").read_text())
    assert described["config"]["optimizer"]["learning_rate"] == 5e-3
    assert described["versions"]["jax"]
    for text in ("parameters", "train step compiled in", "step 120/120", "val", "120 steps done"):
        assert text in output
    log = (workdir / "train.log").read_text()
    assert "visual/conv1/kernel" in log
    outlook = " at this speed for the remaining 109 steps; 3 evaluations and 6 checkpoints come on"
    assert output.count(outlook) == log.count(outlook) == 1


def test_bad_examples_are_named_and_counted(finished):
    workdir, output = finished
    assert "replaced bad examples: 2 of 26 (" in output
    lines = (workdir / "bad_examples.jsonl").read_text().splitlines()
    reasons = {json.loads(line)["index"]: json.loads(line)["reason"] for line in lines}
    assert reasons.keys() == {24, 25}
    assert "decoded" in reasons[24] and "caption is empty" in reasons[25]
    assert metrics_at(workdir, 120)["val/pairs"] == 24


def test_killed_and_terminated_and_continued_is_as_if_never_stopped(start, finished, tmp_path):
    process = start(tmp_path)
    wait_for_step(process, tmp_path, 30)
    process.kill()
    process.communicate()

    process = start(os.path.relpath(tmp_path, ROOT))  # which is the same folder
    wait_for_step(process, tmp_path, 70)
    process.send_signal(signal.SIGTERM)
    output = finish(process)
    assert "continuing from step" in output and ", as at the last start)\n" in output
    step = re.search(r"asked to stop at step (\d+)", output)[1]
    assert f"stopping: saving step {step}; once more ends the run at once" in output
    assert "Traceback" not in output

    output = finish(start(tmp_path))
    assert "continuing from step" in output
    assert mathematics(tmp_path) == mathematics(finished[0])


@pytest.mark.slow
def test_killed_at_many_moments_is_as_if_never_stopped(start, finished, tmp_path):
    for step in (5, 21, 40, 61, 77, 101):
        process = start(tmp_path)
        wait_for_step(process, tmp_path, step)
        time.sleep(0.037 * (step % 7))
        process.kill()
        process.communicate()
    finish(start(tmp_path))
    assert mathematics(tmp_path) == mathematics(finished[0])


@pytest.mark.slow
def test_a_flipped_bit_costs_the_steps_since_the_checkpoint_before(start, finished, tmp_path):
    shutil.copytree(finished[0], tmp_path, dirs_exist_ok=True)
    path = data_file(tmp_path, 120)
    flip_bit(path, 4 * path.stat().st_size)
    output = finish(start(tmp_path))
    assert "Checkpoint 120 is damaged" in output and "continuing from step 100" in output
    assert mathematics(tmp_path) == mathematics(finished[0])
    assert (tmp_path / "damaged_checkpoints").is_dir()


def test_a_finished_run_only_shows_its_table_again(start, finished):
    workdir, _ = finished
    before = (workdir / "metrics.jsonl").read_text()
    output = finish(start(workdir))
    assert "image_to_text_recall@1" in output
    assert (workdir / "metrics.jsonl").read_text() == before


def test_evaluate_gives_the_figures_of_the_run(start, finished, tmp_path):
    workdir, _ = finished
    output = finish(start(None, f"--checkpoint={workdir}", module="evaluate"))
    assert "image_to_text_recall@1" in output
    results = json.loads((workdir / "evals" / "step_120.json").read_text())
    expected = metrics_at(workdir, 120)
    assert results == {name: expected[name] for name in results}
    assert len(results) > 10


def test_another_model_in_the_same_workdir_is_refused(pairs, finished):
    workdir, _ = finished
    before = (workdir / "config.json").read_text()
    message = (
        f"{workdir} holds a run with another model: model.text_layers (1 there, 2 in your config); "
        "choose another --workdir, or set the config to the same model"
    )
    with pytest.raises(UserError, match=re.escape(message)):
        train(tiny_config(pairs, **{"model.text_layers": 2}), workdir)
    assert (workdir / "config.json").read_text() == before


def test_a_shorter_run_than_the_one_there_is_refused(pairs, finished):
    with pytest.raises(UserError, match="is at step 120, past this config's 100 steps"):
        train(tiny_config(pairs, total_steps=100), finished[0], allow_changes=["total_steps"])


def test_a_run_of_non_finite_losses_ends_with_the_reason(pairs, tmp_path):
    small = {"model.name": "ViT-tiny-quickgelu", "model.vision_width": 16, "model.vision_layers": 1}
    settings = {"optimizer.learning_rate": 1e30, "max_skipped_in_a_row": 3}
    with pytest.raises(UserError, match="not finite in 3 steps in a row"):
        train(tiny_config(pairs, **small, **settings), tmp_path)
    assert read_config(tmp_path).model.name == "ViT-tiny"  # the name of ours


def test_main_says_what_is_missing_in_one_sentence(environment, tmp_path):
    command = [sys.executable, "-m", "cyclip_jax.main", "--config=configs/cc3m.py"]
    process = subprocess.run(
        [*command, f"--workdir={tmp_path}"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 1
    *_, last = process.stderr.strip().splitlines()
    assert last.startswith("error: config.data.train is empty")
    assert "Traceback" not in process.stderr
    assert not list(tmp_path.iterdir())


def tiny_config(pairs, **overrides):
    config = tiny.get_config()
    config.data.train = str(pairs)
    config.update_from_flattened_dict(overrides)
    return config


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"data.train": "/no/such.csv"}, "/no/such.csv"),
        ({"data.image_key": "file"}, r"no column 'file' \(columns: image, caption\)"),
        ({"batch_size": 64}, "64"),
        ({"batch_size": 12}, "12 does not split evenly over 8 devices"),
        ({"optimizer.warmup_steps": 120}, "warmup_steps 120"),
        ({"num_epochs": 3}, "exactly one of config.total_steps and config.num_epochs"),
        ({"model.name": "RN5"}, "RN5"),
        ({"data.tokenizer": "clip_bpe"}, "vocab"),
        ({"data.tokenizer": "words"}, "unknown tokenizer 'words'"),
        ({"data.augmentation": "mixup"}, "there is no augmentation 'mixup'"),
        ({"evals.val.type": "recall"}, "config.evals.val.type is 'recall'"),
        ({"data.validation": "/no/val.csv"}, "/no/val.csv"),
        ({"loss.cyclic_normalization": "mean"}, "cyclic_normalization"),
        ({"init_from": "/no/run"}, "there is no file or directory /no/run"),
    ],
)
def test_bad_input_is_refused_before_anything_is_compiled(
    pairs, tmp_path, monkeypatch, overrides, message
):
    monkeypatch.setattr("cyclip_jax.train.compile_phases", None)
    with pytest.raises(UserError, match=message):
        train(tiny_config(pairs, **overrides), tmp_path / "run")


def test_a_misspelt_setting_of_an_evaluation_is_named(pairs, tmp_path):
    config = tiny_config(pairs)
    with config.unlocked():
        config.evals.val.galery_captions = 3
    with pytest.raises(UserError, match=r"config.evals.val: .*galery_captions"):
        train(config, tmp_path / "run")


def test_length_by_epochs_leaves_out_the_tail():
    config = cc3m.get_config()
    config.data.train = "train.csv"
    assert checked(config).run_length(128 * 10 + 127) == 64 * 10


def test_a_run_describes_itself(finished):
    config = read_config(finished[0])
    assert config.model.vision_width == 8
    with pytest.raises(UserError, match="is not the workdir of a run"):
        read_config("/no/run")
