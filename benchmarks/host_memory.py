"""Measures the host memory of a run over 10,000 tiny steps.

    python -m benchmarks.host_memory
    python -m benchmarks.host_memory --steps=2000 --bound=4 -- --config.stall_factor=0

The run is started as a user starts it. It has an input pipeline on small pictures, a tiny model,
metrics, checkpoints and evaluations. This program prints the memory of its process at each tenth of
the steps, and how fast the memory grows: the slope of a line through all tenths except the first
two, because caches are full by then. It ends with 1 if the growth is more than --bound.

The flags after -- are given to the run. This works only on Linux.
"""

import argparse
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np
from PIL import Image

from benchmarks.report import table, write_json
from cyclip_jax.workdir.layout import METRICS
from cyclip_jax.workdir.metrics import read_metrics

PAIRS = 64
COLUMNS = {"steps": ("step", ","), "memory, MiB": ("mebibytes", ",.1f")}
# With these settings a step costs next to nothing.
SETTINGS = {
    "batch_size": 8,
    "optimizer.warmup_steps": 1,
    "data.tokenizer": "sentencepiece",
    "model.name": "ViT-tiny",
    "model.image_size": 32,
    "model.patch_size": 16,
    "model.vision_width": 16,
    "model.vision_layers": 1,
    "model.vision_heads": 2,
    "model.embed_dim": 16,
    "model.text_width": 16,
    "model.text_layers": 1,
    "model.text_heads": 2,
    "model.context_length": 8,
    "model.vocab_size": 64,
}


def write_pairs(folder):
    """Writes small pictures of noise and a CSV of their captions; returns the path of the CSV."""
    random = np.random.default_rng(0)
    rows = ["image,caption"]
    for i in range(PAIRS):
        pixels = random.integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        rows.append(f"{i}.png,noise number {i} of the kind {i % 7}")
    (folder / "pairs.csv").write_text("\n".join(rows) + "\n")
    return folder / "pairs.csv"


def start(folder, steps, overrides):
    """Starts a run in `<folder>/run` that evaluates and saves twenty times."""
    pairs = write_pairs(folder)
    settings = SETTINGS | {
        "total_steps": steps,
        "log_every_steps": max(steps // 100, 1),
        "eval_every_steps": max(steps // 20, 1),
        "checkpoint_every_steps": max(steps // 20, 1),
        "data.train": pairs,
        "data.validation": pairs,
    }
    flags = [f"--config.{name}={value}" for name, value in settings.items()]
    command = [sys.executable, "-m", "cyclip_jax.main", "--config=cyclip_jax/defaults.py", *flags]
    with open(folder / "output", "w") as output:
        return subprocess.Popen(
            [*command, f"--workdir={folder / 'run'}", *overrides],
            stdout=output,
            stderr=subprocess.STDOUT,
        )


def watch(process, workdir, steps):
    """Returns rows of the process's memory, measured as each tenth of the steps is logged."""
    every, rows = max(steps // 10, 1), []
    while process.poll() is None:
        time.sleep(0.05)
        written = (workdir / METRICS).exists() and read_metrics(workdir)
        if written and written[-1]["step"] >= every * (len(rows) + 1):
            rows.append({"step": written[-1]["step"], "mebibytes": resident_mebibytes(process.pid)})
    return rows


def resident_mebibytes(pid):
    """Returns how much memory of a process is in RAM, in MiB."""
    pages = int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def growth(rows):
    """Returns the growth in KiB a step: a least-squares line through all rows but the first two."""
    steps, mebibytes = np.array([[row["step"], row["mebibytes"]] for row in rows[2:]]).T
    return np.polyfit(steps, mebibytes * 1024, 1)[0]


def parse_arguments(arguments=None):
    """Parses the command line's arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.host_memory",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--steps", metavar="…", type=int, default=10_000, help="steps of the run")
    parser.add_argument(
        "--bound", metavar="…", type=float, default=0.5, help="largest growth, KiB a step"
    )
    parser.add_argument("--json", metavar="…", help="file to write the rows to")
    parser.add_argument("overrides", nargs="*", metavar="-- --config.x=y", help="flags of the run")
    return parser.parse_args(arguments)


def main(arguments=None):
    """Prints the table and the growth; returns the exit code."""
    args = parse_arguments(arguments)
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        process = start(folder, args.steps, args.overrides)
        rows = watch(process, folder / "run", args.steps)
        if process.returncode != 0:
            print((folder / "output").read_text())
            return process.returncode
    kib = growth(rows)
    print(table(rows, COLUMNS))
    print(f"growth: {kib:.3f} KiB a step (bound: {args.bound})")
    if args.json:
        write_json(args.json, rows)
    return int(kib > args.bound)


if __name__ == "__main__":
    sys.exit(main())
