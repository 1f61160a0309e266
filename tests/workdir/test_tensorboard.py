"""What TensorBoard shows of a run: curves in groups, settings, and pictures of evaluations."""

import io

import numpy as np
import tensorflow as tf
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from cyclip_jax import defaults
from cyclip_jax.evals.flat import flattened, values_alone
from cyclip_jax.evals.metric import SHARE
from cyclip_jax.runtime.sections import flat
from cyclip_jax.workdir.metrics import MetricWriter, metrics_at, read_metrics

PICTURE = np.zeros((40, 60, 3), np.uint8)
RESULTS = {"val": {"top1": SHARE.metric(0.5, (0.25, 0.75), 0.1)}}


class Remembering:
    """Stands for Weights & Biases: it keeps what it is told."""

    def __init__(self):
        self.numbers, self.pictures = [], []

    def write(self, step, numbers):
        self.numbers.append((step, numbers))

    def write_image(self, step, name, pixels):
        self.pictures.append((step, name, pixels.shape))


def read(workdir):
    """(an EventAccumulator of a workdir, {curve: {step: number}})."""
    events = EventAccumulator(str(workdir / "tensorboard"), size_guidance={"tensors": 0})
    events.Reload()
    plugins = {
        name: events.SummaryMetadata(name).plugin_data.plugin_name
        for name in events.Tags()["tensors"]
    }
    return events, {
        name: {one.step: float(tf.make_ndarray(one.tensor_proto)) for one in events.Tensors(name)}
        for name, plugin in plugins.items()
        if plugin == "scalars"
    }


def write(workdir, first_step, steps, **options):
    """Writes what a run writes of some steps."""
    writer = MetricWriter(workdir, first_step=first_step, enabled=True, **options)
    for step in steps:
        measured = {"loss": 1 / step, "learning_rate": 0.5, "examples/cc3m": 8.0}
        writer.write(step, measured, system={"goodput": 0.75, "images_per_second": 90.0})
    writer.write(steps[-1], flattened(RESULTS), curves=values_alone(RESULTS))
    writer.write_image(steps[-1], "val/gallery", PICTURE)
    writer.close()


CURVES = {
    *("train/loss", "train/learning_rate", "examples/cc3m"),
    *("system/goodput", "system/images_per_second", "val/top1"),
}


def test_curves_have_groups_and_the_lines_have_the_names_that_they_had(tmp_path):
    mirror = Remembering()
    write(tmp_path, 0, [1, 2], mirror=mirror)
    _, curves = read(tmp_path)
    assert curves.keys() == CURVES  # no interval and no chance
    assert curves["train/loss"] == {1: 1.0, 2: 0.5} and curves["val/top1"] == {2: 0.5}
    assert metrics_at(tmp_path, 2) == {
        "step": 2,
        "loss": 0.5,
        "learning_rate": 0.5,
        "examples/cc3m": 8.0,
        "goodput": 0.75,
        "images_per_second": 90.0,
        "val/top1": 0.5,
        "val/top1_ci_low": 0.25,
        "val/top1_ci_high": 0.75,
        "val/chance_top1": 0.1,
    }
    assert {name for _, numbers in mirror.numbers for name in numbers} == CURVES
    assert mirror.pictures == [(2, "val/gallery", (40, 60, 3))]


def test_pictures_stand_at_their_step(tmp_path):
    write(tmp_path, 0, [1, 2])
    events, _ = read(tmp_path)
    (shown,) = events.Tensors("val/gallery")
    width, height, png = tf.make_ndarray(shown.tensor_proto)
    assert (shown.step, int(width), int(height)) == (2, 60, 40)
    assert np.array_equal(Image.open(io.BytesIO(png)), PICTURE)


def test_the_settings_are_a_table_by_their_full_names(tmp_path):
    write(tmp_path, 0, [1], settings=flat(defaults.get_config().to_dict()))
    events, _ = read(tmp_path)
    metadata = events.SummaryMetadata("_hparams_/session_start_info").plugin_data
    assert metadata.plugin_name == "hparams"
    content = plugin_data_pb2.HParamsPluginData.FromString(metadata.content)
    shown = content.session_start_info.hparams
    assert shown["optimizer.learning_rate"].number_value == 5e-4
    assert shown["model.name"].string_value == "RN50"
    assert "data.train" not in shown  # which is not set


def test_a_run_that_goes_on_goes_on_in_its_curves(tmp_path):
    write(tmp_path, 0, [1, 2, 3])
    write(tmp_path, 2, [3, 4])  # from the checkpoint of step 2
    _, curves = read(tmp_path)
    assert curves["train/loss"] == {step: np.float32(1 / step) for step in (1, 2, 3, 4)}
    assert [line["step"] for line in read_metrics(tmp_path) if "loss" in line] == [1, 2, 3, 4]


def test_what_cannot_be_written_stops_nothing_and_numbers_come_later(tmp_path, caplog):
    writer = MetricWriter(tmp_path, first_step=0, enabled=True)
    (tmp_path / "tensorboard").write_text("")  # a file where the folder should be
    writer.write(1, {"loss": 1.0})
    writer.write_image(1, "val/gallery", PICTURE)
    assert caplog.text.count("TensorBoard's files wait until they can be written") == 1
    (tmp_path / "tensorboard").unlink()
    writer.write(2, {"loss": 0.5})
    writer.close()
    events, curves = read(tmp_path)
    assert curves == {"train/loss": {1: 1.0, 2: 0.5}}
    assert "val/gallery" not in events.Tags()["tensors"]


def test_other_processes_show_nothing(tmp_path):
    writer = MetricWriter(tmp_path, first_step=0, enabled=False, mirror=Remembering())
    writer.write_image(1, "val/gallery", PICTURE)
    writer.close()
    assert not list(tmp_path.iterdir())
