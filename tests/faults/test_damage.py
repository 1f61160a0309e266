"""Checkpoints damaged in every way: a run goes on from the newest whole one."""

import itertools
import logging
import shutil

import numpy as np
import pytest

from cyclip_jax.errors import UserError
from cyclip_jax.workdir.checkpoints import ChecksumError, verify
from cyclip_jax.workdir.metrics import read_metrics
from tests.test_train import mathematics
from tests.workdir.test_checkpoints import data_file, flip_bit, restore, save_steps


def files_of(directory):
    return sorted(path for path in directory.rglob("*") if path.is_file() and path.stat().st_size)


def test_25_flipped_bits_anywhere_in_a_checkpoint_are_all_noticed(tmp_path):
    save_steps(tmp_path, [1])
    directory = tmp_path / "checkpoints" / "1"
    files = files_of(directory)
    ends = np.cumsum([8 * path.stat().st_size for path in files])
    for bit in np.random.default_rng(0).integers(ends[-1], size=25):
        number = int(np.searchsorted(ends, bit, side="right"))
        within = int(bit - (ends[number - 1] if number else 0))
        flip_bit(files[number], within)
        with pytest.raises(ChecksumError):
            verify(directory)
        flip_bit(files[number], within)
    verify(directory)


def halve(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_in_the_middle(path):
    flip_bit(path, 4 * path.stat().st_size)


def empty(path):
    path.write_bytes(b"")


def fill_with_zeros(path):
    path.write_bytes(bytes(path.stat().st_size))  # what a loss of power may leave


FILES = {
    "arrays": lambda directory: data_file(directory.parent.parent, int(directory.name)),
    "meta": lambda directory: directory / "meta" / "metadata",
    "structure": lambda directory: directory / "model" / "_METADATA",
    "step": lambda directory: directory / "_CHECKPOINT_METADATA",
    "checksums": lambda directory: directory / "checksums.json",
}
DAMAGES = {
    "cut in the middle": halve,
    "one bit flipped": flip_in_the_middle,
    "missing": lambda path: path.unlink(),
    "empty": empty,
    "zeros": fill_with_zeros,
}


@pytest.mark.parametrize(
    "file, damage",
    # Without checksums it is as after a kill between commit and checksums, which loses nothing.
    [pair for pair in itertools.product(FILES, DAMAGES) if pair != ("checksums", "missing")],
)
def test_whatever_is_damaged_the_checkpoint_before_is_restored(tmp_path, caplog, file, damage):
    save_steps(tmp_path, [1, 2])
    DAMAGES[damage](FILES[file](tmp_path / "checkpoints" / "2"))
    with caplog.at_level(logging.ERROR):
        assert restore(tmp_path)[0] == 1
    assert "Checkpoint 2 is damaged" in caplog.text
    assert (tmp_path / "damaged_checkpoints" / "2.0").is_dir()


@pytest.mark.slow
def test_a_run_goes_on_from_the_checkpoint_before_as_if_never_damaged(
    small_run, undisturbed, tmp_path, capsys
):
    shutil.copytree(undisturbed, tmp_path, dirs_exist_ok=True)
    halve(data_file(tmp_path, 12))
    flip_in_the_middle(tmp_path / "checkpoints" / "8" / "meta" / "metadata")
    small_run(tmp_path)
    assert "continuing from step 4" in capsys.readouterr().out
    assert mathematics(tmp_path) == mathematics(undisturbed)


@pytest.mark.slow
def test_a_run_whose_checkpoints_are_all_damaged_stops_once_and_then_begins_anew(
    small_run, undisturbed, tmp_path
):
    shutil.copytree(undisturbed, tmp_path, dirs_exist_ok=True)
    for step in (4, 8, 12):
        halve(data_file(tmp_path, step))
    with pytest.raises(UserError, match="the same command starts from scratch"):
        small_run(tmp_path)
    small_run(tmp_path)
    assert mathematics(tmp_path) == mathematics(undisturbed)


def test_a_damaged_line_of_the_metrics_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n{"step\x00": \xff}\n{"step": 3}\n')
    with pytest.raises(UserError, match=r"line 2 of .*metrics.jsonl is damaged .*; remove it"):
        read_metrics(tmp_path)
