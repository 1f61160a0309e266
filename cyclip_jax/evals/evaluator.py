"""What an evaluator is: settings, and what they become once their data are open."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from cyclip_jax.evals.data.image_set import ImageSet
from cyclip_jax.evals.encoders import Encoders
from cyclip_jax.evals.metric import Metric
from cyclip_jax.evals.output import Output

# (the model, where details go) -> {name: Metric}
Evaluator = Callable[[Encoders, Output], dict[str, Metric]]


class Needs(NamedTuple):
    """What an evaluator has embedded, where everything can be read.

    Attributes:
      images: sets of pictures.
      texts: lists of texts, each as `Encoders.text_embeds` is given it.
    """

    images: Sequence[ImageSet]
    texts: Sequence[Sequence[str]] = ()


@dataclasses.dataclass(frozen=True)
class Opened:
    """An evaluator that can say beforehand what it has embedded.

    Attributes:
      run: the evaluator itself.
      needs: function () -> Needs, which may have to read captions.
    """

    run: Evaluator
    needs: Callable[[], Needs]

    def __call__(self, encoders: Encoders, output: Output) -> dict[str, Metric]:
        """Evaluates a model."""
        return self.run(encoders, output)


class Settings(Protocol):
    """The settings of an evaluation, which were checked when they were constructed."""

    def open(self) -> Evaluator:
        """Opens the data; raises UserError where something is wrong with them."""
        ...
