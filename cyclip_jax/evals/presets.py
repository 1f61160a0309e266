"""Write the class names and templates of a known data set, as a file that `classes` takes.

    python -m cyclip_jax.evals.presets --preset=imagenet --output=names.json

They come out of an installed package, clip_benchmark; for ImageNet open_clip_torch as well.
"""

import json
from collections.abc import Sequence
from typing import Any

from absl import flags

from cyclip_jax.evals.data.known import INSTALL, PRESETS, classes_file
from cyclip_jax.files import absolute, write_atomically
from cyclip_jax.runtime import command


def define_flags(values: flags.FlagValues) -> None:
    """Defines the command's flags."""
    flags.DEFINE_enum(
        "preset", None, sorted(PRESETS), "The data set.", required=True, flag_values=values
    )
    flags.DEFINE_string(
        "output", None, "The JSON file to write.", required=True, flag_values=values
    )


def write_preset(values: Any) -> str | None:
    """Writes the file; returns what is wrong, or None."""
    content = classes_file(values.preset)
    if not content:
        return f"error: nothing is known of {values.preset}; {INSTALL}"
    text = json.dumps(content, indent=1, ensure_ascii=False)
    write_atomically(absolute(values.output, "--output"), text + "\n")
    known = len(content["classes"]) if "classes" in content else "the data set's own"
    print(f"{values.output}: {known} classes, {len(content.get('templates', ()))} templates")
    return None


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; None are the arguments of the process."""
    command.run(write_preset, define_flags, doc=__doc__, arguments=arguments)


if __name__ == "__main__":
    main()
