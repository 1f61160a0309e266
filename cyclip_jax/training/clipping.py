"""Clipping of gradients: what each kind does, its settings, and the history that it keeps.

Where a kind does not bind, it gives back the gradient itself, to the bit.
"""

import collections
import dataclasses
import statistics
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from cyclip_jax.errors import UserError

FACTOR = "gradient_clip_factor"  # the metric: global norm after clipping, over that before

Gradients = Any  # a tree like that of the parameters
# (the clipped gradients, their global norm, the state)
Clipped = tuple[Gradients, Float[Array, ""], Any]


class Clip(Protocol):
    """A kind of clipping. Its fields are its section of config.optimizer."""

    def init(self, params: Gradients) -> Any:
        """Its state before the first step."""
        ...

    def clip(
        self, grads: Gradients, norm: Float[Array, ""], state: Any, params: Gradients
    ) -> Clipped:
        """Clips gradients of this global norm."""
        ...


def clipping(
    clip: Clip | None, max_norm: float | None = None
) -> optax.GradientTransformationExtraArgs:
    """The transformation that clips by a kind, and then to a largest global norm.

    Its `update` enters FACTOR into the dict `told`, where it is given one and anything can clip.

    Args:
      clip: the kind; None is none.
      max_norm: the largest global norm, or None.
    """

    def init(params):
        return optax.EmptyState() if clip is None else clip.init(params)

    def update(updates, state, params=None, *, told=None, **_):
        if clip is None and max_norm is None:
            return updates, state
        before = norm = optax.global_norm(updates)
        if clip is not None:
            updates, norm, state = clip.clip(updates, norm, state, params)
        if max_norm is not None:
            updates, norm = to_norm(updates, norm, max_norm)
        if told is not None:
            told[FACTOR] = jnp.where(before > 0, norm / before, 1)
        return updates, state

    return optax.GradientTransformationExtraArgs(init, update)


def to_norm(
    grads: Gradients, norm: Float[Array, ""], bound: Float[Array, ""] | float
) -> tuple[Gradients, Float[Array, ""]]:
    """g·min(1, c/‖g‖) (Pascanu et al. 2013).

    Args:
      grads: the gradients g.
      norm: their global norm ‖g‖.
      bound: c.

    Returns:
      (the clipped gradients, their global norm).
    """
    bound = jnp.asarray(bound, norm.dtype)
    clipped = jax.tree.map(
        lambda g: jnp.where(norm <= bound, g, (g / norm.astype(g.dtype)) * bound), grads
    )
    return clipped, jnp.minimum(norm, bound)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AGC:
    """config.optimizer.agc: adaptive gradient clipping (Brock et al. 2021).

    The gradient of each unit, a column of a kernel, is cut to a share of the unit's own norm. This
    is for kernels inside the towers alone. NFNets leave out their classifier, as do we the last
    projections; an embedding's unit would be a channel of the whole vocabulary; and a scale that
    starts at zero would hardly leave it.

    Attributes:
      ratio: largest ‖gradient‖/‖weights‖ of a unit.
      eps: least ‖weights‖ that is counted with, so that a unit of zeros can move.
    """

    ratio: float
    eps: float

    def __post_init__(self) -> None:
        _must(self.ratio > 0, "agc.ratio", self.ratio, "above 0")
        _must(self.eps > 0, "agc.eps", self.eps, "above 0")

    def init(self, params: Gradients) -> optax.EmptyState:
        """It keeps nothing."""
        del params
        return optax.EmptyState()

    def clip(
        self, grads: Gradients, norm: Float[Array, ""], state: Any, params: Gradients
    ) -> Clipped:
        """Clips each unit by itself."""
        del norm
        by_unit = optax.adaptive_grad_clip(self.ratio, self.eps).update(
            grads, optax.EmptyState(), params
        )[0]
        grads = jax.tree_util.tree_map_with_path(
            lambda path, g, clipped: clipped if _is_kernel_inside(path) else g, grads, by_unit
        )
        return grads, optax.global_norm(grads), state


def _is_kernel_inside(path):
    names = tuple(part.key for part in path)
    return names[-1] == "kernel" and names[-3:-1] != ("attnpool", "c_proj")


class AutoClipState(NamedTuple):
    """The last norms, before clipping.

    Attributes:
      count: how many there have been, int32.
      norms: a ring of them, [window]; NaN where there is none yet.
    """

    count: Int[Array, ""]
    norms: Float[Array, " window"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class AutoClip:
    """config.optimizer.autoclip: the global norm is cut to a percentile of those so far.

    c = percentile_p(‖g_1‖, …, ‖g_t‖), the present one included (Seetharaman et al. 2020). They take
    all norms of the run; here it is the last `window`.

    Attributes:
      percentile: p.
      window: how many norms are kept.
    """

    percentile: float
    window: int

    def __post_init__(self) -> None:
        is_share = 0 <= self.percentile <= 100
        _must(is_share, "autoclip.percentile", self.percentile, "from 0 to 100")
        _must(self.window >= 1, "autoclip.window", self.window, "at least 1")

    def init(self, params: Gradients) -> AutoClipState:
        """No norms."""
        del params
        return AutoClipState(jnp.zeros((), jnp.int32), _filled(self.window, jnp.nan))

    def clip(
        self,
        grads: Gradients,
        norm: Float[Array, ""],
        state: AutoClipState,
        params: Gradients,
    ) -> Clipped:
        """Clips the global norm."""
        del params
        norms = state.norms.at[state.count % self.window].set(norm.astype(state.norms.dtype))
        grads, norm = to_norm(grads, norm, jnp.nanpercentile(norms, self.percentile))
        return grads, norm, AutoClipState(state.count + 1, norms)


class ZClipState(NamedTuple):
    """The mean and the variance of the norms, [].

    Attributes:
      count: how many norms there have been, int32.
      mean: μ.
      variance: σ².
    """

    count: Int[Array, ""]
    mean: Float[Array, ""]
    variance: Float[Array, ""]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ZClip:
    """config.optimizer.zclip: a global norm that is an outlier is cut (Kumar et al. 2025).

    The first w norms are not cut, and give the mean μ and the population variance σ². After them
    z = (‖g‖ − μ)/(σ + 1e-6). Where z > z*, the norm is cut to c = μ + z*·σ/(z/z*). Then
    μ ← α·μ + (1−α)·‖ĝ‖ and σ² ← α·σ² + (1−α)·(‖ĝ‖ − μ)² with the new μ; ‖ĝ‖ is the norm after
    clipping. The published code also cuts every norm to 1; gradient_clip_norm does that here.

    Attributes:
      threshold: z*.
      decay: α.
      warmup_steps: w.
    """

    threshold: float
    decay: float
    warmup_steps: int

    def __post_init__(self) -> None:
        _must(self.threshold > 0, "zclip.threshold", self.threshold, "above 0")
        _must(0 <= self.decay < 1, "zclip.decay", self.decay, "from 0 to below 1")
        _must(self.warmup_steps >= 1, "zclip.warmup_steps", self.warmup_steps, "at least 1")

    def init(self, params: Gradients) -> ZClipState:
        """No norms."""
        del params
        return ZClipState(jnp.zeros((), jnp.int32), jnp.zeros(()), jnp.zeros(()))

    def clip(
        self, grads: Gradients, norm: Float[Array, ""], state: ZClipState, params: Gradients
    ) -> Clipped:
        """Clips the global norm."""
        del params
        is_warm_up = state.count < self.warmup_steps
        deviation = jnp.sqrt(state.variance)
        z = (norm - state.mean) / (deviation + 1e-6)
        reached = state.mean + self.threshold * deviation / (z / self.threshold)
        bound = jnp.where(is_warm_up | (z <= self.threshold), jnp.inf, reached)
        grads, norm = to_norm(grads, norm, bound)
        # Of the first norms each has the same share in the mean and the variance.
        seen = (state.count + 1).astype(state.mean.dtype)
        share = jnp.where(is_warm_up, 1 / seen, 1 - self.decay)
        mean = state.mean + share * (norm - state.mean)
        spread = (norm - mean) * (norm - jnp.where(is_warm_up, state.mean, mean))
        variance = state.variance + share * (spread - state.variance)
        dtype = state.mean.dtype
        return grads, norm, ZClipState(state.count + 1, mean.astype(dtype), variance.astype(dtype))


class AdaGCState(NamedTuple):
    """A running norm of each tensor.

    Attributes:
      count: the steps so far, int32.
      norms: γ, [tensors] in the order of the tree's leaves. One vector: scalars in a tree like that
        of the parameters would be taken for something to be split as these are.
    """

    count: Int[Array, ""]
    norms: Float[Array, " tensors"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdaGC:
    """config.optimizer.adagc: each tensor's norm is cut to its own running norm (Wang et al. 2025).

    In the first T steps the global norm is cut to λ_abs, and γ ← min(γ, ‖ĝ‖) for each tensor, from
    λ_abs on. After them ĝ = g·min(1, λ_rel·γ/‖g‖) and γ ← β·γ + (1−β)·‖ĝ‖. A tensor whose gradient
    is zero keeps its γ: else a weight behind a scale that starts at zero could never move.

    Attributes:
      ratio: λ_rel.
      decay: β.
      warmup_steps: T.
      warmup_norm: λ_abs.
    """

    ratio: float
    decay: float
    warmup_steps: int
    warmup_norm: float

    def __post_init__(self) -> None:
        _must(self.ratio > 0, "adagc.ratio", self.ratio, "above 0")
        _must(0 <= self.decay < 1, "adagc.decay", self.decay, "from 0 to below 1")
        _must(self.warmup_steps >= 0, "adagc.warmup_steps", self.warmup_steps, "at least 0")
        _must(self.warmup_norm > 0, "adagc.warmup_norm", self.warmup_norm, "above 0")

    def init(self, params: Gradients) -> AdaGCState:
        """γ = λ_abs."""
        tensors = len(jax.tree.leaves(params))
        return AdaGCState(jnp.zeros((), jnp.int32), _filled(tensors, self.warmup_norm))

    def clip(
        self, grads: Gradients, norm: Float[Array, ""], state: AdaGCState, params: Gradients
    ) -> Clipped:
        """Clips each tensor by itself, or all together in the first steps."""
        del params
        leaves, structure = jax.tree.flatten(grads)
        before = jnp.stack([jnp.sqrt(jnp.sum(leaf**2)) for leaf in leaves])  # [tensors]
        is_warm_up = state.count < self.warmup_steps
        # 1/0 is infinite, and cuts nothing.
        together = before * jnp.minimum(1, self.warmup_norm / norm)
        by_itself = jnp.minimum(before, self.ratio * state.norms)
        after = jnp.where(is_warm_up, together, by_itself)
        factors = jnp.where(after < before, after / before, 1)
        # Without the barrier XLA computes all of them again in the loop of each tensor.
        each = jnp.unstack(jax.lax.optimization_barrier(factors))
        clipped = [
            leaf * factor.astype(leaf.dtype) for leaf, factor in zip(leaves, each, strict=True)
        ]
        running = jnp.where(
            is_warm_up,
            jnp.minimum(state.norms, after),
            self.decay * state.norms + (1 - self.decay) * after,
        )
        norms = jnp.where(before > 0, running, state.norms).astype(state.norms.dtype)
        norm *= jnp.where(norm > 0, jnp.linalg.norm(after) / jnp.linalg.norm(before), 1)
        return jax.tree.unflatten(structure, clipped), norm, AdaGCState(state.count + 1, norms)


# {kind: the constructor of its section of config.optimizer}; "norm" is gradient_clip_norm alone.
CLIPS: Mapping[str, Callable[..., Clip] | None] = {
    "none": None,
    "norm": None,
    "agc": AGC,
    "autoclip": AutoClip,
    "zclip": ZClip,
    "adagc": AdaGC,
}
# Their history is part of the optimiser's state.
WITH_HISTORY = ("autoclip", "zclip", "adagc")


def _filled(length: int, value: float) -> Float[Array, " length"]:
    """Of the type of a later state: a type that jnp.full leaves open would have to be compiled."""
    return jnp.full(length, value, jnp.result_type(float))


def _must(is_so: bool, key: str, value: float, what: str) -> None:
    """Raises UserError where a number of a kind's section is not `what` it must be."""
    if not is_so:
        raise UserError(f"config.optimizer.{key} {value} must be {what}")


class ClipAlarm:
    """Says once that gradient_clip_norm cuts more than half of the steps.

    With noise, so small a bound moves the point that a run converges to (Koloskova et al. 2023).

    Args:
      max_norm: config.optimizer.gradient_clip_norm.
    """

    _LEAST, _MOST = 20, 100  # logged steps that the median is of

    def __init__(self, max_norm: float | None) -> None:
        self._max_norm = max_norm
        self._norms: collections.deque[float] = collections.deque(maxlen=self._MOST)

    def check(self, norm: float) -> str | None:
        """Takes the gradient's norm at a logged step; returns what a person is to be told."""
        if self._max_norm is None:
            return None
        self._norms.append(float(norm))
        median = statistics.median(self._norms)
        if len(self._norms) < self._LEAST or self._max_norm >= median:
            return None
        told = (
            f"config.optimizer.gradient_clip_norm {self._max_norm:.4g} cuts most steps: the median "
            f"of the last {len(self._norms)} logged grad_norm is {median:.4g}. A larger bound "
            "would cut outliers alone"
        )
        self._max_norm = None
        return told
