"""Write a trained model in the format of another program.

python -m cyclip_jax.export --checkpoint=WORKDIR --format=open_clip --output=DIR
python -m cyclip_jax.export --checkpoint=WORKDIR --format=open_clip --output=DIR --push=user/name
"""

import importlib.util
import os
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from absl import flags
from etils import epath

from cyclip_jax.errors import UserError, check_known
from cyclip_jax.files import (
    absolute,
    entries,
    is_on_hub,
    parse_json,
    write_atomically,
    write_json,
)
from cyclip_jax.runtime import command
from cyclip_jax.workdir.layout import EVALS

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
    repository: str | None = None,
    with_pictures: bool = False,
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
      repository: the repository on the Hugging Face Hub from which the card says how to load it.
      with_pictures: whether the card shows the pictures that the run's evaluations kept.

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
        repository=repository,
        with_pictures=with_pictures,
    )


def write_export(
    opened: "Checkpoint",
    output: str | os.PathLike[str],
    *,
    export_format: str,
    dtype: str = "float32",
    license_name: str = "unknown",
    repository: str | None = None,
    with_pictures: bool = False,
) -> list[str]:
    """Writes a completed Checkpoint as `export_checkpoint` does, with the same arguments."""
    from cyclip_jax.interop.card import model_card
    from cyclip_jax.interop.class_head import parted_head, write_head
    from cyclip_jax.interop.formats import check_format
    from cyclip_jax.interop.pictures import FOLDER
    from cyclip_jax.interop.pretrained import tokenizer_of

    output = _real(output)
    head, opened = parted_head(opened)
    check_format(opened, export_format)
    tokenizer = tokenizer_of(opened)
    shown, pictures = _pictures(opened) if with_pictures else ("", {})
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
            repository=repository,
            pictures=shown,
        )
        for name, content in pictures.items():
            write_atomically(folder / FOLDER / name, content)
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
    return _names_in(output, [FOLDER])


def _pictures(opened):
    """What `card_pictures` finds of the run of a checkpoint."""
    from cyclip_jax.interop.pictures import card_pictures

    if opened.config is None:
        raise UserError(
            f"{opened.source} is not the workdir of a run, which alone has pictures; leave out "
            "--with_pictures"
        )
    return card_pictures(epath.Path(opened.source) / EVALS)


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
    from cyclip_jax.interop.pictures import FOLDER

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
        "files": sorted([*_names_in(folder, [FOLDER]), DESCRIPTION]),
    }
    write_json(folder / DESCRIPTION, description)


def _names_in(folder, inner):
    """Names of what a folder holds, sorted; of the folders `inner` in it what these hold."""
    names = [
        f"{path.name}/{below.name}" if below is not path else path.name
        for path in folder.iterdir()
        for below in (entries(path) if path.name in inner and path.is_dir() else [path])
    ]
    return sorted(names)


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
    for checkpoint in (_real(path) for path in checkpoints if not is_on_hub(path)):
        if output == checkpoint or output in checkpoint.parents:
            raise UserError(f"{output} holds the model to be exported; choose another --output")
    if not output.exists():
        return
    try:
        listed = parse_json((output / DESCRIPTION).read_text())["files"]
    except (OSError, ValueError, KeyError):
        listed = []
    inner = {name.partition("/")[0] for name in listed if "/" in name}
    other = sorted(set(_names_in(output, inner)) - set(listed)) if output.is_dir() else []
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
    flags.DEFINE_string(
        "push",
        None,
        "Repository on the Hugging Face Hub, user/name, to which the export is sent. The token is "
        "that of `hf auth login` or $HF_TOKEN.",
        flag_values=values,
    )
    flags.DEFINE_bool(
        "public",
        False,
        "Makes a new repository public; otherwise it is private. One that is there stays as it is.",
        flag_values=values,
    )
    flags.DEFINE_bool(
        "with_pictures",
        False,
        "Adds the pictures that the run's evaluations kept to the card. They are of your data, so "
        "they are left out otherwise.",
        flag_values=values,
    )


def starting(values: Any) -> str:
    """What is begun, in words."""
    return f"export of {values.checkpoint} as {values.format}"


def export(values: Any) -> None:
    """Exports, says what was written, and sends it where that is asked for."""
    from cyclip_jax.interop.push import check_push, push

    if values.push is not None:
        check_push(values.push, values.output)
    elif values.public:
        raise UserError("--public is about the repository of --push, which is not given; add that")
    files = export_checkpoint(
        values.checkpoint,
        export_format=values.format,
        output=values.output,
        step=values.step,
        dtype=values.dtype,
        license_name=values.license,
        weights=values.weights,
        text_map=values.text_map,
        repository=values.push,
        with_pictures=values.with_pictures,
    )
    print(f"{values.output}: {', '.join(files)}")
    if values.format == "open_clip" and importlib.util.find_spec("torch") is None:
        print("openai.pt is left out; to write it, run pip install 'cyclip_jax[torch]'")
    if values.push is not None:
        push(values.output, values.push, is_public=values.public)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; None are the arguments of the process."""
    command.run(export, define_flags, doc=__doc__, arguments=arguments, starting=starting)


if __name__ == "__main__":
    main()
