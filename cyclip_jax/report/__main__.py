"""`python -m cyclip_jax.report WORKDIR [WORKDIR …]`: tables and figures of runs as one page."""

import sys

from absl import app, flags

from cyclip_jax.errors import UserError

_OUTPUT = flags.DEFINE_string(
    "output", None, "the HTML file; default <WORKDIR>/report.html, of several ./report.html"
)


def main(arguments):
    """Writes the report and prints where it is."""
    from cyclip_jax.report.write import write_report

    try:
        print(write_report(arguments[1:], output=_OUTPUT.value))
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    app.run(main)
