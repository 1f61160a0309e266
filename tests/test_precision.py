"""bfloat16 towers learn what float32 towers learn."""

import numpy as np
import pytest

from cyclip_jax.workdir.metrics import read_metrics
from tests.runs import finish, start_process

STEPS, AVERAGED = 200, 50


def mean_of_last_losses(workdir, environment, dtype):
    flags = [
        "--config=configs/drawings.py",
        f"--config.total_steps={STEPS}",
        "--config.log_every_steps=1",
        "--config.eval_every_steps=0",
        f"--config.model.dtype={dtype}",
        f"--workdir={workdir}",
    ]
    finish(start_process(environment, "main", *flags), seconds=3000)
    losses = [line["loss"] for line in read_metrics(workdir) if "loss" in line]
    assert len(losses) == STEPS
    assert losses[-1] < losses[0] / 1.5
    return np.mean(losses[-AVERAGED:])


@pytest.mark.slow
def test_bfloat16_loses_as_float32_does(environment, tmp_path):
    """Within 2 %, over the first steps on drawings; it needs the packages of the quickstart."""
    # Two minutes of compiling buy back more than they cost in 400 steps.
    optimised = {name: value for name, value in environment.items() if name != "XLA_FLAGS"}
    single, half = (
        mean_of_last_losses(tmp_path / dtype, optimised, dtype) for dtype in ("float32", "bfloat16")
    )
    print(f"mean loss of the last {AVERAGED} of {STEPS} steps: {single:.4f}, bfloat16 {half:.4f}")
    assert abs(half / single - 1) <= 0.02
