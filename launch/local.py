"""Runs several processes of one run on this machine, so that you can try what a cluster does.

    python launch/local.py --processes=2 -- --config=configs/quickstart.py --workdir=/tmp/two

This starts `python -m cyclip_jax.main --distributed …` twice. Each process has --devices CPU
devices, or one GPU with --gpus. Each line of output begins with the number of its process. When one
process fails, all are started again and continue, at most --restarts times. SIGTERM and Ctrl-C make
them save and end. This file needs only Python and what the run needs.
"""

import os
import shlex
import socket
import sys

import supervise


def commands(args):
    """Returns [(name, argv, environment)] of the processes; each call looks for a free port."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    return [
        (
            str(index),
            [
                sys.executable,
                "-m",
                f"cyclip_jax.{args.module}",
                *args.command,
                "--distributed",
                f"--coordinator_address=localhost:{port}",
                f"--num_processes={args.processes}",
                f"--process_id={index}",
            ],
            settings(args, index),
        )
        for index in range(args.processes)
    ]


def settings(args, index):
    """Returns what is added to the environment of process `index`."""
    if args.gpus:
        return {"CUDA_VISIBLE_DEVICES": str(index)}
    return {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(args.devices)}


def main():
    """Starts the processes and waits for them."""
    parser = supervise.parser(__doc__)
    parser.add_argument("--processes", type=int, default=2, help="how many processes (default 2)")
    parser.add_argument(
        "--devices", type=int, default=1, help="CPU devices of each process (default 1)"
    )
    parser.add_argument("--gpus", action="store_true", help="give each process one GPU instead")
    parser.add_argument(
        "--module", default="main", help="module of cyclip_jax to run: main (default) or evaluate"
    )
    args = parser.parse_args()
    if args.processes < 1 or args.devices < 1:
        parser.error("--processes and --devices must be at least 1")
    if args.dry_run:
        for _, argv, added in commands(args):
            print(" ".join(f"{name}={value}" for name, value in added.items()), shlex.join(argv))
        return
    supervisor = supervise.Supervisor(
        lambda attempt: [(name, argv, os.environ | own) for name, argv, own in commands(args)],
        restarts=args.restarts,
        grace=args.grace,
        log=args.log,
    )
    sys.exit(supervisor.run())


if __name__ == "__main__":
    main()
