"""What an evaluator is, once its data are open."""

from collections.abc import Callable

from cyclip_jax.evals.encoders import Encoders
from cyclip_jax.evals.metric import Metric
from cyclip_jax.evals.output import Output

# (the model, where details go) -> {name: Metric}
Evaluator = Callable[[Encoders, Output], dict[str, Metric]]
