"""Runs of several processes, as a user without a cluster starts them."""

import pytest

from tests.runs import free_address, start_process


@pytest.fixture(scope="session")
def start_all(environment, pairs):
    """Starts all processes of a run of tests/tiny.py, or as many of them as `started` says."""

    def start_all(workdir, count, *overrides, started=None, address=None):
        flags = [
            "--config=tests/tiny.py",
            f"--config.data.train={pairs}",
            f"--config.data.validation={pairs}",
            f"--workdir={workdir}",
            "--distributed",
            f"--coordinator_address={address or free_address()}",
            f"--num_processes={count}",
            "--heartbeat_timeout=10",
            "--stopped_exit_code=75",
            *overrides,
        ]
        own = environment | {"JAX_NUM_CPU_DEVICES": "2"}
        return [
            start_process(own, "main", *flags, f"--process_id={index}")
            for index in (range(count) if started is None else started)
        ]

    return start_all
