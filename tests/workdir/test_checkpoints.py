import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import multihost_utils
from jax.sharding import PartitionSpec

from cyclip_jax import parallel
from cyclip_jax.errors import UserError
from cyclip_jax.sweep import sweep
from cyclip_jax.train import train
from cyclip_jax.workdir.checkpoints import Checkpointer, ChecksumError, restore_model, verify
from cyclip_jax.workdir.saved import saved_steps
from tests import tiny


def make_items(step):
    model = {"params": {"kernel": jnp.full((64, 64), float(step))}, "batch_stats": {}}
    training = {"step": jnp.int32(step), "rng": jax.random.key(step), "opt_state": (jnp.ones(3),)}
    return model, training


def save_steps(workdir, steps, *, best=lambda steps: None, **options):
    checkpointer = Checkpointer(workdir, **options)
    checkpointer.best = best
    for step in steps:
        model, training = make_items(step)
        checkpointer.save(step, model=model, training=training, meta={"position": step * 10})
    checkpointer.close()


def restore(workdir):
    checkpointer = Checkpointer(workdir)
    model, training = make_items(0)
    restored = checkpointer.restore_newest(model=model, training=training)
    checkpointer.close()
    return restored


def data_file(workdir, step):
    """The file with the most bytes of a checkpoint's model."""
    files = [p for p in (workdir / "checkpoints" / str(step) / "model").rglob("*") if p.is_file()]
    return max(files, key=lambda path: path.stat().st_size)


def flip_bit(path, bit):
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << (bit % 8)
    path.write_bytes(content)


def test_everything_comes_back(tmp_path):
    save_steps(tmp_path, [3])
    step, model, training, meta = restore(tmp_path)
    expected_model, expected_training = make_items(3)
    assert (step, meta) == (3, {"position": 30})
    jax.tree.map(np.testing.assert_array_equal, model, expected_model)
    assert jax.random.key_data(training["rng"]).tolist() == [0, 3]
    assert int(training["step"]) == 3
    np.testing.assert_array_equal(training["opt_state"][0], expected_training["opt_state"][0])


def test_a_save_does_not_ask_whether_to_stop(tmp_path, monkeypatch):
    # JAX compares the numbers of the processes' questions: a step among them would confuse it.
    asked = []
    monkeypatch.setattr(multihost_utils, "reached_preemption_sync_point", asked.append)
    save_steps(tmp_path, [3, 6])
    assert not asked


def test_an_empty_workdir_restores_nothing(tmp_path):
    assert restore(tmp_path) is None
    with pytest.raises(UserError, match="has no checkpoints"):
        restore_model(tmp_path, make_items(0)[0])


def test_the_newest_and_every_nth_are_kept(tmp_path):
    save_steps(tmp_path, range(1, 8), keep=2, keep_every_steps=3)
    kept = sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir())
    assert kept == [3, 6, 7]


def test_the_best_is_kept_besides(tmp_path):
    """Of those that there are: what could not be written is not the best."""
    values = {2: 5.0, 3: 1.0, 99: 9.0}

    def best(steps):
        return max((step for step in steps if step in values), key=values.get, default=None)

    save_steps(tmp_path, range(1, 6), best=best, keep=1, keep_every_steps=3)
    assert saved_steps(tmp_path) == [2, 3, 5]
    values[6] = 7.0
    save_steps(tmp_path, [6, 7], best=best, keep=1)
    assert saved_steps(tmp_path) == [6, 7]


def test_a_flipped_bit_in_any_file_is_noticed(tmp_path):
    save_steps(tmp_path, [1])
    directory = tmp_path / "checkpoints" / "1"
    verify(directory)
    rng = np.random.default_rng(0)
    files = [path for path in directory.rglob("*") if path.is_file() and path.stat().st_size]
    assert len(files) > 5
    for path in files:
        bit = int(rng.integers(8 * path.stat().st_size))
        flip_bit(path, bit)
        with pytest.raises(ChecksumError):
            verify(directory)
        flip_bit(path, bit)
    verify(directory)


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete"])
def test_a_damaged_newest_checkpoint_falls_back_loudly(tmp_path, caplog, damage):
    save_steps(tmp_path, [1, 2])
    path = data_file(tmp_path, 2)
    if damage == "flip":
        flip_bit(path, 4 * path.stat().st_size)
    elif damage == "truncate":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        path.unlink()
    with caplog.at_level(logging.ERROR):
        step, model, _, _ = restore(tmp_path)
    assert step == 1
    assert float(model["params"]["kernel"][0, 0]) == 1
    assert "Checkpoint 2 is damaged" in caplog.text
    assert (tmp_path / "damaged_checkpoints" / "2.0").exists()  # nothing is thrown away
    save_steps(tmp_path, [2])  # and its step can be saved again
    assert restore(tmp_path)[0] == 2


def test_a_kill_between_commit_and_checksums_loses_nothing(tmp_path, caplog):
    save_steps(tmp_path, [1, 2])
    (tmp_path / "checkpoints" / "2" / "checksums.json").unlink()
    with caplog.at_level(logging.WARNING):
        assert restore(tmp_path)[0] == 2
    assert "cannot be verified" in caplog.text


def test_a_broken_checkpoint_without_checksums_is_set_aside_too(tmp_path):
    save_steps(tmp_path, [1, 2])
    (tmp_path / "checkpoints" / "2" / "checksums.json").unlink()
    data_file(tmp_path, 2).write_bytes(b"")
    assert restore(tmp_path)[0] == 1
    assert (tmp_path / "damaged_checkpoints" / "2.0").exists()


def test_an_older_checkpoint_without_checksums_is_damaged(tmp_path):
    save_steps(tmp_path, [1, 2, 3])
    flip_bit(data_file(tmp_path, 3), 999)
    (tmp_path / "checkpoints" / "2" / "checksums.json").unlink()
    assert restore(tmp_path)[0] == 1


def test_when_all_are_damaged_the_run_does_not_silently_start_anew(tmp_path):
    save_steps(tmp_path, [1, 2])
    for step in (1, 2):
        flip_bit(data_file(tmp_path, step), 999)
    with pytest.raises(UserError, match=r"every checkpoint of .* was damaged"):
        restore(tmp_path)


def test_a_good_checkpoint_of_another_state_is_refused_and_stays(tmp_path):
    save_steps(tmp_path, [1])
    checkpointer = Checkpointer(tmp_path)
    model, training = make_items(0)
    with pytest.raises(UserError, match="does not fit the config's model and optimizer"):
        checkpointer.restore_newest(model={**model, "other": jnp.ones(2)}, training=training)
    checkpointer.close()
    assert restore(tmp_path)[0] == 1


def test_a_half_written_checkpoint_is_not_seen(tmp_path):
    save_steps(tmp_path, [1])
    half = tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp"
    half.mkdir()
    (half / "model").write_text("half")
    assert restore(tmp_path)[0] == 1


def test_a_model_is_restored_alone_and_onto_another_mesh(tmp_path):
    save_steps(tmp_path, [1, 2])
    mesh = parallel.create_mesh()
    sharding = jax.sharding.NamedSharding(mesh, PartitionSpec(parallel.DATA_AXIS))
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), make_items(0)[0]
    )
    step, model = restore_model(tmp_path, abstract, step=1)
    assert step == 1
    np.testing.assert_array_equal(model["params"]["kernel"], np.full((64, 64), 1.0))
    assert len(model["params"]["kernel"].sharding.device_set) == 8
    with pytest.raises(UserError, match=r"no checkpoint of step 5; choose one of 1, 2$"):
        restore_model(tmp_path, abstract, step=5)
    flip_bit(data_file(tmp_path, 2), 999)
    with pytest.raises(UserError, match=r"checkpoint 2 of .* is damaged"):
        restore_model(tmp_path, abstract)


def test_checksums_are_json_of_every_file(tmp_path):
    save_steps(tmp_path, [1])
    directory = tmp_path / "checkpoints" / "1"
    sums = json.loads((directory / "checksums.json").read_text())
    files = {str(p.relative_to(directory)) for p in directory.rglob("*") if p.is_file()}
    assert files == sums.keys() | {"checksums.json"}


def test_a_run_that_was_moved_into_a_folder_with_brackets_is_read(tmp_path):
    save_steps(tmp_path / "run", [3])
    workdir = (tmp_path / "run").rename(tmp_path / "lr=[1e-3]")
    assert restore_model(workdir, make_items(0)[0])[0] == 3
    flip_bit(data_file(workdir, 3), 8)
    with pytest.raises(UserError, match="every checkpoint"):
        restore(workdir)
    assert [path.name for path in (workdir / "damaged_checkpoints").iterdir()] == ["3.0"]


def test_a_run_in_a_folder_with_brackets_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(UserError, match="choose a name without them, such as lr=1e-3"):
        train(tiny.get_config(), tmp_path / "lr=[1e-3]")
    with pytest.raises(UserError, match="brackets, as b\\[1\\] has"):
        sweep({"a": tiny.get_config(), "b[1]": tiny.get_config()}, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_that_cannot_be_restored_is_said(tmp_path):
    save_steps(tmp_path, [1])
    (tmp_path / "checkpoints" / "1" / "checksums.json").unlink()
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((3, *x.shape), x.dtype), make_items(0)[0]
    )
    with pytest.raises(
        UserError, match=r"checkpoint 1 of .* cannot be restored: it is damaged, or"
    ):
        restore_model(tmp_path, abstract)
