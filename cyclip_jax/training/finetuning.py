"""Recipes of fine-tuning: the config of a run that begins as a trained model."""

import dataclasses
import difflib
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_collections

from cyclip_jax import defaults
from cyclip_jax.errors import UserError
from cyclip_jax.evals.data.labelled import LabelledImages, open_labelled
from cyclip_jax.interop.checkpoint import Checkpoint
from cyclip_jax.interop.class_head import parted_head
from cyclip_jax.interop.pretrained import completed, described_by, open_checkpoint
from cyclip_jax.runtime.command import literal

# The scales and biases of the norms of all image towers, in any depth.
NORMS = r"visual/(.*/)?(ln|bn|norm|downsample_bn)[^/]*/(scale|bias)"
_TEXTS = ("text/.*", "logit_scale")
HELD_OUT = "held_out"  # the evaluation of candidates


@dataclasses.dataclass(frozen=True, kw_only=True)
class FineTuning:
    """What a model is fine-tuned to, and how.

    Attributes:
      model: anything that `cyclip_jax.load` takes.
      train: labelled pictures, as `open_labelled` reads them.
      tests: {name of an evaluation: labelled pictures}.
      method: a key of METHODS.
      names, image_key, label_key: of all labelled pictures, see `Classes`.
      epochs: passes over the pictures.
      batch_size: pictures in a step.
      seed: of the run.
      settings: {name of a setting: value} that replace those of the method.
    """

    model: str
    train: str
    tests: Mapping[str, str]
    method: str = "linear"
    names: str | None = None
    image_key: str | None = None
    label_key: str | None = None
    epochs: int = 10
    batch_size: int = 64
    seed: int = 0
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def open_pictures(self) -> LabelledImages:
        """Opens all pictures of `train`."""
        return open_labelled(
            self.train,
            config_key="config.classes.train",
            classes=self.names,
            image_key=self.image_key,
            label_key=self.label_key,
        )

    def open_model(self) -> Checkpoint:
        """Opens the model without a head that it may have: another takes its place."""
        _, opened = parted_head(completed(open_checkpoint(self.model)))
        return opened

    def evaluation(self, folder: str, *, held_out_share: float = 0.0) -> ml_collections.ConfigDict:
        """The settings of an evaluation of labelled pictures by what the method trains."""
        return defaults.zeroshot(
            folder,
            classes=self.names,
            image_key=self.image_key,
            label_key=self.label_key,
            head=self.method == "linear",
            held_out_share=held_out_share,
        )


def _linear(config, steps):
    """A linear layer, with the recipe of FT-CLIP (Dong et al. 2022)."""
    config.optimizer.learning_rate = 6e-4 * config.batch_size / 2048
    config.optimizer.warmup_steps = steps // 5
    config.optimizer.weight_decay = 0.05
    config.optimizer.layer_decay = 0.6
    config.optimizer.freeze = _TEXTS
    config.average.kind = "ema"
    config.average.decay = min(0.9998, 1 - 10 / max(steps, 20))


def _margin(config, steps):
    """The margin metric softmax, with the recipe of CLIPood (Shu et al. 2023)."""
    del steps
    config.classes.margin = 0.3
    config.optimizer.learning_rate = 5e-6
    config.optimizer.warmup_steps = 0
    config.optimizer.weight_decay = 0.1
    config.optimizer.freeze = (*_TEXTS, "class_head/.*", NORMS)
    config.average.kind = "beta"


def _contrastive(config, steps):
    """The loss of the pretraining, with prompts for captions (Goyal et al. 2023)."""
    config.classes.loss = "pairs"
    config.optimizer.learning_rate = 1e-5
    config.optimizer.warmup_steps = steps // 10
    config.optimizer.weight_decay = 0.1


# {name: function (config, steps) that sets what is special about the method}
METHODS: dict[str, Callable[[Any, int], None]] = {
    "linear": _linear,
    "contrastive": _contrastive,
    "margin": _margin,
}


def fine_tuning_config(
    wanted: FineTuning, opened: Checkpoint, pictures: LabelledImages, *, held_out_share: float = 0.0
) -> ml_collections.ConfigDict:
    """The config of a run that fine-tunes.

    Args:
      wanted: what is asked for.
      opened: `wanted.open_model()`.
      pictures: `wanted.open_pictures()`.
      held_out_share: share of the pictures that is held out, and alone evaluated; with 0 all are
        trained on, and `wanted.tests` are evaluated.

    Raises:
      UserError: there is no such setting, or no whole batch of pictures.
    """
    config = described_by(opened, defaults.get_config())
    with config.unlocked():
        if config.data.tokenizer == "sentencepiece":
            config.data.vocabulary = None  # the run takes that of the model
        config.init_from = wanted.model
        config.seed, config.batch_size = wanted.seed, wanted.batch_size
        config.num_epochs = wanted.epochs
        config.classes.update(
            {
                "train": wanted.train,
                "names": wanted.names,
                "image_key": wanted.image_key,
                "label_key": wanted.label_key,
                "held_out_share": held_out_share,
            }
        )
        config.data.augmentation = "random_resized_crop"
        config.data.crop_scale = (0.7, 1.0)
        steps = len(pictures.source) // wanted.batch_size * wanted.epochs
        METHODS[wanted.method](config, steps)
        if config.classes.loss == "head":
            config.model.num_classes = len(pictures.classes)
        config.log_every_steps = max(steps // 50, 1)
        config.checkpoint_every_steps = max(steps // 4, 1)
        places = {HELD_OUT: wanted.train} if held_out_share else wanted.tests
        config.evals = {
            name: wanted.evaluation(place, held_out_share=held_out_share)
            for name, place in places.items()
        }
        for name, value in wanted.settings.items():
            set_field(config, name, value)
    return config.lock()


def set_field(config: Any, name: str, value: Any) -> None:
    """Sets a field of a ConfigDict by its name with dots; UserError where there is none."""
    *sections, field = name.removeprefix("config.").split(".")
    section: Any = config
    for part in sections:
        section = section.get(part) if hasattr(section, "get") else None
    if not hasattr(section, "get") or field not in section:
        known = [
            f"{outer}.{inner}"
            for outer in ("optimizer", "average", "classes", "data", "loss", "model")
            for inner in config[outer]
        ]
        near = difflib.get_close_matches(name, [*config, *known], n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"there is no setting {name!r}{hint}")
    try:
        section[field] = tuple(value) if isinstance(value, list) else value
    except TypeError as error:
        raise UserError(f"the setting {name} cannot be {value!r} ({error})") from error


def parsed_setting(text: str, flag: str) -> tuple[str, str]:
    """(name, value) of NAME=VALUE; UserError where it is not that."""
    name, equals, value = text.partition("=")
    if not equals or not name or not value:
        raise UserError(f"{flag}={text} must be NAME=VALUE, such as optimizer.learning_rate=1e-5")
    return name, value


def candidates(choices: Sequence[str]) -> list[dict[str, Any]]:
    """All combinations of what `--choose=NAME=VALUE,VALUE` names, as settings."""
    options = []
    for text in choices:
        name, values = parsed_setting(text, "--choose")
        options.append([(name, literal(value)) for value in values.split(",")])
    return [dict(combination) for combination in itertools.product(*options)]
