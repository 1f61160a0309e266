"""`python -m cyclip_jax.evaluate` in several processes."""

import json

import pytest

from tests.runs import finish, free_address, start_process
from tests.test_train import metrics_at


@pytest.mark.slow
def test_four_processes_evaluate_as_the_run_did(environment, finished, tmp_path):
    workdir, _ = finished
    flags = [f"--checkpoint={workdir}", f"--output={tmp_path}", "--distributed"]
    flags += [f"--coordinator_address={free_address()}", "--num_processes=4"]
    own = environment | {"JAX_NUM_CPU_DEVICES": "2"}
    processes = [
        start_process(own, "evaluate", *flags, f"--process_id={index}") for index in range(4)
    ]
    outputs = [finish(process) for process in processes]
    assert ["image_to_text_recall@1" in output for output in outputs] == [True] + 3 * [False]
    results = json.loads((tmp_path / "step_120.json").read_text())
    expected = metrics_at(workdir, 120)
    assert len(results) > 10
    for name, value in results.items():
        assert value == pytest.approx(expected[name], rel=1e-5), name
