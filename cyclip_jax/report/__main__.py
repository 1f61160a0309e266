"""Show runs and evaluations as one page of tables and figures.

python -m cyclip_jax.report WORKDIR [WORKDIR …]
"""

from collections.abc import Sequence
from typing import Any

from absl import flags

from cyclip_jax.runtime import command


def define_flags(values: flags.FlagValues) -> None:
    """Defines the command's flags."""
    flags.DEFINE_string(
        "output",
        None,
        "The HTML file; by default <WORKDIR>/report.html, of several ./report.html.",
        flag_values=values,
    )


def report(values: Any, *workdirs: str) -> None:
    """Writes the report and prints where it is."""
    from cyclip_jax.report.write import write_report  # matplotlib is slow to import

    print(write_report(workdirs, output=values.output))


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; None are the arguments of the process."""
    positional = "the argument WORKDIR, of a run or what was --output of an evaluation,"
    command.run(report, define_flags, doc=__doc__, arguments=arguments, positional=positional)


if __name__ == "__main__":
    main()
