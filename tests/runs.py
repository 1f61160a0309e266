"""Runs as a user starts them: as processes."""

import pathlib
import socket
import subprocess
import sys
import tarfile
import time

from cyclip_jax.workdir.metrics import read_metrics

ROOT = pathlib.Path(__file__).parent.parent


def start_process(environment, *arguments):
    """Starts `python -m cyclip_jax.<arguments>`, or a benchmark, in the repository."""
    module, *flags = arguments
    module = module if module.startswith("benchmarks.") else f"cyclip_jax.{module}"
    return subprocess.Popen(
        [sys.executable, "-m", module, *flags],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process, code=0, seconds=300):
    """Waits for a run and returns what it printed."""
    output, _ = process.communicate(timeout=seconds)
    assert process.returncode == code, output
    return output


def wait_for_step(process, workdir, step):
    """Returns once a running process has written the metrics of `step`."""
    deadline = time.monotonic() + 300
    while not any(line["step"] >= step for line in read_metrics(workdir)):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def free_address():
    """localhost and a port on which nobody listens."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return f"localhost:{free.getsockname()[1]}"


def status_of(main, arguments):
    """The exit status of a command within this process; what is wrong is printed as Python does."""
    try:
        main(arguments)
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
            return 1
        return end.code or 0
    return 0


def unpack(archive, folder):
    """Unpacks what a test has packed itself; Python has filters from 3.11.4 on."""
    filters = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
    archive.extractall(folder, **filters)
