"""Write a trained model in the format of another program.

python -m cyclip_jax.export --checkpoint=WORKDIR --format=open_clip --output=DIR
"""

import importlib.util
import os
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from absl import flags
from etils import epath

from cyclip_jax.errors import UserError, check_known
from cyclip_jax.files import absolute, parse_json, write_json
from cyclip_jax.runtime import command

if TYPE_CHECKING:  # it brings JAX, and the command's first line comes before that
    from cyclip_jax.interop.checkpoint import Checkpoint

# Of READERS_TOWERS in interop/formats.py, and of DTYPES in interop/files.py, for the same reason.
FORMATS = ("open_clip", "cyclip", "transformers", "onnx")
DTYPES = ("float32", "float16", "bfloat16")
_VOCABULARIES = {"sentencepiece": "tokenizer.model", "clip_bpe": "bpe_simple_vocab_16e6.txt.gz"}


def export_checkpoint(
    checkpoint: str | os.PathLike[str],
    *,
    export_format: str,
    output: str | os.PathLike[str],
    step: int | None = None,
    dtype: str = "float32",
    license_name: str = "unknown",
    weights: str = "raw",
    text_map: str | os.PathLike[str] | None = None,
) -> list[str]:
    """Writes a trained model in the format of another program.

    Args:
      checkpoint: anything that `cyclip_jax.load` takes.
      export_format: "open_clip", "cyclip", "transformers" or "onnx".
      output: the directory to write. If it is an earlier export, it is replaced.
      step: the step of the checkpoint in a workdir; None takes the newest.
      dtype: the dtype of the weights, "float32", "float16" or "bfloat16".
      license_name: the license that the model card names.
      weights: "raw", or "average" for the average that a run kept of them.
      text_map: file with the matrix that the evaluation `labclip` has learned for text embeddings,
        which becomes a part of the text projection; None is none.

    Returns:
      The names of the files that were written.

    Raises:
      UserError: there is no such checkpoint, the format cannot hold the model, or the directory has
        something else in it. Nothing is written then.
    """
    from cyclip_jax.interop.pretrained import completed, open_checkpoint, verified
    from cyclip_jax.interop.text_map import with_text_map

    check_known("format", export_format, FORMATS)
    check_replaceable(output, checkpoint)
    opened = verified(completed(open_checkpoint(checkpoint, step=step, weights=weights)))
    if text_map is not None:
        opened = with_text_map(opened, text_map)
    return write_export(
        opened,
        output,
        export_format=export_format,
        dtype=dtype,
        license_name=license_name,
    )


def write_export(
    opened: "Checkpoint",
    output: str | os.PathLike[str],
    *,
    export_format: str,
    dtype: str = "float32",
    license_name: str = "unknown",
) -> list[str]:
    """Writes a completed Checkpoint as `export_checkpoint` does, with the same arguments."""
    from cyclip_jax.interop.card import model_card
    from cyclip_jax.interop.class_head import parted_head, write_head
    from cyclip_jax.interop.formats import check_format
    from cyclip_jax.interop.pretrained import tokenizer_of

    output = _real(output)
    head, opened = parted_head(opened)
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
        write_head(folder, head)
        _write_description(
            folder, opened, tokenizer, weight_files, format=export_format, dtype=dtype
        )
        _put_in_place(folder, output)
    except OSError as error:
        raise UserError(f"{output} cannot be written ({error}); choose another --output") from error
    finally:
        if folder.exists():
            folder.rmtree()
    return sorted(path.name for path in output.iterdir())


def _write_model(folder, opened, tokenizer, export_format, dtype):
    """Writes the weights and returns the names of the files from which they can be read back."""
    if export_format != "onnx":
        from cyclip_jax.interop.formats import WRITERS

        return WRITERS[export_format](folder, opened, tokenizer, dtype)
    from cyclip_jax.interop.onnx import write_onnx
    from cyclip_jax.interop.pretrained import module_of

    write_onnx(folder, opened, module_of(opened), dtype)
    return []


def _write_description(folder, opened, tokenizer, weight_files, **values):
    """Writes the vocabulary, and a file with everything for which the format has no place."""
    from cyclip_jax.interop.folders import DESCRIPTION

    vocabulary = _VOCABULARIES[opened.tokenizer["tokenizer"]]
    absolute(tokenizer.vocabulary).copy(folder / vocabulary)
    description = {
        **values,
        "weights": weight_files,
        "step": opened.step,
        "model": opened.model,
        "tokenizer": {**opened.tokenizer, "vocabulary": vocabulary},
        "vocabulary_sum": tokenizer.vocabulary_sum,
        "preprocess": opened.preprocess,
        "files": sorted([*(path.name for path in folder.iterdir()), DESCRIPTION]),
    }
    write_json(folder / DESCRIPTION, description)


def _real(path):
    """Returns the absolute path; in a local one, links are resolved."""
    path = absolute(path)
    return path if "://" in str(path) else epath.Path(os.path.realpath(path))


def check_replaceable(output: str | os.PathLike[str], *checkpoints: str | os.PathLike[str]) -> None:
    """Raises UserError if the output would replace anything but the files of an export.

    Args:
      output: the directory to write.
      *checkpoints: where the models lie that are exported.
    """
    from cyclip_jax.interop.folders import DESCRIPTION

    output = _real(output)
    for checkpoint in map(_real, checkpoints):
        if output == checkpoint or output in checkpoint.parents:
            raise UserError(f"{output} holds the model to be exported; choose another --output")
    if not output.exists():
        return
    try:
        listed = parse_json((output / DESCRIPTION).read_text())["files"]
    except (OSError, ValueError, KeyError):
        listed = []
    other = (
        sorted({path.name for path in output.iterdir()} - set(listed)) if output.is_dir() else []
    )
    if other or not output.is_dir():
        raise UserError(
            f"{output} is left alone, because it is not an export or holds something else "
            f"({', '.join(other[:5]) or 'a file'}); choose another --output"
        )


def _put_in_place(folder, output):
    """Gives a folder its final name, and only then removes the earlier export of that name."""
    if not output.exists():
        folder.rename(output)
        return
    earlier = output.parent / f"{folder.name}.earlier"
    output.rename(earlier)
    folder.rename(output)
    earlier.rmtree()


def define_flags(values: flags.FlagValues) -> None:
    """Defines the command's flags."""
    command.define_checkpoint(values)
    command.define_weights(values)
    flags.DEFINE_enum(
        "format",
        None,
        FORMATS,
        "The program that will read the export.",
        required=True,
        flag_values=values,
    )
    flags.DEFINE_string("output", None, "Directory to write.", required=True, flag_values=values)
    flags.DEFINE_enum("dtype", "float32", DTYPES, "The type of the weights.", flag_values=values)
    flags.DEFINE_string(
        "license",
        "unknown",
        "The license that the model card names, as model hubs write it, e.g. apache-2.0.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "text_map",
        None,
        "File text_map.npz of the evaluation labclip, which becomes a part of the text projection.",
        flag_values=values,
    )


def starting(values: Any) -> str:
    """What is begun, in words."""
    return f"export of {values.checkpoint} as {values.format}"


def export(values: Any) -> None:
    """Exports, and says what was written."""
    files = export_checkpoint(
        values.checkpoint,
        export_format=values.format,
        output=values.output,
        step=values.step,
        dtype=values.dtype,
        license_name=values.license,
        weights=values.weights,
        text_map=values.text_map,
    )
    print(f"{values.output}: {', '.join(files)}")
    if values.format == "open_clip" and importlib.util.find_spec("torch") is None:
        print("openai.pt is left out; to write it, run pip install 'cyclip_jax[torch]'")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; None are the arguments of the process."""
    command.run(export, define_flags, doc=__doc__, arguments=arguments, starting=starting)


if __name__ == "__main__":
    main()
