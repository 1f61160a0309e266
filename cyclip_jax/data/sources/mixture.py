"""Several sources as one, each with a weight that may change over the run."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

import numpy as np
from jaxtyping import Float, Int

from cyclip_jax.data.record import Record, Source, part_of
from cyclip_jax.errors import UserError

# How often a part is drawn: a number, or pairs (step, number).
Weight: TypeAlias = float | Sequence[tuple[int, float]]


class Mixture:
    """Examples of several sources, one source's after the other's.

    `order.examples_of_epoch` decides how often each source is drawn.

    Args:
      parts: {name: (source, weight)}. A weight is a number, or pairs (step, number) between which
        it changes linearly. Before the first pair and after the last it stays constant.

    Attributes:
      names: the names of the parts.
      sources: the parts themselves.
      starts: where each part's examples begin, and the end, int64 [parts + 1].

    Raises:
      UserError: there are no parts, or a weight is neither a number nor such pairs.
    """

    def __init__(self, parts: Mapping[str, tuple[Source, Weight]]) -> None:
        self.names: list[str] = list(parts)
        self.sources: list[Source] = [source for source, _ in parts.values()]
        self._weights = check_weights({name: weight for name, (_, weight) in parts.items()})
        self.starts: Int[np.ndarray, "parts+1"] = np.cumsum(
            [0, *map(len, self.sources)], dtype=np.int64
        )
        self.faults: list[tuple[str, str, str]] = [
            fault for source in self.sources for fault in source.faults
        ]

    def __len__(self) -> int:
        return int(self.starts[-1])

    def keys(self, indices: Iterable[int]) -> list[str]:
        """The names of the examples, each after the name of its source, list[str]."""
        keys = []
        for index in indices:
            part, inner = self._find(index)
            keys.append(f"{self.names[part]}: {self.sources[part].keys([inner])[0]}")
        return keys

    def captions(self, first: int = 0, end: int | None = None) -> list[str]:
        """The first caption of these examples, list[str]."""
        wanted = range(len(self))[first:end]
        return [
            caption
            for source, start in zip(self.sources, self.starts.tolist(), strict=False)
            for caption in source.captions(
                max(wanted.start - start, 0), max(wanted.stop - start, 0)
            )
        ]

    def read(self, index: int) -> Record:
        """The Record of an example; raises Unreadable."""
        part, inner = self._find(index)
        return self.sources[part].read(inner)

    def shares(self, steps: Int[np.ndarray, "steps"]) -> Float[np.ndarray, "steps parts"]:
        """The shares that the parts have of the batches of some steps.

        Args:
          steps: numbers of steps, int64 [steps].

        Returns:
          float64 [steps, parts], of which each row sums to 1.

        Raises:
          UserError: at one of these steps all weights are 0.
        """
        weights = np.stack([np.interp(steps, *points) for points in self._weights], axis=-1)
        sums = weights.sum(axis=-1, keepdims=True)
        if not sums.all():
            step = steps[int(np.argmin(sums))]
            raise UserError(
                f"the weights of config.data.mixture are all 0 at step {step}; "
                "set one of them above 0"
            )
        return weights / sums

    def _find(self, index):
        part = part_of(self.starts, index)
        return part, int(index - self.starts[part])


def check_weights(
    weights: Mapping[str, Weight],
) -> list[tuple[Float[np.ndarray, "k"], Float[np.ndarray, "k"]]]:
    """The (steps, weights) of each part of a mixture, as np.interp wants them.

    Args:
      weights: {name: weight}, see `Mixture`.

    Raises:
      UserError: there are no parts, a weight is neither a number nor pairs (step, number), or all
        of them are 0 at the start.
    """
    if not weights:
        raise UserError("config.data.mixture is empty; name its sources (see defaults.part)")
    points = [_points(name, weight) for name, weight in weights.items()]
    if not sum(values[0] for _, values in points):
        raise UserError(
            "the weights of config.data.mixture are all 0 at the start; set one of them above 0"
        )
    return points


def _points(name, weight):
    """(steps, weights) of a weight, as np.interp wants them."""
    points = [(0, weight)] if isinstance(weight, int | float) else weight
    try:
        steps, weights = np.array(points, np.float64).T
    except (TypeError, ValueError) as error:
        raise UserError(
            f"config.data.mixture.{name}.weight is {weight!r}; set it to a number or to pairs "
            "(step, number)"
        ) from error
    if (np.diff(steps) <= 0).any() or (weights < 0).any():
        raise UserError(
            f"config.data.mixture.{name}.weight is {weight!r}; set it to pairs (step, number), "
            "whose steps rise and whose numbers are not negative"
        )
    return steps, weights
