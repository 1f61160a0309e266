"""config.json: what reproduces a run, written and read."""

import importlib.metadata
import json
import subprocess
import sys

import ml_collections
from etils import epath

from cyclip_jax import defaults
from cyclip_jax.defaults import _completed
from cyclip_jax.errors import UserError
from cyclip_jax.files import write_atomically
from cyclip_jax.models.presets import portable, tower_in
from cyclip_jax.workdir.layout import CONFIG

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorflow", "tensorflow-cpu")


def check_same_model(config, workdir):
    """Raises UserError where the workdir holds a run of another model or tokenizer.

    How the model is computed may differ.
    """
    if not (epath.Path(workdir) / CONFIG).exists():
        return
    old = json.loads(json.dumps(read_config(workdir).to_dict()))
    new = json.loads(json.dumps(config.to_dict()))
    old_model, new_model = _same_anywhere(old["model"]), _same_anywhere(new["model"])
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


def _same_anywhere(model):
    """Settings of a model without how it is computed; its tower and pool by the names they have."""
    return portable(model) | tower_in(model)


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
    return ml_collections.ConfigDict(_completed(config, defaults.get_config().to_dict())).lock()


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
