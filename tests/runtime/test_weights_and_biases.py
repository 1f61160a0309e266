"""Weights & Biases gets what TensorBoard gets, here offline; by default it is not imported."""

import json
import struct
import sys

import numpy as np
import pytest

from cyclip_jax import defaults
from cyclip_jax.errors import UserError
from cyclip_jax.runtime import weights_and_biases
from cyclip_jax.runtime.weights_and_biases import WandbMirror, WeightsAndBiases
from cyclip_jax.workdir.metrics import MetricWriter, read_metrics

SETTINGS = {"project": None, "entity": None, "name": None, "mode": None}


def offline():
    config = defaults.get_config()
    config.wandb.project, config.wandb.mode = "cyclip", "offline"
    return config


def records(workdir):
    """What wandb has written in a workdir for each process that ran there, lists of its records."""
    paths = sorted((workdir / "wandb").glob("offline-run-*/*.wandb"))
    return [list(records_of(path.read_bytes())) for path in paths]


def records_of(content, *, block=2**15, header=7):
    """The records in a file of wandb's, which is a log of LevelDB's after seven bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    place, parts = header, b""
    while place + header <= len(content):
        if block - place % block < header:
            place += block - place % block  # a block's end has no room for a header
            continue
        _, length, kind = struct.unpack_from("<IHB", content, place)
        parts += content[place + header : place + header + length]
        place += header + length
        if kind in (1, 4):  # all of a record, or its last part
            yield Record.FromString(parts)
            parts = b""


def history(process):
    """{step: {name: number}} of a process's records."""
    steps = {}
    for record in process:
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            line = {(i.key or ".".join(i.nested_key)): json.loads(i.value_json) for i in items}
            steps.setdefault(line["_step"], {}).update(line)
    return {
        step: {name: value for name, value in line.items() if not name.startswith("_")}
        for step, line in steps.items()
    }


def run_of(process):
    (run,) = [record.run for record in process if record.WhichOneof("record_type") == "run"]
    return run


def write(config, workdir, lines, first_step=0):
    """Writes lines as a run's process does; returns what the user was told."""
    said = []
    mirror = WandbMirror(config, workdir, say=said.append, enabled=True)
    writer = MetricWriter(workdir, first_step=first_step, enabled=True, mirror=mirror)
    for step, metrics in lines:
        writer.write(step, metrics, system={"goodput": 0.5})
    writer.close()
    mirror.close()
    return said


def test_every_metric_arrives_under_its_name_and_step_in_one_run_over_restarts(tmp_path):
    import wandb

    first = [(1, {"loss": 2.5}), (2, {"loss": 2.0}), (2, {"val/top1": 0.25})]
    second = [(3, {"loss": 1.0}), (4, {"val/top1": 0.5})]
    assert write(offline(), tmp_path / "run", first) == []
    wandb.teardown()  # as at the end of a process
    assert write(offline(), tmp_path / "run", second, first_step=2) == []
    wandb.teardown()
    processes = records(tmp_path / "run")
    assert len(processes) == 2
    arrived = {step: line for process in processes for step, line in history(process).items()}
    expected = {}
    for line in read_metrics(tmp_path / "run"):
        curves = {"system/goodput": line.pop("goodput")}
        if "loss" in line:
            curves["train/loss"] = line.pop("loss")
        expected.setdefault(line.pop("step"), {}).update(line | curves)
    assert arrived == expected and len(expected) == 4
    runs = [run_of(process) for process in processes]
    assert runs[0].run_id == runs[1].run_id == (tmp_path / "run" / "wandb_id").read_text()
    assert {run.project for run in runs} == {"cyclip"}
    assert {run.display_name for run in runs} == {"run"}
    config = {item.key: json.loads(item.value_json) for item in runs[0].config.update}
    assert config["optimizer.learning_rate"] == 5e-4


def test_pictures_of_evaluations_arrive_at_their_step_and_once(tmp_path, monkeypatch):
    class Remembering(Failing):
        step, sent = 7, []

        def log(self, content, step):
            self.sent.append((step, content))

        def Image(self, pixels):
            return pixels.shape

    monkeypatch.setitem(sys.modules, "wandb", Remembering(None))
    mirror = WandbMirror(offline(), tmp_path, say=pytest.fail, enabled=True)
    for step in (6, 8):  # from a checkpoint before what was sent
        mirror.write_image(step, "val/gallery", np.zeros((4, 6, 3), np.uint8))
    assert Remembering.sent == [(8, {"val/gallery": (4, 6, 3)})]


def test_nothing_is_sent_by_default(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # importing it would fail
    assert write(defaults.get_config(), tmp_path, [(1, {"loss": 1.0})]) == []
    assert not (tmp_path / "wandb_id").exists()


def test_other_processes_send_nothing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    mirror = WandbMirror(offline(), tmp_path, say=pytest.fail, enabled=False)
    mirror.write(1, {"loss": 1.0})
    mirror.close()


class Failing:
    """Stands for the module, whose service fails at one of its calls."""

    step = 0

    def __init__(self, call):
        self._call = call

    def __getattr__(self, name):
        def called(*_, **__):
            if name == self._call:
                raise ConnectionError("no network")
            return self

        return called


def test_a_picture_that_it_refuses_ends_nothing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", Failing("Image"))
    said = []
    mirror = WandbMirror(offline(), tmp_path, say=said.append, enabled=True)
    for step in (1, 2):
        mirror.write_image(step, "val/gallery", np.zeros((4, 6, 3), np.uint8))
    assert len(said) == 1 and "no network" in said[0]


@pytest.mark.parametrize("call", ["init", "log", "finish"])
def test_its_failure_is_told_once_and_ends_nothing(tmp_path, monkeypatch, call):
    monkeypatch.setitem(sys.modules, "wandb", Failing(call))
    said = write(offline(), tmp_path, [(1, {"loss": 1.0}), (2, {"loss": 0.5})])
    assert len(said) == 1 and "no network" in said[0] and "metrics.jsonl has everything" in said[0]
    assert [line["loss"] for line in read_metrics(tmp_path)] == [1.0, 0.5]


def test_what_a_restart_does_again_is_not_sent_again(tmp_path, monkeypatch):
    class Remembering(Failing):
        step, sent = 7, []

        def log(self, numbers, step):
            self.sent.append(step)

    monkeypatch.setitem(sys.modules, "wandb", Remembering(None))
    assert write(offline(), tmp_path, [(step, {"loss": 1.0}) for step in range(5, 10)]) == []
    assert Remembering.sent == [7, 8, 9]


def test_a_missing_package_is_named_with_what_installs_it(monkeypatch):
    monkeypatch.setattr(weights_and_biases.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'cyclip_jax\[wandb\]'"):
        WeightsAndBiases(**SETTINGS | {"project": "cyclip"})
    WeightsAndBiases(**SETTINGS)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"project": "cyclip", "mode": "of"}, "config.wandb.mode 'of'"),
        ({"entity": "me"}, "config.wandb.entity is set, but not config.wandb.project"),
        ({"name": "one"}, "config.wandb.name is set, but not config.wandb.project"),
    ],
)
def test_settings_that_cannot_be_followed_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        WeightsAndBiases(**SETTINGS | settings)
