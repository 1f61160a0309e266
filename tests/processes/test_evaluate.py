"""`python -m cyclip_jax.evaluate` in several processes."""

import json
import signal

import pytest

from tests.runs import finish, free_address, start_process
from tests.test_train import metrics_at


@pytest.fixture
def start_evaluation(environment, finished, tmp_path):
    """Starts so many processes that evaluate the finished run into `tmp_path`."""

    def start_evaluation(count):
        flags = [f"--checkpoint={finished[0]}", f"--output={tmp_path}", "--distributed"]
        flags += [f"--coordinator_address={free_address()}", f"--num_processes={count}"]
        own = environment | {"JAX_NUM_CPU_DEVICES": "2"}
        return [
            start_process(own, "evaluate", *flags, f"--process_id={index}")
            for index in range(count)
        ]

    return start_evaluation


@pytest.mark.slow
def test_four_processes_evaluate_as_the_run_did(start_evaluation, finished, tmp_path):
    outputs = [finish(process) for process in start_evaluation(4)]
    assert ["image_to_text_recall@1" in output for output in outputs] == [True] + 3 * [False]
    results = json.loads((tmp_path / "step_120.json").read_text())
    expected = metrics_at(finished[0], 120)
    assert len(results) > 10
    for name, value in results.items():
        assert value == pytest.approx(expected[name], rel=1e-5), name


@pytest.mark.slow
def test_sigterm_ends_all_processes_of_an_evaluation(start_evaluation, tmp_path):
    processes = start_evaluation(2)
    for process in processes:
        assert any("[Gloo]" in line for line in process.stdout)  # they have joined
    for process in processes:
        process.send_signal(signal.SIGTERM)
    for process in processes:
        finish(process, code=-signal.SIGTERM, seconds=30)
    assert not list(tmp_path.glob("*.json"))
