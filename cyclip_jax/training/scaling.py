"""Optimisers besides AdamW: what they make of a gradient before weight decay and learning rate."""

import dataclasses
import functools
import math
import re
from typing import Any

import jax
import optax
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from cyclip_jax.errors import UserError

# Kernels inside the towers' blocks, and those of the attention that pools a ResNet's features.
_INSIDE = re.compile(r"(/resblocks/.*|/stages/.*|/attnpool/[qkv]_proj)/kernel$")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lion:
    """config.optimizer.lion: the sign of a mean of gradients (Chen et al. 2023).

    The update is sign(β1·m + (1−β1)·g), and then m ← β2·m + (1−β2)·g.

    Attributes:
      beta1: β1.
      beta2: β2.
    """

    beta1: float
    beta2: float

    def __post_init__(self) -> None:
        check_decays("lion", beta1=self.beta1, beta2=self.beta2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lamb:
    """config.optimizer.lamb: AdamW by layers (You et al. 2020).

    The update u of AdamW, with its weight decay, becomes u·‖w‖/‖u‖ for each parameter w that is
    decayed. The others keep that of AdamW, as in the authors' code: a scale that starts at zero
    would stay there.

    Attributes:
      beta1: decay of the mean of gradients.
      beta2: decay of the mean of squared gradients.
      eps: the number that is added to the root of the mean square.
    """

    beta1: float
    beta2: float
    eps: float

    def __post_init__(self) -> None:
        check_decays("lamb", beta1=self.beta1, beta2=self.beta2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Muon:
    """config.optimizer.muon: the mean of gradients, made orthogonal (Jordan et al. 2024).

    This is for kernels inside the towers, each as a matrix [in, out]. Query, key and value stand in
    one kernel and are three matrices; a convolution is [height·width·in, out]. All else is trained
    as by AdamW: embeddings, the first layers of the image towers, the last projections, vectors and
    scalars.

    With Nesterov's mean m̂ = β·m + (1−β)·g, where m and g are corrected for their start, the update
    is rms·√max(in, out)·NS(m̂). NS are Newton–Schulz steps, which bring the singular values near 1.
    The factor gives numbers of the size of AdamW's updates, so that learning rate and weight decay
    are those of AdamW (Liu et al. 2025).

    Attributes:
      beta: β.
      steps: how many Newton–Schulz steps.
      rms: the root mean square of the update's numbers, which is about 0.2 for AdamW.
    """

    beta: float
    steps: int
    rms: float

    def __post_init__(self) -> None:
        check_decays("muon", beta=self.beta)
        if self.steps < 1:
            raise UserError(f"config.optimizer.muon.steps {self.steps} must be at least 1")
        if self.rms <= 0:
            raise UserError(f"config.optimizer.muon.rms {self.rms} must be above 0")

    def transformation(
        self, others: optax.GradientTransformation, mu_dtype: str | None
    ) -> optax.GradientTransformation:
        """Muon, without decay and rate.

        Args:
          others: what all other parameters are trained by.
          mu_dtype: type of the mean of gradients; None is that of the parameters.
        """
        inner: Any = scale_by_muon(
            ns_steps=self.steps,
            beta=self.beta,
            mu_dtype=mu_dtype,
            weight_dimension_numbers=lambda tree: jax.tree.map(_dimensions, tree),
        )

        def update(updates, state, params=None):
            del params
            mean = jax.tree_util.tree_map_with_path(_unpacked, state.mu)
            updates = jax.tree_util.tree_map_with_path(_unpacked, updates)
            updates, new = inner.update(updates, state._replace(mu=mean))
            updates = jax.tree.map(lambda u: self.rms * math.sqrt(_largest_side(u)) * u, updates)
            packed = functools.partial(
                jax.tree.map, lambda old, new: new.reshape(old.shape), state.mu
            )
            return packed(updates), new._replace(mu=packed(new.mu))

        muon = optax.GradientTransformation(inner.init, update)
        return optax.chain(optax.masked(muon, are_inside), optax.masked(others, _are_not_inside))


def are_inside(params: Any) -> Any:
    """A tree like that of the parameters: whether each is a kernel inside a tower's blocks."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: _INSIDE.search("/" + "/".join(str(part.key) for part in path)) is not None,
        params,
    )


def _are_not_inside(params):
    return jax.tree.map(lambda is_inside: not is_inside, are_inside(params))


def _unpacked(path, leaf):
    """[in, 3·width] of query, key and value as [in, 3, width]; all else as it is."""
    return leaf.reshape(len(leaf), 3, -1) if path[-2].key == "in_proj" else leaf


def _dimensions(leaf):
    """Which axes of an unpacked kernel are a matrix: the last is its output."""
    axes = 0 if leaf.ndim < 4 else (0, 1, 2)
    return MuonDimensionNumbers(reduction_axis=axes, output_axis=leaf.ndim - 1)


def _largest_side(leaf):
    *inputs, outputs = leaf.shape
    return max(math.prod(inputs) if leaf.ndim == 4 else inputs[0], outputs)


def check_decays(section: str, **decays: float) -> None:
    """Raises UserError where the decay rate of a mean is none."""
    for name, decay in decays.items():
        if not 0 <= decay < 1:
            raise UserError(f"config.optimizer.{section}.{name} {decay} must be from 0 to below 1")
