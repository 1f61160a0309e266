"""What makes a run another experiment: settings that differ from those of its newest checkpoint."""

import json
import os
from collections.abc import Collection, Mapping
from typing import Any

from etils import epath

from cyclip_jax import defaults
from cyclip_jax.data.places import place_from_anywhere
from cyclip_jax.errors import UserError
from cyclip_jax.files import file_errors, parse_json
from cyclip_jax.models.presets import tower_in
from cyclip_jax.runtime.sections import completed, flat
from cyclip_jax.training.optimizer import check_continued
from cyclip_jax.workdir.layout import CONFIG
from cyclip_jax.workdir.metrics import evaluated_at

# Settings and sections that change no number of training from a checkpoint on. What a model is, and
# its vocabulary, are compared elsewhere, and never allowed to change.
FREE = (
    "log_every_steps",
    "eval_every_steps",
    "checkpoint_every_steps",
    "keep_checkpoints",
    "keep_every_steps",
    "keep_best",
    "init_from",
    "init_parts",
    "init_keep_positions",
    "max_skipped_in_a_row",
    "compilation_cache",
    "profile_steps",
    "stall_factor",
    "wandb",
    "model",
    "mesh",
    "evals",
    "loss.chunk_size",
    "data.validation",
    "data.tokenizer",
    "data.vocabulary",
    "data.max_bad_share",
)

# Settings that say of what a checkpoint holds numbers: with others it cannot be continued.
OF_STATE = ("optimizer.freeze", "average.kind")

# {setting: (value before, value after)}
Changes = dict[str, tuple[Any, Any]]


def history(workdir: str | os.PathLike[str], *, until: int | None = None) -> list[dict[str, Any]]:
    """The changes that config.json records, up to a step.

    Returns:
      [{"step": the step from which on it holds, "settings": {name: [before, after]}}].
    """
    found = _config_json(workdir).get("changes", [])
    try:
        for one in found:
            all((before, after) for before, after in one["settings"].values())
        return [one for one in found if until is None or one["step"] <= until]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"'changes' of {epath.Path(workdir) / CONFIG} cannot be read ({error!r}); remove it"
        ) from error


def other_evaluations(config: Any, workdir: str | os.PathLike[str], step: int) -> list[str]:
    """The evaluations with numbers of a step whose settings are not those that config.json records.

    Args:
      config: the ConfigDict of the run, in which {workdir} stands as it was written.
      workdir: the run's directory.
      step: the step.
    """
    before = _config_json(workdir).get("config", {}).get("evals", {})
    now = json.loads(json.dumps(config.evals.to_dict()))
    done = evaluated_at(workdir, step)
    return [name for name in now if name in done and before.get(name, now[name]) != now[name]]


def _config_json(workdir):
    """What config.json holds; {} where there is none, or it is damaged."""
    try:
        written = parse_json((epath.Path(workdir) / CONFIG).read_text())
    except (ValueError, *file_errors()):
        return {}
    return written if isinstance(written, dict) else {}


def check_changes(
    config: Any,
    workdir: str | os.PathLike[str],
    step: int,
    meta: Mapping[str, Any],
    allowed: Collection[str] = (),
) -> Changes:
    """Compares a config with that of the checkpoint it continues, and with what is recorded since.

    Args:
      config: the ConfigDict of the run, with its paths resolved.
      workdir: the run's directory.
      step: of the checkpoint.
      meta: what the checkpoint says of itself. A setting that it lacks had its default.
      allowed: names of settings or sections that may differ, with or without "config.".

    Returns:
      The changes that are not recorded yet.

    Raises:
      UserError: a setting that changes the numbers differs and is not allowed to, or one does that
        is never allowed to.
    """
    before = _comparable(completed(meta["config"], defaults.get_config().to_dict()))
    for one in history(workdir, until=step):
        if one["step"] == step:  # made since that checkpoint, and not in one yet
            before |= {name: after for name, (_, after) in one["settings"].items()}
    after = _comparable(config.to_dict())
    check_continued(before, after, str(workdir))
    changes = {
        name: (before.get(name), after.get(name))
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    }
    of_state = {name: pair for name, pair in changes.items() if _is_among(name, OF_STATE)}
    if of_state:
        raise UserError(
            f"{workdir} holds a run whose checkpoints have another state: {written(of_state)}. "
            "Give the settings with which it began; or start in a new --workdir from its weights "
            "with --config.init_from=WORKDIR"
        )
    allowed = [name.removeprefix("config.") for name in allowed]
    refused = {name: pair for name, pair in changes.items() if not _is_among(name, allowed)}
    if refused:
        raise UserError(
            f"{workdir} holds a run with other settings: {written(refused)}. Give the settings "
            "with which it began; or let it go on with yours by adding "
            f"--allow_changes={','.join(refused)}"
        )
    return changes


def recorded(workdir: str | os.PathLike[str], step: int, changes: Changes) -> list[dict[str, Any]]:
    """The history of a run that goes on from a step, with new changes at its end.

    What was recorded of later steps is left out, as these are trained anew.
    """
    new = {name: list(pair) for name, pair in changes.items()}
    return history(workdir, until=step) + ([{"step": step, "settings": new}] if new else [])


def written(changes: Changes) -> str:
    """Changes as a person reads them."""
    return ", ".join(
        f"{name} ({old!r} before, {new!r} now)" for name, (old, new) in changes.items()
    )


def check_names(allowed: Collection[str]) -> None:
    """Raises UserError where a name that may change is neither a setting nor a section."""
    known = flat(defaults.get_config().to_dict())
    for name in (name.removeprefix("config.") for name in allowed):
        if not any(_is_among(key, [name]) or _is_among(name, [key]) for key in known):
            raise UserError(
                f"--allow_changes={name}: config has no such setting; write the names as the "
                "message does that asks for them, such as optimizer.learning_rate"
            )


def _is_among(name, names):
    return any(name == one or name.startswith(f"{one}.") for one in names)


def _comparable(config):
    """{setting: its value in JSON} without FREE ones; data by their names, wherever they lie."""
    settings = {
        name: value
        for name, value in flat(json.loads(json.dumps(config))).items()
        if not _is_among(name, FREE)
    }
    if tower_in(config["model"])["vision_tower"] == "vit":
        settings.pop("micro_batches", None)  # which changes nothing where there is no BatchNorm
    for name, value in settings.items():
        is_data = name.startswith(("data.", "sentences."))
        if is_data and name.endswith((".train", ".kept")) and value is not None:
            # From any folder, as older runs recorded a path such as "." as it was given.
            value = place_from_anywhere(value, {})
            settings[name] = value.rstrip("/").rpartition("/")[2]
    return settings
