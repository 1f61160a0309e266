"""Measures how long it takes to balance a million captions, and draws what that does to them.

    python -m benchmarks.balance
    python -m benchmarks.balance --captions=100000 --limit=20 --figure=balance.png

Captions are made up: between one and three of 20,000 entries, the k-th of which is as frequent as
1/k, among words that are no entries. `data.prepare balance` is started as a user starts it. Its
memory is that of all its processes together, looked at ten times a second. The figure has how often
each entry stands in the captions before and after.

This works only on Linux.
"""

import argparse
import csv
import json
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np
from matplotlib.ticker import FuncFormatter

from benchmarks.report import table, write_json
from cyclip_jax.report.style import SERIES, blank, drawn, style

ENTRIES, FILLERS = 20_000, ("in the", "with a", "near some", "and", "of an old")
COLUMNS = {
    "captions": ("captions", ",d"),
    "limit": ("limit", ",d"),
    "workers": ("workers", "d"),
    "seconds": ("seconds", ".0f"),
    "memory, MiB": ("mebibytes", ",.0f"),
    "kept": ("kept", ",d"),
    "entries above the limit": ("above", ",d"),
}


def write_captions(folder, count):
    """Writes pool.csv and entries.txt into a folder."""
    rng = np.random.default_rng(0)
    entries = np.array([f"thing{number}" for number in range(ENTRIES)])
    chances = 1 / np.arange(1, ENTRIES + 1)
    (folder / "entries.txt").write_text("\n".join(entries))
    with open(folder / "pool.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "caption"])
        for start in range(0, count, 10_000):
            size = min(10_000, count - start)
            found = entries[rng.choice(ENTRIES, (size, 3), p=chances / chances.sum())]
            lengths, fillers = rng.integers(1, 4, size), rng.choice(FILLERS, (size, 3))
            for row in range(size):
                words = zip(fillers[row], found[row, : lengths[row]], strict=False)
                caption = " ".join(f"{filler} {entry}" for filler, entry in words)
                writer.writerow([f"{start + row}.jpg", caption])


def balance(folder, limit, workers):
    """Runs the command; returns (seconds, MiB of its processes together at the most)."""
    command = [sys.executable, "-m", "cyclip_jax.data.prepare", "balance"]
    command += [f"--input={folder / 'pool.csv'}", f"--entries={folder / 'entries.txt'}"]
    command += [f"--limit={limit}", f"--workers={workers}", f"--output={folder / 'balanced'}"]
    start, most = time.monotonic(), 0.0
    process = subprocess.Popen(command)
    while process.poll() is None:
        most = max(most, sum(map(resident, [process.pid, *children(process.pid)])))
        time.sleep(0.1)
    if process.returncode:
        sys.exit(process.returncode)
    return time.monotonic() - start, most


def children(pid):
    """Process numbers of a process's children and theirs."""
    try:
        own = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [found for child in map(int, own) for found in (child, *children(child))]


def resident(pid):
    """Resident memory of a process in MiB; 0 where it has ended."""
    try:
        pages = int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0.0
    return pages * 4096 / 2**20


def draw(path, counts, kept, limit):
    """Draws how often each entry stands in the captions, by its rank, and in those that stay."""
    with style():
        figure = blank(3.0)
        axes = figure.add_subplot()
        ranks = np.arange(1, len(counts) + 1)
        axes.plot(ranks, counts, color=SERIES[0], label="in all captions")
        axes.plot(ranks, kept, color=SERIES[1], linewidth=0.8, label="in those that stay")
        axes.axhline(limit, color="black", linewidth=0.8, linestyle=":", label="the limit")
        axes.set(xscale="log", yscale="log", xlabel="rank of the entry", ylabel="captions with it")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda number, _: f"{number:,.0f}"))
        axes.grid(True)
        axes.legend(loc="lower left")
        pathlib.Path(path).write_bytes(drawn(figure).png)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--captions", type=int, default=1_000_000)
    parser.add_argument("--limit", type=int, default=200)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--figure", help="file of the figure, PNG")
    parser.add_argument("--json", help="file of the numbers")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        write_captions(folder, args.captions)
        seconds, mebibytes = balance(folder, args.limit, args.workers)
        manifest = json.loads((folder / "balanced" / "manifest.json").read_text())
        with open(folder / "balanced" / "entries.csv", newline="") as file:
            rows = list(csv.DictReader(file))
    if args.figure:
        counts, kept = (np.array([int(row[key]) for row in rows]) for key in ("count", "kept"))
        draw(args.figure, counts, kept, args.limit)
    row = {
        "captions": args.captions,
        "limit": args.limit,
        "workers": args.workers,
        "seconds": seconds,
        "mebibytes": mebibytes,
        "kept": manifest["examples"],
        "above": manifest["entries_above_limit"],
    }
    print(table([row], COLUMNS))
    if args.json:
        write_json(args.json, [row])


if __name__ == "__main__":
    main()
