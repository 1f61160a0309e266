"""Eight fake devices for every test, small pictures with captions, and one real run."""

import fcntl
import os
import shutil
import signal

# The models are so small that optimising their machine code costs minutes and saves nothing.
os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0"

import jax
import numpy as np
import pytest

from tests.pictures import write_pairs
from tests.runs import finish, start_process

# A shell has what it starts in the background ignore Ctrl-C, and so would all commands tested here.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)


@pytest.fixture(scope="session")
def pairs_csv(tmp_path_factory):
    """A CSV of 24 pictures of shapes and their captions."""
    return write_pairs(tmp_path_factory.mktemp("pairs"))


@pytest.fixture(scope="session")
def common_folder(tmp_path_factory):
    """A folder of all processes among which the tests are divided."""
    own = tmp_path_factory.getbasetemp()
    folder = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    (folder / "common").mkdir(exist_ok=True)
    return folder / "common"


@pytest.fixture(scope="session")
def environment(common_folder, tmp_path_factory):
    """Of all runs: they compile the same step and share it, and none may import PyTorch."""
    cache = common_folder / "compilation_cache"
    poison = tmp_path_factory.mktemp("poison")
    for name in ("torch", "transformers", "open_clip", "safetensors", "onnx", "onnxruntime"):
        (poison / name).mkdir()
        (poison / name / "__init__.py").write_text(f"raise RuntimeError('a run imports {name}')")
    return os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "PYTHONPATH": str(poison),
    }


@pytest.fixture(scope="session")
def environment_with_torch(environment):
    """The same, but PyTorch and what it brings may be imported."""
    return {name: value for name, value in environment.items() if name != "PYTHONPATH"}


@pytest.fixture(scope="session")
def pairs(tmp_path_factory):
    """24 good pairs, and two that cannot be used."""
    path = write_pairs(tmp_path_factory.mktemp("data"))
    (path.parent / "broken.png").write_bytes(b"no picture")
    with open(path, "a") as file:
        file.write("broken.png,a broken picture\nred_disc.png, \n")
    return path


@pytest.fixture(scope="session")
def start(environment, pairs):
    """Starts a run of tests/tiny.py, or another module of the package, as a process."""

    def start(workdir, *overrides, module="main"):
        flags = [
            "--config=tests/tiny.py",
            f"--config.data.train={pairs}",
            f"--config.data.validation={pairs}",
            f"--workdir={workdir}",
        ]
        return start_process(environment, module, *(flags if module == "main" else []), *overrides)

    return start


@pytest.fixture(scope="session")
def finished(start, common_folder, tmp_path_factory):
    """(workdir, output) of a run that was never interrupted: a copy, of one run for all tests."""
    run, output = common_folder / "finished", common_folder / "output"
    with open(common_folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not output.exists():
            output.write_text(finish(start(run)))
    workdir = tmp_path_factory.mktemp("finished")
    shutil.copytree(run, workdir, dirs_exist_ok=True)
    return workdir, output.read_text()


@pytest.fixture
def x64():
    """Double precision, so that equality can be tested sharply."""
    with jax.enable_x64(True):
        yield


def unit_rows(seed, n, d, dtype=np.float64):
    """Random unit-norm rows [n, d]."""
    rows = np.random.default_rng(seed).normal(size=(n, d))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(dtype)
