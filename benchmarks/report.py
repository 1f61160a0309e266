"""What benchmarks share: the devices that they measure on, and how they print and write."""

import json
import os

import jax

from cyclip_jax.errors import UserError


def local_devices(count):
    """Returns the first `count` devices; a CPU is made to look like as many.

    Call it before JAX is used, with the largest count first.

    Raises:
      UserError: there are fewer devices.
    """
    if jax.config.jax_num_cpu_devices < count:
        jax.config.update("jax_num_cpu_devices", count)
    devices = jax.devices()
    if len(devices) < count:
        kind = devices[0].device_kind
        raise UserError(f"--devices={count} is too many; there are {len(devices)} of {kind}")
    return devices[:count]


def numbers(text):
    """Turns "1,8" into [1, 8]; it is a type for argparse."""
    return [int(number) for number in text.split(",")]


def table(rows, columns):
    """Writes an aligned Markdown table.

    Args:
      rows: dicts. A value that is missing or None is shown as a dash.
      columns: {heading: (key, format of its values, e.g. ".1f")}. A column is left out if no row
        has a value for it.
    """
    columns = {
        heading: column
        for heading, column in columns.items()
        if any(row.get(column[0]) is not None for row in rows)
    }
    lines = [list(columns)]
    for row in rows:
        cells = ((row.get(key), spec) for key, spec in columns.values())
        lines.append(["–" if value is None else format(value, spec) for value, spec in cells])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * (width - 1) + ":" for width in widths])
    return "\n".join(
        f"| {' | '.join(f'{cell:>{w}}' for cell, w in zip(line, widths, strict=True))} |"
        for line in lines
    )


def write_json(path, rows):
    """Writes {"jax": its version, "rows": rows}."""
    with open(os.path.expanduser(path), "w") as file:
        json.dump({"jax": jax.__version__, "rows": rows}, file, indent=2)
        file.write("\n")
