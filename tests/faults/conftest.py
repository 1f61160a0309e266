"""A run so small that a test can begin, break and continue it several times."""

import contextlib
import resource

import jax
import pytest

from cyclip_jax.train import train
from cyclip_jax.workdir.console import Console
from tests import tiny


def small_config(pairs, **overrides):
    """12 steps of a tiny ViT, with a checkpoint after every fourth."""
    config = tiny.get_config()
    config.total_steps = 12
    config.checkpoint_every_steps = 4
    config.eval_every_steps = 0
    config.data.train = str(pairs)
    config.model.name = "ViT-tiny"
    config.model.vision_width = 16
    config.model.vision_layers = 1
    config.optimizer.warmup_steps = 2
    config.update_from_flattened_dict(overrides)
    return config


@pytest.fixture(scope="session")
def small_run(pairs, tmp_path_factory):
    """Function (workdir, allow_changes=(), **overrides): trains `small_config`, no report."""
    cache = str(tmp_path_factory.mktemp("compilation_cache"))
    before = jax.config.jax_persistent_cache_min_compile_time_secs

    def run(workdir, allow_changes=(), **overrides):
        config = small_config(pairs, compilation_cache=cache, **overrides)
        with pytest.MonkeyPatch.context() as patch:  # for no test of another folder
            patch.setattr("cyclip_jax.train.report_at_end", lambda run, step: None)
            return train(config, workdir, allow_changes=allow_changes)

    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    yield run
    jax.config.update("jax_persistent_cache_min_compile_time_secs", before)
    jax.config.update("jax_compilation_cache_dir", None)


@pytest.fixture(scope="session")
def undisturbed(small_run, tmp_path_factory):
    """The workdir of a run that nothing happened to."""
    workdir = tmp_path_factory.mktemp("undisturbed")
    small_run(workdir)
    return workdir


@pytest.fixture
def at_step(monkeypatch):
    """Function (step, action) that has a run call `action` once it has logged `step`."""
    actions = {}
    report = Console.report

    def report_and_act(self, step, *args):
        report(self, step, *args)
        actions.pop(step, lambda: None)()

    monkeypatch.setattr(Console, "report", report_and_act)
    return actions.__setitem__


@contextlib.contextmanager
def limited_files(size=None):
    """A context in which no file grows beyond `size` bytes, and a function to change that.

    It is as on a full disk: a write writes what has room, and the next one raises an OSError. None
    is no limit.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size):
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft if size is None else size, hard))

    limit(size)
    try:
        yield limit
    finally:
        limit(None)


def contents(folder):
    """{path: bytes} of every file below a folder, and None for each directory."""
    return {path: None if path.is_dir() else path.read_bytes() for path in folder.rglob("*")}


@contextlib.contextmanager
def unchanged(folder):
    """A context in which nothing below a folder may change."""
    before = contents(folder)
    yield
    assert contents(folder) == before
