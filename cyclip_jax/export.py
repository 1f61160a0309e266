"""`python -m cyclip_jax.export --checkpoint=WORKDIR --format=open_clip --output=DIR`."""

import argparse
import sys

from absl import logging

import cyclip_jax.quiet  # noqa: F401  (must come first)
from cyclip_jax.errors import UserError
from cyclip_jax.interop.files import DTYPES

FORMATS = ("open_clip", "cyclip", "transformers", "onnx")
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
    from cyclip_jax.files import absolute
    from cyclip_jax.interop.card import model_card
    from cyclip_jax.interop.folders import DESCRIPTION
    from cyclip_jax.interop.formats import WRITERS, write_json
    from cyclip_jax.pretrained import completed, module_of, open_checkpoint, tokenizer_of

    if export_format not in FORMATS:
        raise UserError(f"unknown format {export_format!r}; choose one of {', '.join(FORMATS)}")
    output = absolute(output)
    _check_replaceable(output, DESCRIPTION)
    opened = completed(open_checkpoint(checkpoint, step=step))
    tokenizer = tokenizer_of(opened)
    folder = output.parent / f"{output.name}.unfinished"
    if folder.exists():
        folder.rmtree()
    folder.mkdir(parents=True)
    try:
        if export_format == "onnx":
            from cyclip_jax.interop.onnx import write_onnx

            write_onnx(folder, opened, module_of(opened), dtype)
            weight_files = []
        else:
            weight_files = WRITERS[export_format](folder, opened, tokenizer, dtype)
        vocabulary = _VOCABULARIES[opened.tokenizer["tokenizer"]]
        absolute(tokenizer.vocabulary).copy(folder / vocabulary)
        description = {
            "format": export_format,
            "weights": weight_files,
            "dtype": dtype,
            "step": opened.step,
            "model": {key: value for key, value in opened.model.items() if key != "dtype"},
            "tokenizer": {**opened.tokenizer, "vocabulary": vocabulary},
            "preprocess": opened.preprocess,
        }
        write_json(folder / DESCRIPTION, description)
        card = model_card(
            opened,
            name=output.name,
            export_format=export_format,
            dtype=dtype,
            license_name=license_name,
        )
        (folder / "README.md").write_text(card)
    except BaseException:
        folder.rmtree()
        raise
    if output.exists():
        output.rmtree()
    folder.rename(output)
    return sorted(path.name for path in output.iterdir())


def _check_replaceable(output, description):
    if not output.exists():
        return
    if not output.is_dir() or (any(output.iterdir()) and not (output / description).exists()):
        raise UserError(
            f"{output} exists and is no earlier export, so that it is left alone; choose another "
            "--output"
        )


def parse_arguments(arguments):
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
    main()
