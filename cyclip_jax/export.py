"""`python -m cyclip_jax.export --checkpoint=WORKDIR --format=open_clip --output=DIR`."""

import argparse
import json
import os
import sys
import uuid

from absl import logging
from etils import epath

from cyclip_jax.errors import UserError
from cyclip_jax.files import absolute, write_json
from cyclip_jax.interop.card import model_card
from cyclip_jax.interop.files import DTYPES
from cyclip_jax.interop.folders import DESCRIPTION
from cyclip_jax.interop.formats import WRITERS, check_format
from cyclip_jax.runtime.started import prepare_command

FORMATS = (*WRITERS, "onnx")
_VOCABULARIES = {"sentencepiece": "tokenizer.model", "clip_bpe": "bpe_simple_vocab_16e6.txt.gz"}


def export_checkpoint(
    checkpoint, *, export_format, output, step=None, dtype="float32", license_name="unknown"
):
    """Writes a trained model for others to read.

    Args:
      checkpoint: whatever `cyclip_jax.load` takes.
      export_format: "open_clip", "cyclip", "transformers" or "onnx".
      output: directory to write; it may be an earlier export, which is replaced.
      step: which checkpoint of a workdir; None is the newest.
      dtype: of the weights: "float32", "float16" or "bfloat16".
      license_name: for the model card.

    Returns:
      The names of the files written.

    Raises:
      UserError: no such checkpoint, a format that cannot hold the model, a directory with something
        else in it. Nothing is then written.
    """
    from cyclip_jax.interop.pretrained import completed, open_checkpoint, tokenizer_of, verified

    if export_format not in FORMATS:
        raise UserError(f"unknown format {export_format!r}; choose one of {', '.join(FORMATS)}")
    output = _real(output)
    _check_replaceable(output, _real(checkpoint))
    opened = verified(completed(open_checkpoint(checkpoint, step=step)))
    check_format(opened, export_format)
    tokenizer = tokenizer_of(opened)
    folder = output.parent / f".{output.name}.{uuid.uuid4().hex}"
    try:
        folder.mkdir(parents=True)
        weight_files = _write_model(folder, opened, tokenizer, export_format, dtype)
        card = model_card(
            opened,
            name=output.name,
            export_format=export_format,
            dtype=dtype,
            license_name=license_name,
        )
        (folder / "README.md").write_text(card)
        _write_description(
            folder, opened, tokenizer, weight_files, format=export_format, dtype=dtype
        )
        _put_in_place(folder, output)
    except OSError as error:
        raise UserError(f"{output} cannot be written: {error}") from error
    finally:
        if folder.exists():
            folder.rmtree()
    return sorted(path.name for path in output.iterdir())


def _write_model(folder, opened, tokenizer, export_format, dtype):
    """Writes the weights in their format; returns the files from which they can be read back."""
    if export_format != "onnx":
        return WRITERS[export_format](folder, opened, tokenizer, dtype)
    from cyclip_jax.interop.onnx import write_onnx
    from cyclip_jax.interop.pretrained import module_of

    write_onnx(folder, opened, module_of(opened), dtype)
    return []


def _write_description(folder, opened, tokenizer, weight_files, **values):
    """Writes the vocabulary, and what no format has a place for."""
    vocabulary = _VOCABULARIES[opened.tokenizer["tokenizer"]]
    absolute(tokenizer.vocabulary).copy(folder / vocabulary)
    description = {
        **values,
        "weights": weight_files,
        "step": opened.step,
        "model": opened.model,
        "tokenizer": {**opened.tokenizer, "vocabulary": vocabulary},
        "preprocess": opened.preprocess,
        "files": sorted([*(path.name for path in folder.iterdir()), DESCRIPTION]),
    }
    write_json(folder / DESCRIPTION, description)


def _real(path):
    """The absolute path, without links where it is local."""
    path = absolute(path)
    return path if "://" in str(path) else epath.Path(os.path.realpath(path))


def _check_replaceable(output, checkpoint):
    """Raises UserError where the output would take the place of anything but an export's files."""
    if output == checkpoint or output in checkpoint.parents:
        raise UserError(f"{output} holds what is to be exported; choose another --output")
    if not output.exists():
        return
    try:
        listed = json.loads((output / DESCRIPTION).read_text())["files"]
    except (OSError, ValueError, KeyError):
        listed = []
    other = (
        sorted({path.name for path in output.iterdir()} - set(listed)) if output.is_dir() else []
    )
    if other or not output.is_dir():
        raise UserError(
            f"{output} is left alone, as it is no export or holds something else "
            f"({', '.join(other[:5]) or 'a file'}); choose another --output"
        )


def _put_in_place(folder, output):
    """Gives a folder its name; what had it, an earlier export, goes only then."""
    if not output.exists():
        folder.rename(output)
        return
    earlier = output.parent / f"{folder.name}.earlier"
    output.rename(earlier)
    folder.rename(output)
    earlier.rmtree()


def parse_arguments(arguments):
    """The command line's arguments; None takes those of the process."""
    parser = argparse.ArgumentParser(
        prog="python -m cyclip_jax.export", description="Write a trained model for others to read."
    )
    parser.add_argument(
        "--checkpoint",
        required=True,
        help="workdir of a run, export, folder of open_clip or transformers, or file of weights",
    )
    parser.add_argument("--step", type=int, help="which checkpoint of a workdir; default: newest")
    parser.add_argument("--format", required=True, choices=FORMATS, help="who will read it")
    parser.add_argument("--output", required=True, help="directory to write")
    parser.add_argument("--dtype", default="float32", choices=list(DTYPES), help="of the weights")
    parser.add_argument(
        "--license", default="unknown", help="for the model card, as hubs write it: apache-2.0, …"
    )
    return parser.parse_args(arguments)


def main(arguments=None):
    """The command line: exports, and says what was written."""
    args = parse_arguments(arguments)
    logging.set_verbosity(logging.WARNING)
    try:
        files = export_checkpoint(
            args.checkpoint,
            export_format=args.format,
            output=args.output,
            step=args.step,
            dtype=args.dtype,
            license_name=args.license,
        )
    except UserError as error:
        sys.exit(f"error: {error}")
    print(f"{args.output}: {', '.join(files)}")
    if args.format == "open_clip" and "openai.pt" not in files:
        print("(openai.pt is left out: it needs pip install 'cyclip_jax[torch]')")


if __name__ == "__main__":
    prepare_command()
    main()
