"""Write the embeddings of a data set's pictures and captions.

python -m cyclip_jax.embed --checkpoint=runs/cc3m --data='/data/pool/*.tar' --output=pool

The files have clip-retrieval's layout: img_emb, text_emb (float16 .npy), metadata (Parquet). The
command may be killed at any moment; given again, it continues. With --distributed any number of
processes share the work. python -m cyclip_jax.search pool looks through what it wrote.

Single pictures and sentences go to the terminal, a line of JSON for each:

python -m cyclip_jax.embed --checkpoint=runs/cc3m --image=cat.jpg --text='a cat on a sofa'
"""

import importlib.util
import json
from typing import Any

from absl import flags

from cyclip_jax.data.listing import define_reading, input_of
from cyclip_jax.errors import UserError
from cyclip_jax.runtime import command
from cyclip_jax.runtime.distributed_flags import define_distributed_flags


def define_flags(values: flags.FlagValues) -> None:
    """Defines the command's flags."""
    command.define_checkpoint(values)
    command.define_weights(values)
    for name, meaning in (
        ("data", "Data as config.data.train has them, or a folder of pictures."),
        ("output", "Folder for the embeddings, local or gs://…."),
    ):
        flags.DEFINE_string(name, None, meaning, flag_values=values)
    define_reading(values)
    flags.DEFINE_bool("images", True, "Embeds the pictures.", flag_values=values)
    flags.DEFINE_bool(
        "texts", None, "Embeds the captions; by default where there are some.", flag_values=values
    )
    flags.DEFINE_bool(
        "text_windows",
        False,
        "Reads captions that are too long for the model in windows, rather than cut.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "batch_size",
        64,
        "Examples that each process embeds at once.",
        lower_bound=1,
        flag_values=values,
    )
    flags.DEFINE_integer(
        "shard_size",
        16384,
        "Examples of a shard; a killed command begins its shard again.",
        lower_bound=1,
        flag_values=values,
    )
    flags.DEFINE_multi_string("image", [], "A picture; it can be repeated.", flag_values=values)
    flags.DEFINE_multi_string("text", [], "A sentence; it can be repeated.", flag_values=values)
    define_distributed_flags(values)


def starting(values: Any) -> str:
    """What is begun, in words."""
    data = "the pictures and texts named" if values.image or values.text else values.data
    return f"embedding of {data} by {values.checkpoint}"


def main(values: Any) -> None:
    """Embeds what the flags name."""
    from cyclip_jax.runtime import distributed

    if values.image or values.text:
        _embed_single(values)
        return
    for name in ("data", "output"):
        if getattr(values, name) is None:
            raise UserError(f"--{name} is missing; or name single --image and --text")
    if importlib.util.find_spec("pyarrow") is None:
        raise UserError("the metadata are Parquet, which needs pyarrow; run pip install pyarrow")
    try:
        distributed.join_as_told(values, saves=False)
        _embed_data(values)
    except UserError as error:
        distributed.end(f"error: {error}")
        return
    distributed.end(0)


def _embed_data(values):
    import jax

    from cyclip_jax.embeddings.layout import UNREADABLE
    from cyclip_jax.embeddings.write import Wanted, embed_data
    from cyclip_jax.files import absolute

    wanted = Wanted(
        **input_of(values, flag="data"),
        images=values.images,
        texts=values.texts,
        text_windows=values.text_windows,
        batch_size=values.batch_size,
        shard_size=values.shard_size,
    )
    manifest = embed_data(
        wanted, values.checkpoint, values.output, step=values.step, weights=values.weights
    )
    if jax.process_index() != 0:
        return
    folder = absolute(values.output)
    print(f"{manifest['examples']} examples are embedded in {folder}")
    unreadable = manifest["unreadable"]
    if unreadable:
        reasons = ", ".join(f"{count} × {reason}" for reason, count in unreadable.items())
        total = sum(unreadable.values())
        print(f"{total} cannot be ({reasons}), named in {folder / UNREADABLE}")
    print(f"look through them: python -m cyclip_jax.search {values.output}")


def _embed_single(values):
    """Prints a line of JSON for each picture and sentence."""
    from cyclip_jax.evals.data.loose_pictures import open_pictures
    from cyclip_jax.training.opened_model import open_model

    pictures = [open_pictures(path) for path in values.image]
    opened = open_model(
        values.checkpoint,
        step=values.step,
        weights=values.weights,
        batch_size=1,
        text_windows=values.text_windows,
    )
    encoders = opened.encoders
    for images in pictures:
        rows, found = encoders.image_embeds(images)
        for name, row in zip(images.source.keys(found), rows, strict=True):
            _print({"image": name, "embedding": row.tolist()})
    for text in values.text:
        _print({"text": text, "embedding": encoders.text_embeds([text])[0].tolist()})


def _print(line):
    print(json.dumps(line, ensure_ascii=False))


if __name__ == "__main__":
    command.run(main, define_flags, doc=__doc__, starting=starting, continues=True)
