"""Show what is in a data set before it is trained on.

python -m cyclip_jax.data.inspect --data=train.csv --validation=val.csv --output=inspected
    --clean=cleaned

It tells of examples that cannot be read, of sizes and lengths, of repeated captions, of pictures
that are there twice, also as changed copies, and of pictures of the validation data. The output has
a page, inspect.html, and all numbers, inspect.json. With --clean it also lists what is left without
those: --config.data.kept=cleaned trains on that. The command may be killed at any moment; given
again, it continues.
"""

import shlex
from typing import Any

from absl import flags

from cyclip_jax.data.listing import define_input, input_of
from cyclip_jax.data.result_folder import cores
from cyclip_jax.data.tokenizers import TOKENIZERS
from cyclip_jax.errors import UserError
from cyclip_jax.files import absolute, file_errors
from cyclip_jax.runtime import command


def define_flags(values: flags.FlagValues) -> None:
    """Defines the command's flags."""
    define_input(values, flag="data", output="Folder for the page and the numbers.")
    flags.DEFINE_multi_string(
        "validation",
        [],
        "Path or pattern of data whose pictures must not be in training; it can be repeated.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "clean",
        None,
        "Folder for a list of the examples that are worth training on; by default none is written.",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "tokenizer",
        "clip_bpe",
        sorted(TOKENIZERS),
        "What counts the tokens of captions, as config.data.tokenizer.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "vocabulary", None, "File of its vocabulary, as config.data.vocabulary.", flag_values=values
    )
    flags.DEFINE_string(
        "checkpoint",
        None,
        "A trained model, by whose embeddings pictures are compared too: workdir of a run, an "
        "export, a folder of open_clip or transformers, a weight file, or hf-hub:user/name.",
        flag_values=values,
    )
    command.define_step(values)
    command.define_weights(values)
    flags.DEFINE_float(
        "similarity",
        0.98,
        "Cosine of two embeddings from which on their pictures count as alike.",
        flag_values=values,
    )
    for name, default, meaning in (
        ("context_length", 77, "Tokens that the model reads of a caption."),
        ("batch_size", 64, "Pictures that are embedded at once."),
        ("workers", cores(), "How many processes read pictures; by default one for each core."),
    ):
        flags.DEFINE_integer(name, default, meaning, lower_bound=1, flag_values=values)


def starting(values: Any) -> str:
    """What is begun, in words."""
    return f"inspection of {values.data}"


def inspect_as_told(values: Any) -> int | str:
    """Inspects the data and prints a summary; returns the exit status, or what is wrong."""
    from cyclip_jax.data.inspection.inspecting import PAGE, Inspection, inspect
    from cyclip_jax.data.inspection.page import summary_of
    from cyclip_jax.data.shard_writer import sentence

    names = (
        *("tokenizer", "vocabulary", "context_length"),
        *("checkpoint", "step", "weights", "similarity", "batch_size"),
    )
    settings = Inspection(
        **input_of(values, flag="data"),
        **{name: getattr(values, name) for name in names},
        validation=tuple(values.validation),
    )
    try:
        findings = inspect(settings, values.output, clean=values.clean, workers=values.workers)
    except (UserError, *file_errors()) as error:
        return f"error: {sentence(error)}"
    print("\n".join(summary_of(findings)))
    print(f"{absolute(values.output) / PAGE} shows it")
    if values.clean is not None:
        data, kept = shlex.quote(values.data), shlex.quote(values.clean)
        print(f"train on what is left with --config.data.train={data} --config.data.kept={kept}")
    return 0


def main(arguments: list[str] | None = None) -> None:
    """The command line; None are the arguments of the process."""
    command.run(
        inspect_as_told,
        define_flags,
        doc=__doc__,
        arguments=arguments,
        starting=starting,
        continues=True,
    )


if __name__ == "__main__":
    main()
