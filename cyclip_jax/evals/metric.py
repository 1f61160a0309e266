"""What a metric's name says of it: whether it is a share, and what stands beside it."""

import dataclasses
import math
import re

LOSS_TERMS = ("loss", "contrastive_loss", "inmodal_cyclic_loss", "crossmodal_cyclic_loss")
_BESIDE = re.compile(r"chance_(.+)|(.+)_ci_low|(.+)_ci_high")
_SHARE = re.compile(
    r"(^|_)(top\d+|recall|accuracy|score|separability)(@|_|$)|_(effective|reference)$"
    r"|consistency@|mean_per_class"
)
_FURTHER = re.compile(r"(top|@)(?!1(\D|$))\d+|_as_published$")


@dataclasses.dataclass(frozen=True)
class Metric:
    """A number and what stands beside it.

    Attributes:
      name: without the evaluation's.
      value: None where it was not finite.
      low, high: its 95 % interval, or None.
      chance: what a random order gets, or None.
    """

    name: str
    value: float | None
    low: float | None = None
    high: float | None = None
    chance: float | None = None

    @property
    def is_share(self):
        """Whether it is a fraction: by a word of its name, or because chance has one."""
        named = _SHARE.search(self.name) is not None or self.chance is not None
        return named and (self.value is None or abs(self.value) <= 1)

    @property
    def is_count(self):
        """Whether it counts what was scored: a whole number above 1 without an interval."""
        if self.is_share or self.low is not None or self.value is None:
            return False
        return self.value > 1 and float(self.value).is_integer()

    @property
    def is_headline(self):
        """Whether it is among the few that tell most: no loss, no count, and no k but 1."""
        return not (
            self.is_count
            or self.name == "temperature"
            or self.name.endswith("_loss")
            or self.name == "loss"
            or self.name in ("image_to_text_accuracy", "text_to_image_accuracy")  # in a batch
            or _FURTHER.search(self.name)
        )

    def number(self, value):
        """A value of this metric as text: a percentage of a share, else four digits."""
        if value is None:
            return "not finite"
        if self.is_share:
            return f"{value:.1%}"
        return f"{value:.0f}" if self.is_count else f"{value:#.4g}"

    @property
    def has_interval(self):
        """Whether there is a value with bounds around it."""
        return None not in (self.value, self.low, self.high)

    def with_interval(self):
        """`29.1% [24.5, 33.9]`: the value and its interval, where it has one."""
        if not self.has_interval:
            return self.number(self.value)
        form = (lambda bound: f"{100 * bound:.1f}") if self.is_share else "{:.3g}".format
        return f"{self.number(self.value)} [{form(self.low)}, {form(self.high)}]"

    def text(self):
        """`29.1% [24.5, 33.9] (0.28%)`: the same, and chance."""
        return self.with_interval() + ("" if self.chance is None else f" ({self.chance:.2%})")


def metrics_of(numbers):
    """{name: Metric} of one evaluation's flat numbers; intervals and chance go to their metric."""
    numbers = {name: finite(value) for name, value in numbers.items()}

    def is_beside(name):
        match = _BESIDE.fullmatch(name)
        return match is not None and any(base in numbers for base in match.groups() if base)

    return {
        name: Metric(
            name,
            value,
            numbers.get(f"{name}_ci_low"),
            numbers.get(f"{name}_ci_high"),
            numbers.get(f"chance_{name}"),
        )
        for name, value in numbers.items()
        if not is_beside(name)
    }


def by_evaluation(numbers):
    """{evaluation: {name: Metric}} of flat numbers "<evaluation>/<metric>"; others are left out."""
    evaluations = {}
    for full_name, value in numbers.items():
        evaluation, slash, name = full_name.partition("/")
        if slash:
            evaluations.setdefault(evaluation, {})[name] = value
    return {name: metrics_of(inner) for name, inner in evaluations.items()}


def finite(value):
    """The number, or None for NaN and infinities."""
    return value if value is not None and math.isfinite(value) else None
