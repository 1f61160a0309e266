"""Reads damaged inputs of every format, and looks for what must not happen.

    python -m benchmarks.fuzz --minutes=10 [--format=tar,csv] [--seed=0] [--output=DIR]

Valid small inputs of each format (see data.py and models.py) are damaged: bits, lengths, names,
numbers and texts. The package reads them as it does for its users (see readers.py), in a process
that this one watches. It is a fault if that

    raises anything but a UserError ("traceback")
    ends by a signal ("killed")
    takes more than 5 seconds ("slow") or 1 GiB ("memory"), twice
    gives a picture the caption of another ("glued")
    leaves out an example without a word ("lost")

or if something else does not hold that readers.py says. The case of a number is always the
same. A case at fault is kept in a folder of --output (fuzz-faults), with its input, what it raised,
and the command that replays it. Of faults at one place the first three cases are kept.

It needs the packages of the tests.
"""

import argparse
import collections
import functools
import json
import os
import pathlib
import random
import select
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable

from benchmarks.fuzz import data, models
from benchmarks.fuzz.damage import Case

SECONDS = 5.0
BYTES = 1 << 30
CASES_OF_A_WORKER = 3_000  # before a fresh one takes over: TensorFlow keeps every graph
KEPT_OF_A_PLACE = 3
WORK = (sys.executable, "-m", "benchmarks.fuzz", "--worker")
_ROOT = pathlib.Path(__file__).parents[2]
_STARTING = 300  # seconds
_BUILDING = 10  # seconds more for the graph of the whole pipeline

FORMATS: dict[str, Callable[[random.Random, bool], Case]] = {
    "tar": data.tar,
    "tfrecord": data.tfrecord,
    "parquet": data.parquet,
    "csv": data.table,
    "json": data.json_file,
    "jpeg": functools.partial(data.picture_files, "JPEG"),
    "png": functools.partial(data.picture_files, "PNG"),
    "webp": functools.partial(data.picture_files, "WEBP"),
    "picture": functools.partial(data.picture_files, None),
    "tokenizer": models.tokenizer,
    "checkpoint": models.checkpoint,
    "config": models.config,
}


def case_of(file_format: str, seed: int, index: int) -> Case:
    """The case of a number; those of the number 0 are whole, and all others are damaged."""
    rng = random.Random(f"{file_format} {seed} {index}")
    return FORMATS[file_format](rng, index > 0)


def judge(file_format: str, seed: int, index: int) -> dict:
    """Reads a case in this process.

    Returns:
      {"outcome": "read", "refused" or the kind of a fault; "place": where it was raised; "detail":
      what was raised; "seconds"}.
    """
    from benchmarks.fuzz.readers import Fault, read_case
    from cyclip_jax.errors import UserError

    case = case_of(file_format, seed, index)
    result = {"outcome": "read", "place": "", "detail": ""}
    with tempfile.TemporaryDirectory(prefix="fuzz") as folder:
        start = _clock()
        try:
            read_case(case, pathlib.Path(folder))
        except UserError as error:
            result |= {"outcome": "refused", "detail": str(error)}
        except (Exception, SystemExit) as error:
            outcome = error.kind if isinstance(error, Fault) else "traceback"
            place = f"{type(error).__name__} {_place(error)}"
            detail = "".join(traceback.format_exception(error))[-6_000:]
            result |= {"outcome": outcome, "place": place, "detail": detail}
        result["seconds"] = _clock() - start
    is_built = case.reader[1].get("way") in ("evaluate", "train")
    limit = SECONDS + _BUILDING * is_built
    if result["outcome"] in ("read", "refused") and result["seconds"] > limit:
        result |= {"outcome": "slow", "place": case.reader[0]}
    return result


def _clock():
    """Seconds, without those in which this thread could have run and other programs did."""
    try:
        waited = int(pathlib.Path("/proc/thread-self/schedstat").read_text().split()[1])
    except OSError:
        waited = 0
    return time.monotonic() - waited / 1e9


def _place(error):
    """The innermost function of the package that an exception came through."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "cyclip_jax/" in frame.filename] or frames
    return f"{pathlib.Path(own[-1].filename).name}:{own[-1].name}"


def work() -> None:
    """Judges the cases that stdin names, one a line, and writes a line of JSON about each."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    for line in sys.stdin:
        file_format, seed, index = line.split()
        print(json.dumps(judge(file_format, int(seed), int(index))), file=answers, flush=True)


class Worker:
    """A process that judges cases, and that may die of them."""

    def __init__(self) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            WORK,
            cwd=_ROOT,
            env=os.environ | {"JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        self._cases = 0

    def warm_up(self, formats: list[str]) -> None:
        """Reads whole inputs, which imports and compiles whatever takes its time.

        Raises:
          RuntimeError: one of them cannot be read.
        """
        for file_format in formats:
            result = self.ask(file_format, 0, 0, seconds=_STARTING, more_bytes=1 << 40)
            if result["outcome"] not in ("read", "slow"):
                raise RuntimeError(f"the whole {file_format} is not read: {result}")
        self._cases = 0

    @property
    def is_worn(self) -> bool:
        """Whether another one should take over."""
        return self._process.poll() is not None or self._cases >= CASES_OF_A_WORKER

    def ask(self, file_format, seed, index, *, seconds=12 * SECONDS, more_bytes=BYTES) -> dict:
        """What `judge` returns of a case, or which signal, time or memory ended the process."""
        self._cases += 1
        start, memory = time.monotonic(), self._bytes()
        self._process.stdin.write(f"{file_format} {seed} {index}\n")
        self._process.stdin.flush()
        while not select.select([self._process.stdout], [], [], 0.02)[0]:
            grown = self._bytes() - memory
            if time.monotonic() - start > seconds or grown > more_bytes:
                outcome = "memory" if grown > more_bytes else "slow"
                self.close()
                return {"outcome": outcome, "place": "", "detail": f"{grown >> 20} MiB more"}
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        status = self._process.wait()
        name = signal.Signals(-status).name if status < 0 else f"status {status}"
        self._errors.seek(max(self._errors.seek(0, os.SEEK_END) - 3_000, 0))
        detail = self._errors.read().decode(errors="replace")
        return {"outcome": "killed", "place": name, "detail": detail}

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.wait()

    def _bytes(self):
        try:
            words = pathlib.Path(f"/proc/{self._process.pid}/statm").read_text().split()
        except OSError:
            return 0
        return int(words[1]) * os.sysconf("SC_PAGE_SIZE") if len(words) > 1 else 0


class Fuzzer:
    """Asks for one case after the other, counts, and keeps those at fault.

    Attributes:
      counts: {format: {outcome: cases}}.
      faults: {(format, outcome, place): cases}.
    """

    def __init__(self, formats: list[str], seed: int, output: pathlib.Path) -> None:
        self._formats, self._seed, self._output = formats, seed, output
        self._worker: Worker | None = None
        self.counts = {name: collections.Counter() for name in formats}
        self.faults = collections.Counter()

    def run(self, seconds: float, first: int = 1) -> None:
        """Asks for the cases from `first` on, of each format in turn, for so many seconds."""
        end, index = time.monotonic() + seconds, first
        try:
            while time.monotonic() < end:
                for file_format in self._formats:
                    self.one(file_format, index)
                index += 1
        finally:
            if self._worker is not None:
                self._worker.close()

    def one(self, file_format: str, index: int) -> dict:
        """Asks for one case, and again where time or memory may have been another program's."""
        for _ in range(2):
            if self._worker is None or self._worker.is_worn:
                if self._worker is not None:
                    self._worker.close()
                self._worker = Worker()
                self._worker.warm_up(self._formats)
            result = self._worker.ask(file_format, self._seed, index)
            if result["outcome"] not in ("slow", "memory"):
                break
        self.counts[file_format][result["outcome"]] += 1
        if result["outcome"] not in ("read", "refused"):
            self._keep(file_format, index, result)
        return result

    def _keep(self, file_format, index, result):
        place = file_format, result["outcome"], result["place"]
        self.faults[place] += 1
        if self.faults[place] > KEPT_OF_A_PLACE:
            return
        folder = self._output / f"{file_format}-{self._seed}-{index}"
        case = case_of(file_format, self._seed, index)
        for name, content in case.files.items():
            (folder / "input" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "input" / name).write_bytes(content)
        (folder / "replay.sh").write_text(
            f"python -m benchmarks.fuzz --format={file_format} --seed={self._seed} --case={index}\n"
        )
        told = f"{result['outcome']} {result['place']}\n{case.reader}\n\n{result['detail']}\n"
        (folder / "fault.txt").write_text(told, errors="backslashreplace")
        print(f"{folder}: {result['outcome']} {result['place']}", flush=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--format", default=",".join(FORMATS), help="some of %(default)s")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=int, help="replays this case in this process")
    parser.add_argument("--first", type=int, default=1, help="number of the first case")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("fuzz-faults"))
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    formats = given.format.split(",")
    if set(formats) - set(FORMATS):
        parser.error(f"--format={given.format} is not among {', '.join(FORMATS)}")
    if given.worker:
        work()
        return 0
    if given.case is not None:
        result = judge(formats[0], given.seed, given.case)
        print(f"{result['outcome']} {result['place']}\n{result['detail']}")
        return int(result["outcome"] not in ("read", "refused"))
    fuzzer = Fuzzer(formats, given.seed, given.output)
    fuzzer.run(60 * given.minutes, given.first)
    for file_format, counts in fuzzer.counts.items():
        print(f"{file_format}: {counts.total()} cases, {dict(counts.most_common())}")
    return int(bool(fuzzer.faults))


if __name__ == "__main__":
    sys.exit(main())
