"""`python -m cyclip_jax.evals.presets --preset=imagenet --output=names.json`: names of classes.

They are written as a file that `classes` of an evaluation takes.
"""

import argparse
import json
import sys
from collections.abc import Sequence

from etils import epath

from cyclip_jax.evals.data.known import INSTALL, PRESETS, classes_file
from cyclip_jax.files import write_atomically


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line, by default with the process's arguments; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m cyclip_jax.evals.presets",
        description="Writes class names and templates of a known data set, out of an installed "
        "package (clip_benchmark; for ImageNet open_clip_torch as well), as a file for `classes`.",
    )
    parser.add_argument("--preset", required=True, choices=sorted(PRESETS))
    parser.add_argument("--output", required=True, help="the JSON file to write")
    args = parser.parse_args(arguments)
    content = classes_file(args.preset)
    if not content:
        print(f"nothing is known of {args.preset}; {INSTALL}", file=sys.stderr)
        return 1
    text = json.dumps(content, indent=1, ensure_ascii=False)
    write_atomically(epath.Path(args.output), text + "\n")
    known = len(content["classes"]) if "classes" in content else "the data set's own"
    print(f"{args.output}: {known} classes, {len(content.get('templates', ()))} templates")
    return 0


if __name__ == "__main__":
    sys.exit(main())
