"""A number of an evaluation, and what it says of itself."""

import dataclasses
import enum
import math
from typing import Literal

Better = Literal["more", "less"] | None


class Unit(enum.StrEnum):
    """What a number counts in, which is also how it is written."""

    SHARE = "share"  # of what was scored, a fraction of 1 that is written as a percentage
    COUNT = "count"  # of what was scored, a whole number
    RANK = "rank"  # 1 is first
    DISTANCE = "distance"  # between embeddings of unit norm
    COSINE = "cosine"
    NATS = "nats"
    LOSS = "loss"
    NUMBER = "number"  # anything else


@dataclasses.dataclass(frozen=True)
class About:
    """What a metric says of itself, whatever its value.

    Attributes:
      unit: what it counts in.
      better: whether more or less of it is better; None where neither is.
      is_headline: whether it is among the few that tell most.
    """

    unit: Unit = Unit.NUMBER
    better: Better = None
    is_headline: bool = True

    def metric(
        self,
        value: float,
        interval: tuple[float, float] | None = None,
        chance: float | None = None,
    ) -> "Metric":
        """The Metric of which this is true."""
        return Metric(value, interval, chance, self.unit, self.better, self.is_headline)


@dataclasses.dataclass(frozen=True)
class Metric:
    """A number of an evaluation.

    Attributes:
      value: the number itself; NaN where it could not be computed, as of a run that has diverged.
      interval: its 95 % interval (low, high); None where it has none. Both are NaN where the data
        tell of no interval.
      chance: what a random order gets; None where nobody can tell.
      unit, better, is_headline: as About.
    """

    value: float
    interval: tuple[float, float] | None = None
    chance: float | None = None
    unit: Unit = Unit.NUMBER
    better: Better = None
    is_headline: bool = True

    @property
    def about(self) -> About:
        """What it says of itself."""
        return About(self.unit, self.better, self.is_headline)

    @property
    def is_finite(self) -> bool:
        """Whether there is a value."""
        return math.isfinite(self.value)

    @property
    def is_share(self) -> bool:
        """Whether it is a fraction of 1."""
        return self.unit == Unit.SHARE

    @property
    def is_count(self) -> bool:
        """Whether it counts what was scored."""
        return self.unit == Unit.COUNT

    @property
    def bounds(self) -> tuple[float, float] | None:
        """The interval of a value that has one, both finite; else None."""
        if self.interval is None or not all(map(math.isfinite, (self.value, *self.interval))):
            return None
        return self.interval

    def number(self) -> str:
        """The value as text: a percentage of a share, a whole number of a count, else 4 digits."""
        if not self.is_finite:
            return "not finite"
        if self.is_share:
            return f"{self.value:.1%}"
        return f"{self.value:.0f}" if self.is_count else f"{self.value:#.4g}"

    def with_interval(self) -> str:
        """`29.1% [24.5, 33.9]`: the value and its interval, where it has one."""
        if self.bounds is None:
            return self.number()
        form = "{:.1f}" if self.is_share else "{:.3g}"
        low, high = (form.format(100 * b if self.is_share else b) for b in self.bounds)
        return f"{self.number()} [{low}, {high}]"

    def text(self) -> str:
        """`29.1% [24.5, 33.9] (0.28%)`: the same, followed by chance."""
        return self.with_interval() + ("" if self.chance is None else f" ({self.chance:.2%})")


SHARE = About(Unit.SHARE, "more")
FURTHER_SHARE = About(Unit.SHARE, "more", is_headline=False)
COUNT = About(Unit.COUNT, is_headline=False)


def share_at(k: int) -> About:
    """What a share of hits among the first k says of itself: it is a headline at k = 1 alone."""
    return SHARE if k == 1 else FURTHER_SHARE


def count(number: int) -> Metric:
    """The Metric of how many of something were scored: a whole `number`."""
    return COUNT.metric(float(number))
