"""Turns any data into TFRecord shards: python -m cyclip_jax.data.prepare --input=… --output=DIR.

Training reads examples in random order. Millions of small files, tar files on a disk that turns, or
photographs of ten megapixels make that slow; shards of checked, small pictures with an index make
it fast. A shard is what img2dataset writes with output_format=tfrecord: tf.train.Example records
with "key", the picture's file under "jpg", "png" or "webp", "txt" (here with every caption),
"width" and "height".

The command may be killed at any moment. Given again, it keeps the shards that are whole, and its
result is byte for byte that of a run that was left alone, except that the shards' indexes name the
time at which they were written. It remembers nothing of the input but the number of examples: when
pictures or captions have changed, prepare them into another folder. Dropped examples are named in
DIR/dropped.jsonl. To try those of a shard again, say after a disk was away, delete its 00000.json.

The whole route for Conceptual Captions 3M:

1. Its list, Train_GCC-training.tsv from ai.google.com/research/ConceptualCaptions, holds caption
   and URL without a header. Add one, once:

       sed -i '1s/^/caption\\turl\\n/' Train_GCC-training.tsv

2. Download with img2dataset (pip install img2dataset; 1.47 wants Python 3.12 or older), which makes
   shorter sides of more than 256 pixels that long. Many of the URLs are dead by now. Interrupted,
   the same command continues:

       img2dataset --url_list=Train_GCC-training.tsv --input_format=tsv \\
           --url_col=url --caption_col=caption \\
           --output_format=webdataset --output_folder=cc3m \\
           --image_size=256 --resize_mode=keep_ratio --resize_only_if_bigger=True \\
           --encode_quality=95 --processes_count=16 --thread_count=64

3. Check every picture, and mix the examples, for readers that go from front to back:

       python -m cyclip_jax.data.prepare --input='cc3m/*.tar' --output=cc3m-tfrecord \\
           --shuffle_seed=0

4. Train:

       python -m cyclip_jax.main --config=configs/cc3m.py \\
           --config.data.train='cc3m-tfrecord/*.tfrecord' --workdir=runs/cc3m

For pictures that are here already, name them: --input=train.csv --resize=256.

Two more commands write no pictures but a list of the examples that are worth training on: `prepare
balance --help` and `prepare score --help` tell of them.
"""

import concurrent.futures
import dataclasses
import functools
import importlib
import json
import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags

from cyclip_jax.data.order import order
from cyclip_jax.data.result_folder import check_settings, claimed, cores
from cyclip_jax.data.shard_workers import write_in_processes
from cyclip_jax.data.shard_writer import (
    READERS,
    Inputs,
    Preparation,
    as_json,
    by_reason,
    sentence,
    write_shard,
)
from cyclip_jax.errors import UserError
from cyclip_jax.files import (
    UNFINISHED,
    absolute,
    file_errors,
    is_missing,
    parse_json,
    sha256_of,
    write_atomically,
)
from cyclip_jax.runtime import command
from cyclip_jax.runtime.progress import progress_bar

# {word after the command: the module that lists examples instead of writing them}
LISTS = {"balance": "cyclip_jax.data.balance", "score": "cyclip_jax.data.score"}
VERSION = 1  # of what is written; shards of different ones are not mixed
SETTINGS = "prepare.json"
MANIFEST = "manifest.json"
DROPPED = "dropped.jsonl"

_TEMPORARY = re.compile(rf"(\d+\.\w[\w.]*|prepare\.json|manifest\.json|dropped\.jsonl){UNFINISHED}")


def prepare(
    settings: Preparation,
    output: str | os.PathLike[str],
    *,
    workers: int = 1,
    verify: bool = False,
) -> dict[str, Any]:
    """Writes the shards that are not there yet, and the manifest.

    Args:
      settings: the options of the preparation.
      output: folder for the result, local or remote.
      workers: how many processes write; with 1 no further process is started.
      verify: whether shards that are there already are compared with their SHA-256. If not, only
        their size is compared.

    Returns:
      The manifest, as written to MANIFEST.

    Raises:
      UserError: the input cannot be read, the folder holds something else, or no example can be
        used.
    """
    folder = absolute(output, "--output")
    source = Inputs(settings)
    shards = _shards(settings, len(source))
    with claimed(folder):
        _begin(folder, settings, len(source), shards)
        unfinished = _unfinished(folder, shards, verify)
        done = len(source) - sum(map(len, unfinished.values()))
        try:
            with progress_bar(len(source), done) as progress:
                if min(workers, len(unfinished)) > 1:
                    write_in_processes(unfinished, settings, folder, progress, workers)
                else:
                    for name, indices in unfinished.items():
                        write_shard(source, settings, folder, name, indices, progress)
        finally:
            _remove_temporary(folder)
        return _finish(folder, settings, source, shards)


# What is there already


def _shards(settings, n):
    """{name: indices of its examples, int64} of all shards."""
    indices = order(settings.shuffle_seed or 0, 0, n, settings.shuffle_seed is not None)
    starts = range(0, n, settings.examples_per_shard)
    return {
        f"{number:05d}": indices[start : start + settings.examples_per_shard]
        for number, start in enumerate(starts)
    }


def _begin(folder, settings, n, shards):
    """Writes the settings into a new folder, or compares them with those of one begun before."""
    wanted = json.loads(
        as_json({**dataclasses.asdict(settings), "examples": n, "version": VERSION})
    )
    present = [path.name for path in folder.iterdir()]
    is_new = SETTINGS not in present
    if not is_new:
        check_settings(folder / SETTINGS, wanted)
    own = set() if is_new else {f"{name}.tfrecord" for name in shards}
    foreign = sorted(name for name in present if name.endswith(".tfrecord") and name not in own)
    if foreign:
        named = ", ".join(foreign[:3]) + (", …" if len(foreign) > 3 else "")
        raise UserError(
            f"{folder} holds shards that this command did not write: {named}; "
            "set --output to a folder of its own"
        )
    _remove_temporary(folder)
    if is_new:
        write_atomically(folder / SETTINGS, as_json(wanted))


def _unfinished(folder, shards, verify):
    """The shards that are missing or not whole."""
    with concurrent.futures.ThreadPoolExecutor(READERS) as pool:
        whole = list(pool.map(lambda name: _is_whole(folder, name, verify), shards))
    return {name: shards[name] for name, there in zip(shards, whole, strict=True) if not there}


def _is_whole(folder, name, verify):
    path = folder / f"{name}.tfrecord"
    try:
        report = _report(folder, name)
        size = path.stat().length
    except ValueError:
        return False
    except file_errors() as error:
        if is_missing(error):
            return False
        raise
    return size == report["bytes"] and (not verify or sha256_of(path) == report["sha256"])


def _remove_temporary(folder):
    for path in folder.iterdir():
        if _TEMPORARY.fullmatch(path.name):
            path.unlink(missing_ok=True)


# The end


def _finish(folder, settings, source, shards):
    """Writes DROPPED and MANIFEST from the reports of all shards; returns the manifest."""
    reports = {name: _report(folder, name) for name in shards}
    rows = [row for report in reports.values() for row in report["dropped_rows"]]
    rows.sort(key=lambda row: row["index"])
    faults = [
        {"key": key, "index": None, "reason": reason, "detail": detail}
        for key, reason, detail in source.faults
    ]
    lines = [json.dumps(row) + "\n" for row in faults + rows]
    write_atomically(folder / DROPPED, "".join(lines))
    manifest = {
        "settings": dataclasses.asdict(settings),
        "input_examples": len(source),
        "examples": sum(report["examples"] for report in reports.values()),
        "bytes": sum(report["bytes"] for report in reports.values()),
        "dropped": by_reason(rows),
        "damaged_inputs": len(faults),
        "shards": {
            f"{name}.tfrecord": {key: report[key] for key in ("examples", "bytes", "sha256")}
            for name, report in reports.items()
        },
    }
    if not manifest["examples"]:
        raise UserError(
            f"none of the {len(source)} examples can be used ({_named(manifest['dropped'])}); "
            f"{folder / DROPPED} names each"
        )
    write_atomically(folder / MANIFEST, as_json(manifest))
    return manifest


def _report(folder, name):
    return parse_json((folder / f"{name}.json").read_text())


def _named(counts):
    return ", ".join(f"{count} × {reason}" for reason, count in counts.items())


# The command line


def define_flags(values: flags.FlagValues) -> None:
    """Defines the command's flags."""
    default = Preparation(())
    flags.DEFINE_multi_string(
        "input",
        None,
        "Path or pattern of the data; it can be repeated.",
        required=True,
        flag_values=values,
    )
    flags.DEFINE_string(
        "output",
        None,
        "Folder for the shards, local or gs://….",
        required=True,
        flag_values=values,
    )
    flags.DEFINE_string(
        "source",
        default.source,
        "Kind of the data: csv, webdataset, …; auto chooses by the path.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "image_key",
        None,
        "Column, feature or ending of the picture; by default the source's usual one.",
        flag_values=values,
    )
    flags.DEFINE_multi_string(
        "caption_key",
        [],
        "Column, feature or ending of the caption; it can be repeated.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "delimiter",
        default.delimiter,
        r"Character between the columns of a CSV; \t is a tab.",
        flag_values=values,
    )
    flags.DEFINE_multi_string(
        "template",
        [],
        'Sentence around the caption, such as "a photo of {}"; it can be repeated.',
        flag_values=values,
    )
    _define_numbers(values, default)
    flags.DEFINE_bool(
        "check",
        default.check,
        "Also decodes pictures that are only copied, and drops those that cannot be decoded.",
        flag_values=values,
    )
    flags.DEFINE_bool(
        "verify",
        False,
        "Check the shards that are there already by their SHA-256.",
        flag_values=values,
    )


def _define_numbers(values, default):
    for name, value, meaning in (
        (
            "examples_per_shard",
            default.examples_per_shard,
            "How many examples of the input a shard covers.",
        ),
        ("workers", cores(), "How many processes write; by default one for each core."),
        (
            "resize",
            default.resize,
            "Shrinks larger pictures to so many pixels on the shorter side.",
        ),
        ("max_pixels", default.max_pixels, "Pictures with more pixels are dropped."),
    ):
        flags.DEFINE_integer(name, value, meaning, lower_bound=1, flag_values=values)
    flags.DEFINE_integer(
        "quality",
        default.quality,
        "Quality of the JPEGs that --resize makes, from 1 to 100.",
        lower_bound=1,
        upper_bound=100,
        flag_values=values,
    )
    flags.DEFINE_integer(
        "shuffle_seed",
        None,
        "Seed that shuffles the examples; by default they keep the order of the input.",
        flag_values=values,
    )


def starting(values: Any) -> str:
    """What is begun, in words."""
    inputs = [values.input] if isinstance(values.input, str) else values.input
    return f"the data {', '.join(inputs)} for {values.output}"


def prepare_as_told(values: Any) -> int | str:
    """Prepares the data and prints a summary; returns the exit status, or what is wrong."""
    given: dict[str, Any] = {
        field.name: tuple(value) if isinstance(value, list) else value
        for field in dataclasses.fields(Preparation)
        for value in (getattr(values, field.name),)
    }
    settings = Preparation(**given)
    output = values.output
    try:
        manifest = prepare(settings, output, workers=values.workers, verify=values.verify)
    except (UserError, *file_errors()) as error:
        return f"error: {sentence(error)}"
    dropped = manifest["dropped"]
    left_out = f", {sum(dropped.values())} dropped ({_named(dropped)})" if dropped else ""
    print(
        f"{output}: {manifest['examples']} examples in {len(manifest['shards'])} shards, "
        f"{manifest['bytes'] / 1e9:.3g} GB{left_out}"
    )
    pattern = f"{output.rstrip('/')}/*.tfrecord"
    print(f"train from it with --config.data.train={shlex.quote(pattern)}")
    return 0


def list_as_told(listed: Callable[[Any], tuple[dict[str, Any], str]], values: Any) -> int | str:
    """Writes a list of kept examples and prints a summary.

    Args:
      listed: function of the flags' values -> (the list's manifest, why examples are left out).
      values: of the flags.

    Returns:
      The exit status, or what is wrong.
    """
    try:
        manifest, why = listed(values)
    except (UserError, *file_errors()) as error:
        return f"error: {sentence(error)}"
    print(f"{values.output}: {manifest['examples']} of {manifest['input_examples']} examples stay")
    print(why)
    of_data = f"--config.data.train={shlex.quote(values.input)}"
    print(f"train on them with {of_data} --config.data.kept={shlex.quote(values.output)}")
    return 0


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; None are the arguments of the process."""
    first = next(iter(sys.argv[1:] if arguments is None else arguments), None)
    if first not in LISTS:
        command.run(
            prepare_as_told,
            define_flags,
            doc=__doc__,
            arguments=arguments,
            starting=starting,
            continues=True,
        )
        return
    module = importlib.import_module(LISTS[first])
    command.run(
        functools.partial(list_as_told, module.listed_as_told),
        module.define_flags,
        doc=module.__doc__,
        arguments=arguments,
        words=1,
        starting=starting,
        continues=True,
    )


if __name__ == "__main__":
    main()
