"""Settings of evaluations from before an evaluator was divided, in today's words.

They stand in older config files and in the config.json of older workdirs. Once, `linear_probe` was
two evaluators in one: `method` told which, and each took the other's settings and did nothing with
them. Today `linear_probe` is what was "adamw", and `logistic_probe` what was "lbfgs". Whatever has
the type `linear_probe` goes on as it did: settings that did nothing are left out.
"""

from collections.abc import Mapping
from typing import Any

from cyclip_jax.errors import UserError

# The settings of one probe alone.
LINEAR_ALONE = ("batch_size", "epochs", "learning_rate", "weight_decay")
LOGISTIC_ALONE = ("regularization", "validation_share", "max_iterations")
_TYPE_OF_METHOD = {"adamw": "linear_probe", "lbfgs": "logistic_probe"}


def in_todays_words(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of an evaluation as evaluators take them today.

    Args:
      name: of the evaluation, for messages.
      settings: {"type": …, …}, of any age.

    Raises:
      UserError: a setting is another probe's.
    """
    settings, key = dict(settings), f"config.evals.{name}"
    if settings.get("type") == "logistic_probe":
        theirs = [setting for setting in LINEAR_ALONE if setting in settings]
        if theirs:
            raise UserError(
                f"{key}.{theirs[0]} is of the type 'linear_probe'; L-BFGS has "
                f"{', '.join(LOGISTIC_ALONE)}"
            )
    if settings.get("type") != "linear_probe":
        return settings
    method = settings.pop("method", "adamw")
    if method not in _TYPE_OF_METHOD:
        raise UserError(
            f"{key}.method is {method!r}; choose one of {', '.join(_TYPE_OF_METHOD)}, or leave it "
            "out and choose the type linear_probe or logistic_probe"
        )
    if method == "adamw" and settings.get("regularization") is not None:
        raise UserError(
            f"{key}.regularization is of the type 'logistic_probe'; AdamW has weight_decay"
        )
    settings["type"] = _TYPE_OF_METHOD[method]
    idle = LOGISTIC_ALONE if method == "adamw" else LINEAR_ALONE
    return {setting: value for setting, value in settings.items() if setting not in idle}
