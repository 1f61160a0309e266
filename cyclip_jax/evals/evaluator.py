"""What an evaluator is: settings, and what they become once their data are open."""

from collections.abc import Callable
from typing import Protocol

from cyclip_jax.evals.encoders import Encoders
from cyclip_jax.evals.metric import Metric
from cyclip_jax.evals.output import Output

# (the model, where details go) -> {name: Metric}
Evaluator = Callable[[Encoders, Output], dict[str, Metric]]


class Settings(Protocol):
    """The settings of an evaluation, which were checked when they were constructed."""

    def open(self) -> Evaluator:
        """Opens the data; raises UserError where something is wrong with them."""
        ...
