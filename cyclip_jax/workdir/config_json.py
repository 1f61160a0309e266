"""Writes and reads config.json, which holds what is needed to reproduce a run."""

import importlib.metadata
import json
import os
import pathlib
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_collections
from etils import epath

from cyclip_jax import defaults
from cyclip_jax.errors import UserError
from cyclip_jax.files import how_written, parse_json, write_atomically
from cyclip_jax.models.presets import portable, tower_in
from cyclip_jax.runtime.sections import completed
from cyclip_jax.workdir.layout import CONFIG

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorflow", "tensorflow-cpu")

# Values that may stand for one another: JSON has no tuples, and 1.0 may be written as 1.
_KINDS: tuple[Any, ...] = (dict, str, int | float, list | tuple)


def check_same_model(config: ml_collections.ConfigDict, workdir: str | os.PathLike[str]) -> None:
    """Raises UserError where the workdir holds a run of another model or tokenizer.

    Settings that only say how the model is computed may differ.
    """
    if not (epath.Path(workdir) / CONFIG).exists():
        return
    old = json.loads(json.dumps(read_config(workdir).to_dict()))
    new = json.loads(json.dumps(config.to_dict()))
    old_model, new_model = _same_anywhere(old["model"]), _same_anywhere(new["model"])
    differing = [
        f"model.{key} ({old_model.get(key)!r} there, {new_model.get(key)!r} in your config)"
        for key in sorted(old_model.keys() | new_model.keys())
        if old_model.get(key) != new_model.get(key)
    ]
    there, here = old["sentences"]["head"], new["sentences"]["head"]
    if there != here:  # whose parameters are in the checkpoint
        differing.append(f"sentences.head ({there!r} there, {here!r} in your config)")
    if old["data"]["tokenizer"] != new["data"]["tokenizer"]:
        there, here = old["data"]["tokenizer"], new["data"]["tokenizer"]
        differing.append(f"data.tokenizer ({there!r} there, {here!r} in your config)")
    if differing:
        raise UserError(
            f"{workdir} holds a run with another model: {', '.join(differing)}; "
            "choose another --workdir, or set the config to the same model"
        )


def _same_anywhere(model):
    """Settings of a model without how it is computed; its tower and pool by the names they have."""
    return portable(model) | tower_in(model)


def describe_run(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """The config, the package versions and the git commit of a run, as a dict for JSON."""
    return {
        "config": config.to_dict(),
        "versions": {"python": sys.version.split()[0], **_versions()},
        "git_commit": _git_commit(),
    }


def write_config(
    config: ml_collections.ConfigDict,
    workdir: str | os.PathLike[str],
    changes: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Writes config.json, either whole or not at all.

    Args:
      config: the run's, with {workdir} as it was written.
      workdir: the run's directory.
      changes: how it came to differ from the one that the run began with (see `changes.history`).

    Beside the config stand the command and the machine of the process that wrote it last.
    """
    described = describe_run(config) | {"command": _command(), "machine": _machine()}
    described |= {"changes": list(changes)} if changes else {}
    text = json.dumps(described, indent=2)
    write_atomically(epath.Path(workdir) / CONFIG, text + "\n")


def is_workdir(path: str | os.PathLike[str]) -> bool:
    """Whether a directory is that of a run.

    A config.json alone does not show that: a model of transformers has a file of that name too.
    """
    path = epath.Path(path)
    try:
        content = parse_json((path / CONFIG).read_text())
        return isinstance(content, dict) and "config" in content
    except (OSError, ValueError):
        return (path / "checkpoints").is_dir()


def read_config(workdir: str | os.PathLike[str]) -> ml_collections.ConfigDict:
    """The config of a run from its config.json, in which {workdir} stands as it was written.

    A field that is younger than the run has its default, which is what the run did. The fields that
    say how the model is computed (see `presets.EXECUTION`) have their defaults too, because another
    machine may not be able to compute it in the same way.

    Raises:
      UserError: the workdir has no config.json, or it cannot be read.
    """
    path = epath.Path(workdir) / CONFIG
    if not path.exists():
        raise UserError(
            f"{workdir} is not the workdir of a run{how_written(workdir)}: it has no {CONFIG}"
        )
    try:
        config = parse_json(path.read_text())["config"]
        config["model"] = portable(config["model"])
    except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error!r}") from error
    return ml_collections.ConfigDict(completed_config(config, path)).lock()


def completed_config(config: Any, path: os.PathLike[str]) -> dict[str, Any]:
    """A config from the file `path` as a nested dict, with the fields that it lacks.

    Raises:
      UserError: it is no config, or a value is of another kind than its default.
    """
    known = defaults.get_config().to_dict()
    try:
        config = completed(config, known)
        _check_kinds(config, known)
        ml_collections.ConfigDict(config)  # which refuses names that no field can have
        return config
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(f"the config in {path} cannot be read: {error}") from error


def _check_kinds(config, known, prefix=""):
    """Raises TypeError where a section is none, or a value of another kind than its default."""
    for name, value in config.items():
        default = known.get(name)
        kinds = next((k for k in _KINDS if isinstance(default, k)), object)
        is_part = isinstance(default, int) and isinstance(value, float) and value % 1 != 0
        if is_part or (not isinstance(value, kinds) and (value is not None or kinds is dict)):
            raise TypeError(f"{prefix}{name} is {value!r}")
        if isinstance(value, dict) and name != "evals":
            _check_kinds(value, default or {}, f"{prefix}{name}.")


def _versions():
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _command():
    """The command line of this process, with the interpreter's name alone."""
    return shlex.join([pathlib.PurePath(sys.executable).name, *sys.orig_argv[1:]])


def _machine():
    """What computes the run, without the name of the host, which is nobody's business."""
    devices = jax.devices()
    return {
        "devices": len(devices),
        "device_kind": devices[0].device_kind,
        "processes": jax.process_count(),
        "cpu_cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def _git_commit():
    root = epath.Path(__file__).parent
    # Without a lock, which a kill would leave in the user's repository.
    command = ["git", "--no-optional-locks", "-C", str(root)]
    command += ["describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
