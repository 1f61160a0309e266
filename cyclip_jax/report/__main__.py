"""`python -m cyclip_jax.report WORKDIR [WORKDIR …]`: tables and figures of runs as one page."""

import argparse
import sys
from collections.abc import Sequence

from cyclip_jax.errors import UserError


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes the report and prints where it is; by default with the process's arguments."""
    from cyclip_jax.report.write import write_report

    parser = argparse.ArgumentParser(prog="python -m cyclip_jax.report", description=__doc__)
    parser.add_argument("workdirs", nargs="+", help="of runs, or --output of an evaluation")
    parser.add_argument(
        "--output", help="the HTML file; default <WORKDIR>/report.html, of several ./report.html"
    )
    chosen = parser.parse_args(arguments)
    try:
        print(write_report(chosen.workdirs, output=chosen.output))
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
