"""AdamW, with the learning rate and the weight decay of the published recipe."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from cyclip_jax.errors import UserError, check_known
from cyclip_jax.interop.names import torch_name
from cyclip_jax.training.freezing import check_patterns, frozen_out
from cyclip_jax.training.rates import check_rates

_NEVER_DECAYED = ("positional_embedding", "class_embedding")
_NOT_DECAYED_BY_OFFICIAL_NAME = ("bn", "ln", "bias", "logit_scale")


def learning_rate_schedule(
    learning_rate: float, *, warmup_steps: int, total_steps: int, offset_steps: int = 0
) -> Callable[[Int[Array, ""] | int], Float[Array, ""]]:
    """Linear warm-up, then half a cosine to zero.

    base·(t+1)/w for t < w, else base·½(1 + cos(π(t−w)/(S−w))), with w = warmup_steps and
    S = total_steps.

    Args:
      learning_rate: the highest rate, which the warm-up ends with.
      warmup_steps: w, the length of the warm-up.
      total_steps: S, the length of the run.
      offset_steps: a number that is added to the step. The schedule then starts so many steps late
        in its course, and the last so many steps of the run lie past its end, where the cosine
        rises again.

    Returns:
      A function of the step t = 0, 1, … (int scalar) that gives a float scalar.

    Raises:
      UserError: the warm-up is negative or as long as the run.
    """
    check_warmup(warmup_steps, total_steps)

    def schedule(step):
        step = jnp.asarray(step + offset_steps, jnp.result_type(float))
        warmup = (step + 1) / max(warmup_steps, 1)
        progress = (step - warmup_steps) / (total_steps - warmup_steps)
        cosine = (1 + jnp.cos(jnp.pi * progress)) / 2
        return learning_rate * jnp.where(step < warmup_steps, warmup, cosine)

    return schedule


def check_warmup(
    warmup_steps: int, total_steps: int | None, name: str = "config.optimizer.warmup_steps"
) -> None:
    """Raises UserError unless a warm-up ends before the run, whose length may not be known yet."""
    if total_steps is None and warmup_steps < 0:
        raise UserError(f"{name} {warmup_steps} must be at least 0")
    if total_steps is not None and not 0 <= warmup_steps < total_steps:
        raise UserError(
            f"{name} {warmup_steps} must be at least 0 and less than the run's {total_steps} steps"
        )


def weight_decay_mask(params: Mapping[str, Any], rule: str = "matrices") -> dict[str, Any]:
    """Says which parameters are decayed.

    Args:
      params: a model's parameters, a nested dict of arrays or shapes.
      rule: "matrices" decays kernels, projections and the token embedding, but no vector, scalar,
        positional or class embedding. "official_names" decays every parameter whose PyTorch name
        has none of the official code's substrings: besides those above, the down-sampling
        BatchNorms' scales ("downsample.1.weight") and the positional and class embeddings.

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
    # The parameters' own type, where it is not narrower: equality is tested in float64.
    mu_dtype = "bfloat16" if first_moment_dtype == "bfloat16" else None
    # Without clipping the state has the same structure: a run may be continued with it.
    clip = gradient_clip_norm is not None
    return optax.chain(
        optax.clip_by_global_norm(gradient_clip_norm) if clip else optax.identity(),
        optax.scale_by_adam(b1=beta1, b2=beta2, eps=eps, mu_dtype=mu_dtype),
        optax.add_decayed_weights(
            weight_decay, mask=functools.partial(weight_decay_mask, rule=weight_decay_rule)
        ),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer:
    """config.optimizer.

    Attributes:
      learning_rate, warmup_steps: as `learning_rate_schedule`.
      schedule_offset_epochs: how many passes over the data late the schedule starts.
      beta1, beta2, eps, first_moment_dtype, weight_decay, weight_decay_rule, gradient_clip_norm: as
        `adamw`.
      freeze: which parameters do not train, see `freezing.trainable_by`.
      layer_decay, tower_rates: factors of the learning rate, see `rates.rate_factors`.

    Raises:
      UserError: a setting has a value that no run can use.
    """

    learning_rate: float
    warmup_steps: int
    schedule_offset_epochs: int
    beta1: float
    beta2: float
    eps: float
    first_moment_dtype: str
    weight_decay: float
    weight_decay_rule: str
    gradient_clip_norm: float | None
    freeze: Sequence[str]
    layer_decay: float
    tower_rates: Mapping[str, float]

    def __post_init__(self) -> None:
        check_patterns(self.freeze)
        check_rates(self.layer_decay, self.tower_rates)
        check_warmup(self.warmup_steps, None)
        if self.schedule_offset_epochs < 0:
            raise UserError("config.optimizer.schedule_offset_epochs must be at least 0")
        if self.first_moment_dtype not in ("float32", "bfloat16"):
            raise UserError(
                f"config.optimizer.first_moment_dtype {self.first_moment_dtype!r} must be "
                "'float32' or 'bfloat16'"
            )
        rule = "config.optimizer.weight_decay_rule"
        check_known(rule, self.weight_decay_rule, _WEIGHT_DECAY_RULES)

    def transformation(self) -> optax.GradientTransformation:
        """AdamW without its learning rate, see `adamw`."""
        optimizer = adamw(
            beta1=self.beta1,
            beta2=self.beta2,
            eps=self.eps,
            weight_decay=self.weight_decay,
            gradient_clip_norm=self.gradient_clip_norm,
            weight_decay_rule=self.weight_decay_rule,
            first_moment_dtype=self.first_moment_dtype,
        )
        return frozen_out(optimizer, self.freeze)

    def schedule(
        self, *, total_steps: int, steps_per_epoch: int, steps_before: int = 0
    ) -> Callable[[Any], jax.Array]:
        """The learning rate as a function of the step.

        The train step multiplies by −schedule(step) itself: the learning rate then follows the
        run's step, also over steps whose update was skipped and left the optimiser's state
        untouched.

        Args:
          total_steps: length of the run.
          steps_per_epoch: steps of one pass over the training data.
          steps_before: steps before those on pairs. They have a schedule of their own, whose
            warm-up is the same share of it; that of the pairs begins as in a run without them.

        Raises:
          UserError: the warm-up is as long as the run.
        """
        steps = total_steps - steps_before
        offset = self.schedule_offset_epochs * steps_per_epoch
        if not steps_before or not steps:
            return learning_rate_schedule(
                self.learning_rate,
                warmup_steps=self.warmup_steps,
                total_steps=total_steps,
                offset_steps=offset,
            )
        on_pairs = self.schedule(total_steps=steps, steps_per_epoch=steps_per_epoch)
        before = learning_rate_schedule(
            self.learning_rate,
            warmup_steps=self.warmup_steps * steps_before // steps,
            total_steps=steps_before,
        )
        return lambda step: jnp.where(
            step < steps_before, before(step), on_pairs(step - steps_before)
        )


def create_optimizer(
    *, total_steps: int, steps_per_epoch: int, **section: Any
) -> tuple[optax.GradientTransformation, Callable[[Any], jax.Array]]:
    """The (transformation, schedule) of an `Optimizer` with the arguments `section`."""
    optimizer = Optimizer(**section)
    schedule = optimizer.schedule(total_steps=total_steps, steps_per_epoch=steps_per_epoch)
    return optimizer.transformation(), schedule
