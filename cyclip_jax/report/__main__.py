"""Show runs and evaluations as one page of tables and figures.

python -m cyclip_jax.report WORKDIR [WORKDIR …]

With --figure=NAME it writes one figure of the page instead, as a publisher takes it.
"""

from collections.abc import Sequence
from typing import Any

from absl import flags

from cyclip_jax.errors import UserError
from cyclip_jax.runtime import command

PAPER_FORMATS = ("pdf", "svg", "png")


def define_flags(values: flags.FlagValues) -> None:
    """Defines the command's flags."""
    flags.DEFINE_string(
        "output",
        None,
        "The HTML file; by default <WORKDIR>/report.html, of several ./report.html. With --figure "
        "it is the figure's file, by default ./NAME.FORMAT.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "figure",
        None,
        "Name of one figure, which is written alone, for a paper; a wrong name shows all names.",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "format", "pdf", PAPER_FORMATS, "The format of that figure.", flag_values=values
    )


def report(values: Any, *workdirs: str) -> None:
    """Writes the report, or one figure of it, and prints where it is."""
    if values.figure is None and values["format"].present:
        raise UserError(f"--format={values.format} is of one figure; name it with --figure")
    from cyclip_jax.report.write import write_figure, write_report  # matplotlib: slow to import

    if values.figure is None:
        print(write_report(workdirs, output=values.output))
    else:
        path = write_figure(workdirs, values.figure, values.format, output=values.output)
        print(path)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; None are the arguments of the process."""
    positional = "the argument WORKDIR, of a run or what was --output of an evaluation,"
    command.run(report, define_flags, doc=__doc__, arguments=arguments, positional=positional)


if __name__ == "__main__":
    main()
