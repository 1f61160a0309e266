"""NumPy's products round otherwise on another processor; what is asserted holds on all."""

import os
import pathlib
import subprocess
import sys

import pytest

TESTS = pathlib.Path(__file__).parent.parent


@pytest.mark.slow
@pytest.mark.parametrize("core_type", ["Haswell", "Nehalem", "Zen"])
def test_evaluations_and_losses_hold_with_the_kernels_of_another_processor(core_type):
    """Nehalem's and, on processors with AVX2, Haswell's and Zen's kernels of OpenBLAS."""
    command = [sys.executable, "-m", "pytest", "-q", str(TESTS / "evals"), str(TESTS / "losses")]
    environment = os.environ | {"OPENBLAS_CORETYPE": core_type}
    for name in ("PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT", "PYTEST_CURRENT_TEST"):
        environment.pop(name, None)
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=TESTS.parent
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
