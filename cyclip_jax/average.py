"""Write the model between two models, which often holds up better than either (WiSE-FT).

python -m cyclip_jax.average BEFORE AFTER --alpha=0.5 --output=DIR
"""

import os
from collections.abc import Sequence
from typing import Any

from absl import flags

from cyclip_jax.errors import UserError
from cyclip_jax.runtime import command

_POSITIONAL = (
    "BEFORE AFTER: two models of one architecture, of which one began as the other. Each is a "
    "workdir, an export, a folder of open_clip or transformers, a weight file, or "
    "hf-hub:user/name."
)


def average_models(
    before: str,
    after: str,
    *,
    alpha: float,
    output: str | os.PathLike[str],
    data: str | None = None,
) -> list[str]:
    """Writes the model with the weights (1 − α)·before + α·after as an open_clip export.

    Args:
      before: anything that `cyclip_jax.load` takes.
      after: the same, of the same architecture.
      alpha: α, from 0 to 1.
      output: the directory to write. If it is an earlier export, it is replaced.
      data: pictures on which BatchNorm's statistics are taken anew, named as config.data.train is.

    Returns:
      The names of the files that were written.

    Raises:
      UserError: the models differ in more than their weights, have BatchNorm and no data are given,
        or the directory has something else in it. Nothing is written then.
    """
    from cyclip_jax.export import check_replaceable, write_export  # brings JAX
    from cyclip_jax.interop.interpolation import interpolated

    check_replaceable(output, before, after)
    between = interpolated(before, after, alpha=alpha, data=data)
    return write_export(between, output, export_format="open_clip")


def define_flags(values: flags.FlagValues) -> None:
    """Defines the command's flags."""
    flags.DEFINE_float(
        "alpha",
        0.5,
        "The share of AFTER, from 0 to 1.",
        flag_values=values,
    )
    flags.DEFINE_string("output", None, "Directory to write.", required=True, flag_values=values)
    flags.DEFINE_string(
        "data",
        None,
        "Pairs on whose pictures BatchNorm's statistics are taken anew, named as config.data.train "
        "is. Models without BatchNorm need none.",
        flag_values=values,
    )


def starting(values: Any, *models: str) -> str:
    """What is begun, in words."""
    return f"the average of {' and '.join(models)} for {values.output}"


def average(values: Any, *models: str) -> None:
    """Averages, and says what was written."""
    if len(models) != 2:
        raise UserError(f"there are {len(models)} models; name two, BEFORE and AFTER")
    files = average_models(*models, alpha=values.alpha, output=values.output, data=values.data)
    print(f"{values.output}: {', '.join(files)}")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; None are the arguments of the process."""
    command.run(
        average,
        define_flags,
        doc=__doc__,
        arguments=arguments,
        positional=_POSITIONAL,
        starting=starting,
    )


if __name__ == "__main__":
    main()
