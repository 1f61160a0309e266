"""The files of a run: config.json, metrics.jsonl, TensorBoard's, the log, and the progress bar."""

import contextlib
import importlib.metadata
import json
import logging
import math
import re
import subprocess
import sys

import ml_collections
import tensorflow as tf
import tqdm
from clu import metric_writers
from etils import epath

from configs import common
from cyclip_jax.errors import UserError
from cyclip_jax.files import Appender, write_atomically
from cyclip_jax.models.presets import portable

CONFIG = "config.json"
METRICS = "metrics.jsonl"
LOG = "train.log"
FIGURES = "figures"
EVALS = "evals"
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorflow", "tensorflow-cpu")


def resolve_paths(config, workdir):
    """A locked copy of the config in which {workdir} in any string is the run's directory."""

    def resolve(value):
        if isinstance(value, dict):
            return {key: resolve(inner) for key, inner in value.items()}
        if isinstance(value, tuple):
            return tuple(map(resolve, value))
        if isinstance(value, str) and "{workdir}" in value:
            # Remote file systems know no "..", and local ones only of directories that exist.
            return re.sub(r"/[^/]+/\.\.(?=/|$)", "", value.replace("{workdir}", str(workdir)))
        return value

    return ml_collections.ConfigDict(resolve(config.to_dict())).lock()


def check_same_model(config, workdir):
    """Raises UserError where the workdir holds a run of another model or tokenizer.

    How the model is computed may differ.
    """
    if not (epath.Path(workdir) / CONFIG).exists():
        return
    old = json.loads(json.dumps(read_config(workdir).to_dict()))
    new = json.loads(json.dumps(config.to_dict()))
    old_model, new_model = portable(old["model"]), portable(new["model"])
    differing = [
        f"model.{key} ({old_model.get(key)!r} there, {new_model.get(key)!r} here)"
        for key in sorted(old_model.keys() | new_model.keys())
        if old_model.get(key) != new_model.get(key)
    ]
    if old["data"]["tokenizer"] != new["data"]["tokenizer"]:
        there, here = old["data"]["tokenizer"], new["data"]["tokenizer"]
        differing.append(f"data.tokenizer ({there!r} there, {here!r} here)")
    if differing:
        raise UserError(
            f"{workdir} holds a run with another model: {', '.join(differing)}; "
            "choose another directory or the same model"
        )


def describe_run(config):
    """What reproduces a run, as a dict for JSON: the config, package versions, the git commit."""
    return {
        "config": config.to_dict(),
        "versions": {"python": sys.version.split()[0], **_versions()},
        "git_commit": _git_commit(),
    }


def write_config(config, workdir):
    """Writes config.json, whole or not at all."""
    text = json.dumps(describe_run(config), indent=2)
    write_atomically(epath.Path(workdir) / CONFIG, text + "\n")


def is_workdir(path):
    """Whether a directory is that of a run: transformers, too, calls its settings config.json."""
    path = epath.Path(path)
    try:
        return "config" in json.loads((path / CONFIG).read_text())
    except (OSError, ValueError):
        return (path / "checkpoints").is_dir()


def read_config(workdir):
    """The config of a run, from its config.json, with {workdir} as it was written.

    A field that is younger than the run has its default: that is what the run did. So have those
    that say how the model is computed (see `presets.EXECUTION`): another machine may not be able
    to compute it as the run's did.

    Raises:
      UserError: the workdir has none, or it cannot be read.
    """
    path = epath.Path(workdir) / CONFIG
    if not path.exists():
        raise UserError(f"{workdir} is not the workdir of a run: it has no {CONFIG}")
    try:
        config = json.loads(path.read_text())["config"]
        config["model"] = portable(config["model"])
    except (ValueError, KeyError) as error:
        raise UserError(f"{path} cannot be read: {error!r}") from error
    return ml_collections.ConfigDict(_completed(config, common.get_config().to_dict())).lock()


def _completed(config, defaults):
    """The nested dict `config` with the fields of `defaults` that it lacks, but for evaluations."""
    missing = {key: value for key, value in defaults.items() if key not in config}
    return missing | {
        key: _completed(value, defaults[key])
        if isinstance(defaults.get(key), dict) and key != "evals"
        else value
        for key, value in config.items()
    }


def _versions():
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _git_commit():
    root = epath.Path(__file__).parent
    # Without a lock, which a kill would leave in the user's repository.
    command = ["git", "--no-optional-locks", "-C", str(root)]
    command += ["describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


class MetricWriter:
    """Appends to metrics.jsonl and to TensorBoard's files; does nothing unless `enabled`.

    What a full disk does not take waits in memory for the next write, so that a run survives that.

    Args:
      workdir: the run's directory.
      first_step: lines of later steps, which a resumed run writes again, are cut off.
      enabled: true on process 0 alone.
      mirror: what is told everything too, by its `write`; or None.
    """

    def __init__(self, workdir, *, first_step, enabled, mirror=None):
        self._enabled, self._mirror = enabled, mirror
        if not enabled:
            return
        self._path = epath.Path(workdir) / METRICS
        kept = [line for line in read_metrics(workdir) if line["step"] <= first_step]
        write_atomically(self._path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = Appender(self._path)
        self._tensorboard = str(epath.Path(workdir) / "tensorboard")
        self._summary, self._unshown = None, []

    def write(self, step, metrics):
        """Writes one line, at once: a number that is not finite becomes null."""
        if not self._enabled:
            return
        numbers = {name: float(value) for name, value in metrics.items()}
        finite = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        self._file.write(json.dumps({"step": int(step), **finite}) + "\n")
        self._unshown.append((step, numbers))
        self._show()
        if self._mirror is not None:
            self._mirror.write(step, numbers)

    def flush(self):
        """Tries once more to write what could not be; returns the OSError that keeps it, or None.

        TensorBoard's files say nothing that metrics.jsonl does not: they count for nothing here.
        """
        if not self._enabled:
            return None
        self._file.flush()
        return self._file.failure

    def close(self):
        """Closes the files."""
        if self._enabled:
            self._file.close()
            self._end_summary()

    def _show(self):
        try:
            if self._summary is None:
                self._summary = metric_writers.SummaryWriter(self._tensorboard)
            for step, numbers in self._unshown:
                self._summary.write_scalars(step, numbers)
            self._summary.flush()
            self._unshown.clear()
        except tf.errors.OpError as error:
            if len(self._unshown) == 1:
                logging.error(
                    "TensorBoard's files wait until they can be written: %s", error.message
                )
            self._end_summary()  # what follows half an event in a file is never read

    def _end_summary(self):
        summary, self._summary = self._summary, None
        with contextlib.suppress(tf.errors.OpError):
            if summary is not None:
                summary.close()


def read_metrics(workdir):
    """The lines of metrics.jsonl as dicts; a last line cut off by a kill is left out."""
    path = epath.Path(workdir) / METRICS
    if not path.exists():
        return []
    *whole, _ = path.read_bytes().split(b"\n")
    lines = []
    for number, line in enumerate(whole, start=1):
        try:
            lines += [json.loads(line)] if line else []
        except ValueError as error:
            raise UserError(f"line {number} of {path} is damaged ({error}); remove it") from error
    return lines


def metrics_at(workdir, step):
    """Everything that was written of one step, as one dict."""
    return {
        name: value
        for line in read_metrics(workdir)
        if line["step"] == step
        for name, value in line.items()
        if value is not None
    }


class Console:
    """Tells a person how the run goes: a bar on a terminal, plain lines elsewhere and in a log.

    Args:
      workdir: the run's directory.
      enabled: true on process 0 alone.
    """

    def __init__(self, workdir, *, enabled):
        self._enabled = enabled
        self._bar = None
        if enabled:
            self._log = Appender(epath.Path(workdir) / LOG)
            self._warnings = logging.StreamHandler(self._log)
            self._warnings.setLevel(logging.WARNING)
            logging.getLogger().addHandler(self._warnings)

    def say(self, text):
        """Prints text, above the bar where there is one, and logs it."""
        if not self._enabled:
            return
        self._show(text)
        self.log(text)

    def log(self, text):
        """Writes text to the log alone."""
        if self._enabled:
            self._log.write(text + "\n")

    def _show(self, text):
        with contextlib.suppress(OSError):  # a full disk or a closed pipe; the log has it too
            if self._bar is None:
                print(text, flush=True)
            else:
                self._bar.write(text)

    def start(self, step, total_steps):
        """Starts the bar, where there is a terminal."""
        if self._enabled and sys.stderr.isatty():
            self._bar = tqdm.tqdm(initial=step, total=total_steps, unit="step", smoothing=0.05)

    def step(self):
        """One more step was dispatched."""
        if self._bar is not None:
            self._bar.update()

    def report(self, step, total_steps, metrics, seconds_left):
        """Shows the metrics of a step: in the bar, or as a line."""
        if not self._enabled:
            return
        loss, speed = metrics["loss"], metrics["images_per_second"]
        minutes, seconds = divmod(int(seconds_left), 60)
        line = (
            f"step {step}/{total_steps}  loss {loss:.4f}  {speed:.0f} images/s  "
            f"{minutes}:{seconds:02d} left"
        )
        if self._bar is None:
            self._show(line)
        else:
            self._bar.set_postfix_str(f"loss {loss:.4f}, {speed:.0f} images/s")
        self.log(line)

    def close(self):
        """Ends the bar and the log."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        if self._enabled:
            logging.getLogger().removeHandler(self._warnings)
            self._log.close()
            self._enabled = False
