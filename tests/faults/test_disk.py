"""A disk that is full: for a while, to the end, and from the start."""

import io
import json
import logging
import pathlib
import sys
import time
import types

import jax
import jax.numpy as jnp
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cyclip_jax.data.bad_examples import BadExamples
from cyclip_jax.errors import UserError
from cyclip_jax.evals import Encoders, Evaluation, EvaluationFailed, Metric, evaluate
from cyclip_jax.files import Appender
from cyclip_jax.workdir.checkpoints import Checkpointer, verify
from cyclip_jax.workdir.console import Console
from cyclip_jax.workdir.metrics import MetricWriter, read_metrics
from tests.faults.conftest import contents, limited_files
from tests.test_train import mathematics


def save(checkpointer, step):
    noise = jax.random.normal(jax.random.key(step), (64, 64))  # which cannot be compressed
    model, training = {"kernel": noise}, {"step": jnp.int32(step)}
    checkpointer.save(step, model=model, training=training, meta={"step": step})


def steps_on_disk(workdir):
    names = (path.name for path in (workdir / "checkpoints").iterdir())
    return sorted(int(name) for name in names if name.isdigit())


@pytest.mark.parametrize("size", [0, 4096], ids=["no file", "no large file"])
def test_a_checkpoint_that_finds_no_room_costs_itself_alone(tmp_path, caplog, size):
    checkpointer = Checkpointer(tmp_path, keep=2)
    for step in (1, 2):
        save(checkpointer, step)
        assert checkpointer.wait() is None
    before = contents(tmp_path)

    with limited_files(size):
        save(checkpointer, 3)
        failure = checkpointer.wait()
    assert "File too large" in str(failure)
    assert f"CHECKPOINT 3 COULD NOT BE WRITTEN to {tmp_path}" in caplog.text
    assert contents(tmp_path).items() >= before.items()

    save(checkpointer, 4)
    assert checkpointer.wait() is None
    checkpointer.close()
    Checkpointer(tmp_path).close()
    left = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert left == {"2", "4"}  # and nothing of half a third
    verify(tmp_path / "checkpoints" / "4")


def test_a_failed_save_that_nobody_waited_for_is_said_and_not_raised(tmp_path, caplog):
    checkpointer = Checkpointer(tmp_path)
    with limited_files(0):
        save(checkpointer, 1)
        save(checkpointer, 2)
    checkpointer.close()
    assert "CHECKPOINT 1 COULD" in caplog.text and "CHECKPOINT 2 COULD" in caplog.text


def test_lines_wait_for_room_and_are_then_continued_at_the_byte(tmp_path, caplog):
    file = Appender(tmp_path / "file")
    file.write("first\n")
    with limited_files(10):
        file.write("second\n")
        file.write("third\n")
    assert (tmp_path / "file").read_text() == "first\nseco"
    assert caplog.text.count("CANNOT BE WRITTEN") == 1
    assert isinstance(file.failure, OSError)
    file.write("fourth\n")
    assert file.failure is None
    file.close()
    assert (tmp_path / "file").read_text() == "first\nsecond\nthird\nfourth\n"


def test_lines_that_never_find_room_are_in_the_log_of_errors(caplog):
    file = Appender("/dev/full")
    file.write("a line\n")
    file.close()
    assert "No space left on device" in caplog.text
    assert caplog.text.rstrip().endswith("/dev/full lacks these lines:\na line")


class Remote:
    """A remote file that keeps what it takes, and at times cannot send it."""

    def __init__(self):
        self.is_away, self.taken, self.sent = False, b"", b""

    def write(self, data):
        self.taken += data

    def flush(self):
        if self.is_away:
            raise tf.errors.UnavailableError(None, None, "the store is away")
        self.sent = self.taken

    close = flush


def test_lines_wait_for_a_remote_store_too(caplog):
    remote = Remote()
    with pytest.MonkeyPatch.context() as patch:
        store = types.SimpleNamespace(open=lambda mode: remote)
        patch.setattr("cyclip_jax.files.epath.Path", lambda path: store)
        file = Appender("gs://bucket/file")
    file.write("first\n")
    remote.is_away = True
    file.write("second\n")
    file.write("third\n")
    assert "the store is away" in str(file.failure)
    assert remote.sent == b"first\n" and caplog.text.count("CANNOT BE WRITTEN") == 1
    remote.is_away = False
    file.flush()
    assert file.failure is None and remote.sent == b"first\nsecond\nthird\n"
    remote.is_away = True
    file.close()  # ends no run


def test_bad_examples_are_counted_and_named_though_the_disk_is_full(tmp_path, caplog):
    path = tmp_path / "bad_examples.jsonl"
    bad_examples = BadExamples(path, 1.0, 6)
    bad_examples.add("a.jpg", 0, "a reason")
    with limited_files(0):
        bad_examples.add("b.jpg", 1, "a reason")
        assert isinstance(bad_examples.flush(), OSError)
    bad_examples.add("c.jpg", 2, "a reason")
    assert bad_examples.flush() is None and bad_examples.count == 3
    bad_examples.close()
    assert [json.loads(line)["index"] for line in path.read_text().splitlines()] == [0, 1, 2]


def test_a_log_and_a_terminal_that_take_nothing_stop_no_run(tmp_path, monkeypatch):
    (tmp_path / "train.log").symlink_to("/dev/full")
    full = io.FileIO("/dev/full", "w")
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(full, write_through=True))
    console = Console(tmp_path, enabled=True)
    console.say("a line")
    console.report(1, 2, {"loss": 1.0, "images_per_second": 1.0}, seconds_left=1.0)
    logging.getLogger().warning("a warning")
    console.close()
    full.close()


def events(workdir):
    """{metric: [(step, value)]} of TensorBoard's files."""
    accumulator = EventAccumulator(str(workdir / "tensorboard"), size_guidance={"tensors": 0})
    accumulator.Reload()
    return {
        name: sorted(
            {(event.step, float(tf.make_ndarray(event.tensor_proto))) for event in tensors}
        )
        for name in accumulator.Tags()["tensors"]
        for tensors in [accumulator.Tensors(name)]
    }


def test_metrics_and_tensorboard_lack_nothing_once_there_is_room(tmp_path, caplog):
    writer = MetricWriter(tmp_path, first_step=0, enabled=True)
    for step in range(1, 9):
        with limited_files(100 if 3 <= step <= 6 else None):
            writer.write(step, {"loss": step / 8, "accuracy": 0.5})
            failure = writer.flush()
        assert (failure is None) == (step < 3 or step > 6)
    writer.close()
    assert [line["step"] for line in read_metrics(tmp_path)] == list(range(1, 9))
    assert events(tmp_path)["train/loss"] == [(step, step / 8) for step in range(1, 9)]
    assert caplog.text.count("CANNOT BE WRITTEN") == 1
    assert caplog.text.count("TensorBoard's files wait") == 1


@pytest.mark.slow
def test_a_disk_that_was_full_for_a_while_costs_a_run_nothing(
    small_run, undisturbed, tmp_path, at_step, capsys, caplog
):
    with limited_files() as limit:
        at_step(3, lambda: limit(0))
        at_step(9, lambda: limit(None))
        assert small_run(tmp_path)["step"] == 12
    assert mathematics(tmp_path) == mathematics(undisturbed)
    assert len(events(tmp_path)["train/loss"]) == 12
    assert steps_on_disk(tmp_path) == [12]
    assert "CHECKPOINT 4 COULD" in caplog.text and "CHECKPOINT 8 COULD" in caplog.text
    assert "step 9/12" in (tmp_path / "train.log").read_text()


@pytest.mark.slow
def test_a_disk_that_stays_full_ends_the_run_with_the_reason_and_it_can_be_continued(
    small_run, undisturbed, tmp_path, at_step, capsys, caplog
):
    message = r"12 steps are done, but checkpoint 12 and metrics.jsonl could not be written"
    with limited_files() as limit, pytest.raises(UserError, match=message):

        def fill_up():
            while not (tmp_path / "checkpoints" / "4" / "checksums.json").exists():
                time.sleep(0.01)
            limit(0)

        at_step(7, fill_up)
        small_run(tmp_path)
    assert '{"step": 12, ' in caplog.text  # the lines that metrics.jsonl lacks
    assert steps_on_disk(tmp_path) == [4]
    small_run(tmp_path)
    assert "continuing from step 4" in capsys.readouterr().out
    assert mathematics(tmp_path) == mathematics(undisturbed)


def test_a_disk_that_is_full_from_the_start_is_said_before_the_data_is_opened(
    small_run, tmp_path, monkeypatch
):
    monkeypatch.setattr("cyclip_jax.training.open_run.open_source", None)
    message = f"--workdir={tmp_path} cannot be written: .*too large"
    with limited_files(0), pytest.raises(UserError, match=message):
        small_run(tmp_path)
    assert not contents(tmp_path)


def test_a_disk_that_fills_up_while_a_run_begins_is_said_too(small_run, tmp_path, monkeypatch):
    def write_config(*_):
        pathlib.Path("/dev/full").write_text("{}")

    monkeypatch.setattr("cyclip_jax.training.open_run.write_config", write_config)
    with pytest.raises(UserError, match=f"No space left on device; free space for {tmp_path}"):
        small_run(tmp_path)


def test_an_evaluation_that_finds_no_room_costs_its_details_and_no_other(tmp_path):
    def large(encoders, output):
        output.json("details", "x" * 1000)
        return {"top1": Metric(0.5)}

    def small(encoders, output):
        return {"top1": Metric(0.25)}

    evaluators = {"large": Evaluation("zeroshot", large), "small": Evaluation("geometry", small)}
    message = r"the evaluation large failed: .*File too large"
    with limited_files(500), pytest.raises(EvaluationFailed, match=message) as failed:
        evaluate(evaluators, Encoders(*[None] * 7), directory=tmp_path)
    assert failed.value.results == {"small": {"top1": Metric(0.25)}}
