"""Averages of the weights along a run."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from cyclip_jax.errors import UserError, check_known
from cyclip_jax.parallel import Tree
from cyclip_jax.training.freezing import Trainable, joined, of_statistics, parted

_State = TypeVar("_State")
Share = Callable[[Int[Array, ""]], Float[Array, ""]]

KINDS = ("none", "ema", "beta")
# Parameters that only training has: no average holds them, no export and no evaluation.
OF_TRAINING = ("sentence_head",)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Average:
    """config.average.

    Attributes:
      kind: "none"; "ema", the exponential moving average; or "beta", the Beta moving average of
        CLIPood (Shu et al. 2023).
      decay: d of the former, θ̄ ← d·θ̄ + (1 − d)·θ.
      beta: β of the latter, which weighs the weights after t of T steps by the density of
        Beta(β, β) at (t + ½) / (T + 1).

    Raises:
      UserError: a setting has a value that no run can use.
    """

    kind: str
    decay: float
    beta: float

    def __post_init__(self) -> None:
        check_known("config.average.kind", self.kind, KINDS)
        if not 0 <= self.decay < 1:
            raise UserError(f"config.average.decay {self.decay} must be from 0 to below 1")
        if not 0 < self.beta < math.inf:
            raise UserError(f"config.average.beta {self.beta} must be greater than 0")

    @property
    def is_on(self) -> bool:
        """Whether there is an average."""
        return self.kind != "none"

    def share(self, *, total_steps: int, steps_before: int = 0) -> Share | None:
        """Function from the step to how much of the average its weights become, or None.

        Args:
          total_steps: length of the run.
          steps_before: steps on sentences alone, after which the average begins. Where there are
            no others, it begins with them.
        """
        if not self.is_on:
            return None
        first = steps_before if steps_before < total_steps else 0
        if self.kind == "beta":
            shares = beta_shares(total_steps - first, self.beta)
        else:
            shares = np.asarray([1.0, 1 - self.decay])

        def share(step):
            number = jnp.clip(step + 1 - first, 0, len(shares) - 1)
            return jnp.asarray(shares, jnp.result_type(float))[number]

        return share


def beta_shares(steps: int, beta: float) -> Float[np.ndarray, "steps+1"]:
    """w_t / Σ_{k≤t} w_k for t = 0 … T, with w_t the density of Beta(β, β) at (t + ½) / (T + 1).

    With these shares θ̄_t = θ̄_{t−1} + share_t·(θ_t − θ̄_{t−1}) is the mean of θ_0 … θ_t with the
    weights w, the Beta moving average of CLIPood (Shu et al. 2023). The density's constant factor
    cancels.

    Args:
      steps: T.
      beta: β.
    """
    x = (np.arange(steps + 1) + 0.5) / (steps + 1)
    weights = (x * (1 - x)) ** (beta - 1)
    return weights / np.cumsum(weights)


def part_of(full: Tree, trainable: Trainable | None) -> Tree:
    """What is averaged of {"params": …, "batch_stats": …}: what trains, but for a sentence head.

    What does not train is its own average. It has None in its place, which costs no memory.

    Args:
      full: nested dicts of arrays or shapes.
      trainable: which parameters train; None is all.
    """
    params = {name: part for name, part in full["params"].items() if name not in OF_TRAINING}
    moves = None if trainable is None else of_statistics(trainable)
    return {
        "params": parted(trainable, params)[0],
        "batch_stats": parted(moves, full["batch_stats"])[0],
    }


def with_average(state: _State, trainable: Trainable | None) -> _State:
    """A state, of arrays or of shapes, with the average that a run begins with: its own weights.

    Args:
      state: a TrainState without an average.
      trainable: which parameters train; None is all.
    """
    begun: Any = state
    own = part_of({"params": begun.params, "batch_stats": begun.batch_stats}, trainable)
    leaves = jax.tree.leaves(own)
    if leaves and isinstance(leaves[0], jax.Array):
        # Copies, as a step reuses the memory of both.
        sharding = jax.tree.map(lambda array: array.sharding, own)
        copy = functools.partial(jax.tree.map, jnp.copy)
        own = jax.jit(copy, out_shardings=sharding)(own)
    return dataclasses.replace(begun, average=own)


def like(average: Tree, full: Tree) -> Tree:
    """The part of {"params": …, "batch_stats": …} that an average holds, in the average's shape."""
    return jax.tree.map(
        lambda one, other: None if one is None else other,
        *(average, _parts_in(average, full)),
        is_leaf=_is_none,
    )


def followed(average: Tree, full: Tree, share: Float[Array, ""]) -> Tree:
    """The average after a step: θ̄ + share·(θ − θ̄), by which what is constant stays to the last bit.

    Args:
      average: as `part_of` gives it.
      full: {"params": …, "batch_stats": …} after the step.
      share: how much of the average these become.
    """
    return jax.tree.map(
        lambda old, new: (old + share * (new - old)).astype(old.dtype), average, like(average, full)
    )


def completed(average: Tree, full: Tree) -> Tree:
    """{"params": …, "batch_stats": …} of the average, with what does not train from `full`."""
    return joined(average, _parts_in(average, full))


def _parts_in(average, full):
    """`full` without the parts, such as a sentence head, that no average holds."""
    return {kind: {name: full[kind][name] for name in part} for kind, part in average.items()}


def _is_none(leaf):
    return leaf is None
