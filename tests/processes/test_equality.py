"""Several real processes compute what one computes, in double precision."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest

from tests.evals.everything import OF_BATCHES, every_evaluation
from tests.pictures import write_pairs
from tests.processes import program
from tests.runs import ROOT, free_address

DEVICES_OF_EACH = 2


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    """Function from what is asked for to a folder for `program.everything`."""

    def folder_of(towers, is_evaluated):
        folder = tmp_path_factory.mktemp("processes")
        write_pairs(folder)
        evaluations = every_evaluation(folder / "evaluated") if is_evaluated else {}
        (folder / "asked.json").write_text(
            json.dumps({"towers": towers, "evaluations": evaluations})
        )
        return folder

    return folder_of


def of_processes(count, folder, environment):
    """What each of `count` processes wrote: [(results, examples read)]."""
    address = free_address()
    command = [sys.executable, "-m", "tests.processes.program", str(folder), address, str(count)]
    processes = [
        subprocess.Popen(
            [*command, str(index)],
            cwd=ROOT,
            env=environment | {"JAX_NUM_CPU_DEVICES": str(DEVICES_OF_EACH)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(count)
    ]
    outputs = [process.communicate(timeout=400)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * count, outputs
    found = []
    for index in range(count):
        arrays = dict(np.load(folder / f"{index}.npz"))
        found.append((arrays, set(arrays.pop("read").tolist())))
    return found


@pytest.mark.parametrize(
    "count, towers, is_evaluated",
    [
        (2, ["ViT"], False),
        pytest.param(4, ["ViT", "ResNet"], True, marks=pytest.mark.slow),
    ],
)
def test_processes_compute_what_one_computes(folder_of, environment, count, towers, is_evaluated):
    folder = folder_of(towers, is_evaluated)
    expected, read = program.everything(folder, jax.devices()[:4])
    found = of_processes(count, folder, environment)
    for results, _ in found:  # each process knows all of it
        assert results.keys() == expected.keys()
        for name in results.keys() - OF_BATCHES:
            largest = np.abs(expected[name]).max(initial=0)
            difference = np.abs(results[name] - expected[name]).max(initial=0)
            assert difference <= 1e-10 * max(largest, 1), name
    shards = [indices for _, indices in found]
    assert set.union(*shards) == set(read) == set(range(24))
    assert sum(map(len, shards)) == 24  # none is read by two


def test_rows_of_the_wrong_process_would_fail(x64, monkeypatch):
    expected = program.losses(jax.devices()[:4])
    monkeypatch.setattr(program, "rows_here", lambda rows: np.roll(rows, 1, axis=0)[:, ::-1])
    found = program.losses(jax.devices()[:4])
    assert max(np.abs(found[name] - expected[name]).max() for name in found) > 1e-3
