"""The optimiser: what becomes of a gradient before the learning rate multiplies it."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from cyclip_jax.errors import UserError, check_known
from cyclip_jax.interop.names import torch_name
from cyclip_jax.runtime.sections import constructed
from cyclip_jax.training.clipping import CLIPS, WITH_HISTORY, clipping
from cyclip_jax.training.freezing import check_patterns, frozen_out
from cyclip_jax.training.rates import check_rates
from cyclip_jax.training.scaling import Lamb, Lion, Muon
from cyclip_jax.training.schedules import (
    Schedule,
    check_lengths,
    check_schedule,
    learning_rate_schedule,
)

_NEVER_DECAYED = (
    *("positional_embedding", "class_embedding", "pos_embed"),
    *("query", "latent", "head_scale"),
)
_NOT_DECAYED_BY_OFFICIAL_NAME = ("bn", "ln", "bias", "logit_scale")


def weight_decay_mask(params: Mapping[str, Any], rule: str = "matrices") -> dict[str, Any]:
    """Says which parameters are decayed.

    Args:
      params: a model's parameters, a nested dict of arrays or shapes.
      rule: "matrices" decays kernels, projections and the token embedding, but no vector, scalar,
        positional or class embedding, nor a pool's query. "official_names" decays every parameter
        whose PyTorch name has none of the official code's substrings: besides those above, the
        down-sampling BatchNorms' scales ("downsample.1.weight") and the positional and class
        embeddings.

    Returns:
      The same tree with booleans.
    """
    decays = _WEIGHT_DECAY_RULES[rule]
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: decays(tuple(part.key for part in path), leaf), params
    )


def _is_matrix(path, leaf):
    return leaf.ndim >= 2 and path[-1] not in _NEVER_DECAYED


def _is_decayed_by_official_name(path, leaf):
    del leaf
    return not any(part in torch_name(path) for part in _NOT_DECAYED_BY_OFFICIAL_NAME)


NAMES = ("adamw", "lion", "lamb", "muon")
# {section of config.optimizer: its constructor}
_SECTIONS: dict[str, Callable[..., Any]] = {
    **{kind: constructor for kind, constructor in CLIPS.items() if constructor is not None},
    **{"lion": Lion, "lamb": Lamb, "muon": Muon},
}
_WEIGHT_DECAY_RULES = {"matrices": _is_matrix, "official_names": _is_decayed_by_official_name}


def adamw(
    *,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    gradient_clip_norm: float | None,
    weight_decay_rule: str = "matrices",
    first_moment_dtype: str = "float32",
) -> optax.GradientTransformation:
    """AdamW without its learning rate, as an optax transformation.

    Args:
      beta1: decay of the mean of gradients.
      beta2: decay of the mean of squared gradients.
      eps: the number that is added to the root of the mean square.
      weight_decay: factor of the parameters that the update pulls to zero.
      gradient_clip_norm: largest global gradient norm, or None for no clipping.
      weight_decay_rule: which parameters are decayed (see `weight_decay_mask`).
      first_moment_dtype: type of the mean of gradients; "bfloat16" saves two bytes per parameter.
        The mean of their squares keeps the parameters' type: with beta2 = 0.999 a step moves it by
        a thousandth, less than bfloat16's eight bits can show.
    """
    return optax.chain(
        clipping(None, gradient_clip_norm),
        optax.scale_by_adam(b1=beta1, b2=beta2, eps=eps, mu_dtype=_dtype(first_moment_dtype)),
        _decayed(weight_decay, weight_decay_rule),
    )


def _dtype(name):
    """The parameters' own type, where bfloat16 is not asked for: equality is tested in float64."""
    return "bfloat16" if name == "bfloat16" else None


def _decayed(weight_decay, rule):
    return optax.add_decayed_weights(
        weight_decay, mask=functools.partial(weight_decay_mask, rule=rule)
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer:
    """config.optimizer.

    Attributes:
      learning_rate, warmup_steps, schedule, cooldown_steps, cooldown_from: as
        `learning_rate_schedule`.
      schedule_offset_epochs: how many passes over the data late the schedule starts.
      beta1, beta2, eps, first_moment_dtype, weight_decay, weight_decay_rule, gradient_clip_norm: as
        `adamw`.
      gradient_clip: a kind of `clipping.CLIPS`. gradient_clip_norm bounds every kind from above.
      name: one of NAMES.
      agc, autoclip, zclip, adagc, lion, lamb, muon: the fields of these kinds and optimisers.
      freeze: which parameters do not train, see `freezing.trainable_by`.
      layer_decay, tower_rates: factors of the learning rate, see `rates.rate_factors`.

    Raises:
      UserError: a setting has a value that no run can use.
    """

    name: str
    learning_rate: float
    warmup_steps: int
    schedule: str
    cooldown_steps: int
    cooldown_from: float
    schedule_offset_epochs: int
    beta1: float
    beta2: float
    eps: float
    first_moment_dtype: str
    weight_decay: float
    weight_decay_rule: str
    gradient_clip: str
    gradient_clip_norm: float | None
    agc: Mapping[str, Any]
    autoclip: Mapping[str, Any]
    zclip: Mapping[str, Any]
    adagc: Mapping[str, Any]
    lion: Mapping[str, Any]
    lamb: Mapping[str, Any]
    muon: Mapping[str, Any]
    freeze: Sequence[str]
    layer_decay: float
    tower_rates: Mapping[str, float]

    def __post_init__(self) -> None:
        check_patterns(self.freeze)
        check_rates(self.layer_decay, self.tower_rates)
        check_known("config.optimizer.name", self.name, NAMES)
        check_lengths(self.warmup_steps, None, self.cooldown_steps)
        check_schedule(self.schedule, self.cooldown_steps, self.cooldown_from)
        if self.schedule_offset_epochs < 0:
            raise UserError("config.optimizer.schedule_offset_epochs must be at least 0")
        if self.first_moment_dtype not in ("float32", "bfloat16"):
            raise UserError(
                f"config.optimizer.first_moment_dtype {self.first_moment_dtype!r} must be "
                "'float32' or 'bfloat16'"
            )
        rule = "config.optimizer.weight_decay_rule"
        check_known(rule, self.weight_decay_rule, _WEIGHT_DECAY_RULES)
        check_known("config.optimizer.gradient_clip", self.gradient_clip, CLIPS)
        if self.gradient_clip == "norm" and self.gradient_clip_norm is None:
            raise UserError(
                "config.optimizer.gradient_clip is 'norm'; set config.optimizer.gradient_clip_norm "
                "to the largest norm"
            )
        for name in _SECTIONS:
            self._section(name)

    def _section(self, name):
        return constructed(_SECTIONS[name], getattr(self, name), f"config.optimizer.{name}")

    def clipping(self) -> optax.GradientTransformation:
        """What is done to the gradient first, see clipping.py."""
        kind = self.gradient_clip
        return clipping(self._section(kind) if CLIPS[kind] else None, self.gradient_clip_norm)

    def transformation(self) -> optax.GradientTransformation:
        """The optimiser without its learning rate."""
        parts = [self.clipping(), self._scaling()]
        parts.append(_decayed(self.weight_decay, self.weight_decay_rule))
        if self.name == "lamb":
            decayed = functools.partial(weight_decay_mask, rule=self.weight_decay_rule)
            parts.append(optax.masked(optax.scale_by_trust_ratio(), decayed))
        return frozen_out(optax.chain(*parts), self.freeze)

    def _scaling(self):
        dtype = _dtype(self.first_moment_dtype)
        if self.name == "lion":
            lion = self._section("lion")
            return optax.scale_by_lion(lion.beta1, lion.beta2, mu_dtype=dtype)
        adam = self._section("lamb") if self.name == "lamb" else self
        by_adam = optax.scale_by_adam(adam.beta1, adam.beta2, adam.eps, mu_dtype=dtype)
        if self.name == "muon":
            return self._section("muon").transformation(by_adam, dtype)
        return by_adam

    def learning_rate_schedule(
        self,
        *,
        total_steps: int,
        steps_per_epoch: int,
        steps_before: int = 0,
        own_course: tuple[int, float, int] | None = None,
    ) -> Schedule:
        """The learning rate as a function of the step.

        The train step multiplies by −schedule(step) itself: the learning rate then follows the
        run's step, also over steps whose update was skipped and left the optimiser's state
        untouched.

        Args:
          total_steps: length of the run.
          steps_per_epoch: steps of one pass over the training data.
          steps_before: steps before those on pairs. They have a schedule of their own, whose
            warm-up and cool-down are the same share of it; that of the pairs begins as in a run
            without them.
          own_course: (steps, highest rate, warm-up) of so many last steps with a schedule of their
            own; that of the others then ends before them. None is one schedule to the end.

        Raises:
          UserError: the warm-up, with the cool-down, is as long as the run, or as these parts.
        """
        if own_course is not None:
            return self._in_two(own_course, total_steps, steps_per_epoch, steps_before)
        steps = total_steps - steps_before
        course = {
            "learning_rate": self.learning_rate,
            "schedule": self.schedule,
            "cooldown_from": self.cooldown_from,
        }
        if not steps_before or not steps:
            return learning_rate_schedule(
                **course,
                warmup_steps=self.warmup_steps,
                total_steps=total_steps,
                offset_steps=self.schedule_offset_epochs * steps_per_epoch,
                cooldown_steps=self.cooldown_steps,
            )
        on_pairs = self.learning_rate_schedule(total_steps=steps, steps_per_epoch=steps_per_epoch)
        before = learning_rate_schedule(
            **course,
            warmup_steps=self.warmup_steps * steps_before // steps,
            total_steps=steps_before,
            cooldown_steps=self.cooldown_steps * steps_before // steps,
        )
        return _then(before, steps_before, on_pairs)

    def _in_two(self, own_course, total_steps, steps_per_epoch, steps_before):
        """The schedule whose last steps have their own."""
        steps, rate, warmup_steps = own_course
        begins = max(total_steps - steps, steps_before)
        last = dataclasses.replace(self, learning_rate=rate, warmup_steps=warmup_steps)
        own = last.learning_rate_schedule(total_steps=total_steps - begins, steps_per_epoch=0)
        if not begins:
            return own
        before = self.learning_rate_schedule(
            total_steps=begins, steps_per_epoch=steps_per_epoch, steps_before=steps_before
        )
        return _then(before, begins, own)


def _then(before: Schedule, steps: int, after: Schedule) -> Schedule:
    """A schedule of so many steps, and then another one."""
    return lambda step: jnp.where(step < steps, before(step), after(step - steps))


def create_optimizer(
    *, total_steps: int, steps_per_epoch: int, **section: Any
) -> tuple[optax.GradientTransformation, Schedule]:
    """The (transformation, schedule) of an `Optimizer` with the arguments `section`."""
    optimizer = Optimizer(**section)
    schedule = optimizer.learning_rate_schedule(
        total_steps=total_steps, steps_per_epoch=steps_per_epoch
    )
    return optimizer.transformation(), schedule


def check_continued(before: Mapping[str, Any], after: Mapping[str, Any], where: str) -> None:
    """Raises UserError where a run goes on with an optimiser that keeps another state.

    Args:
      before: {"optimizer.gradient_clip": …}, the flat settings of the run until now.
      after: those with which it goes on.
      where: the run's directory.
    """
    for name, keeps in _KEEPS.items():
        if keeps(before) != keeps(after):
            raise UserError(
                f"the optimiser of {where} keeps what config.optimizer.{name} "
                f"{before[f'optimizer.{name}']!r} needs, and "
                f"{after[f'optimizer.{name}']!r} needs something else, so that this run cannot go "
                f"on with it; set it as it was, or begin another --workdir with "
                f"--config.init_from={where}"
            )


def _history_kept(settings):
    kind = settings["optimizer.gradient_clip"]
    return kind if kind in WITH_HISTORY else None


def _window_kept(settings):
    kind = settings["optimizer.gradient_clip"]
    return settings["optimizer.autoclip.window"] if kind == "autoclip" else None


def _name_kept(settings):
    return settings["optimizer.name"]


# {setting: function of flat settings that gives what the optimiser's state is shaped by}
_KEEPS: dict[str, Callable[[Mapping[str, Any]], Any]] = {
    "name": _name_kept,
    "gradient_clip": _history_kept,
    "autoclip.window": _window_kept,
}
