"""List the examples whose picture and caption a trained model finds most alike.

python -m cyclip_jax.data.prepare score --model=runs/cc3m --input='/data/pool/*.tar' --keep=0.4
    --output=scored

The score is the cosine of the two embeddings (Schuhmann et al. 2021). A caption may score high for
a number alone that stands in the picture too, such as a date. So by default the score is that of
the caption without its digits (after Xu et al. 2023, "The Devil is in the Number"). The data stay
where they are: --config.data.kept=scored trains on what the list keeps. The command may be killed
at any moment; given again, it continues.
"""

import csv
import dataclasses
import io
import os
import re
from typing import Any

import numpy as np
from absl import flags
from jaxtyping import Float, Int

from cyclip_jax.data.listing import Blocks, Found, Here, Input, define_input, input_of
from cyclip_jax.data.record import Source
from cyclip_jax.data.result_folder import claimed
from cyclip_jax.data.sources.kept import MANIFEST, write_kept
from cyclip_jax.errors import UserError
from cyclip_jax.files import absolute, parse_json, unfinished_path
from cyclip_jax.runtime.command import define_step, define_weights
from cyclip_jax.runtime.progress import progress_bar

SCORES = "scores.csv"
# {what is scored: column of a block's scores}
_COLUMNS = {"caption": 0, "without_numbers": 1}
_BLOCK = 2048  # examples
_DIGITS = re.compile(r"\d+")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scoring(Input):
    """The settings that decide about the result; each has the name of its flag.

    Attributes:
      keep: share of the examples that can be scored which stay, above 0 and up to 1.
      by: "without_numbers" or "caption", what they are chosen by.
      batch_size: pictures that are embedded at once.
    """

    keep: float
    by: str = "without_numbers"
    batch_size: int = 64


def without_numbers(caption: str) -> str:
    """A caption without its digits, and without the gaps that they leave; one without any as is."""
    bare = _DIGITS.sub("", caption)
    return caption if bare == caption else " ".join(bare.split())


def best(scores: Float[np.ndarray, "n"], share: float) -> Int[np.ndarray, "k"]:
    """Numbers of the examples with the highest scores, rising; of equal ones the first stay.

    Args:
      scores: of each example; NaN where it has none, which never stays.
      share: of those with a score, rounded to a whole number of them.
    """
    order = np.argsort(-scores, kind="stable")  # NaN last
    return np.sort(order[: round(share * int(np.isfinite(scores).sum()))])


def score(
    settings: Scoring,
    model: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    step: int | None = None,
    weights: str = "raw",
) -> dict[str, Any]:
    """Writes the scores of all examples, and the list of those that stay.

    Args:
      settings: the command's.
      model: anything that `cyclip_jax.load` takes.
      output: folder for the list.
      step, weights: which of a workdir's weights, as of `open_checkpoint`.

    Returns:
      The manifest.

    Raises:
      UserError: the input or the model cannot be read, the folder holds something else, or no
        example can be scored.
    """
    from cyclip_jax.interop.hub import pinned
    from cyclip_jax.runtime.started import quieten_tensorflow
    from cyclip_jax.training.opened_model import open_model

    if not 0 < settings.keep <= 1:
        raise UserError(f"--keep={settings.keep} must be above 0 and at most 1")
    quieten_tensorflow()
    folder = absolute(output, "--output")
    with claimed(folder):
        source = settings.open()
        opened = open_model(model, step=step, weights=weights, batch_size=settings.batch_size)
        told = dataclasses.asdict(settings) | {"weights_sum": opened.checkpoint.weights_sum()}
        blocks = Blocks(folder, told, len(source), _BLOCK)
        if (folder / MANIFEST).exists():
            return dict(parse_json((folder / MANIFEST).read_text()))

        def scored(rows: range) -> Found:
            # Encoders keep what they have embedded: each block has its own.
            encoders = dataclasses.replace(opened.encoders)
            return {"scores": _scored(encoders, source, rows)}

        with progress_bar(len(source), 0) as progress, Here() as pool:
            parts = blocks.results("scores", scored, lambda rows: (rows,), pool, 0, progress)
            scores = np.concatenate([np.zeros((0, 2)), *(part["scores"] for part in parts)])
        rows = best(scores[:, _COLUMNS[settings.by]], settings.keep)
        if not len(rows):
            raise UserError(f"no example of {settings.input} can be scored")
        _write_scores(folder / SCORES, source, blocks.ranges, scores, rows)
        has_score = np.isfinite(scores[:, 0])
        told |= {
            "model": pinned(model),
            "without_score": int((~has_score).sum()),
            "least_score_kept": float(scores[rows, _COLUMNS[settings.by]].min()),
            "mean_score_before": float(scores[has_score, 0].mean()),
            "mean_score_after": float(scores[rows, 0].mean()),
        }
        manifest = write_kept(folder, source, rows, told)
        blocks.remove()
        return manifest


def _scored(encoders: Any, source: Source, rows: range) -> Float[np.ndarray, "n 2"]:
    """The cosines of pictures with their captions, and with these without numbers; NaN without."""
    scores = np.full((len(rows), 2), np.nan)
    captions = source.captions(rows.start, rows.stop)
    embeds, found = encoders.embeds_of_rows(source, rows)
    is_told = np.array([bool(captions[row].strip()) for row in found], bool)
    embeds, found = embeds[is_told], found[is_told]
    own = [captions[row] for row in found]
    if own:
        # Both in one call: equal texts are embedded once, and have equal scores.
        texts = encoders.text_embeds([*own, *map(without_numbers, own)])
        scores[found, 0] = (embeds * texts[: len(own)]).sum(axis=1)
        scores[found, 1] = (embeds * texts[len(own) :]).sum(axis=1)
    return scores


def _write_scores(path, source, ranges, scores, rows):
    """A CSV with a line for each example."""
    stays = np.zeros(len(scores), bool)
    stays[rows] = True
    unfinished = unfinished_path(path)
    with unfinished.open("wb") as file:
        for number, block in enumerate(ranges):
            text = io.StringIO()
            writer = csv.writer(text, lineterminator="\n")
            if number == 0:
                writer.writerow(["example", "name", *_COLUMNS, "kept"])
            for row, name in zip(block, source.keys(block), strict=True):
                numbers = ["" if np.isnan(one) else f"{one:.6f}" for one in scores[row]]
                writer.writerow([row, name, *numbers, int(stays[row])])
            file.write(text.getvalue().encode(errors="surrogatepass"))
    unfinished.replace(path)


# The command line


def define_flags(values: flags.FlagValues) -> None:
    """Defines the command's flags."""
    define_input(values)
    flags.DEFINE_string(
        "model",
        None,
        "Workdir of a run, an export, a folder of open_clip or transformers, a weight file, or "
        "hf-hub:user/name.",
        required=True,
        flag_values=values,
    )
    define_step(values)
    define_weights(values)
    flags.DEFINE_float(
        "keep",
        0.4,
        "Share of the examples that stay, of those that can be scored.",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "by",
        "without_numbers",
        sorted(_COLUMNS),
        "What they are chosen by: the score of the caption, or of what it is without digits.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "batch_size", 64, "Pictures that are embedded at once.", lower_bound=1, flag_values=values
    )


def listed_as_told(values: Any) -> tuple[dict[str, Any], str]:
    """Scores the data; returns the manifest, and why examples are left out, in words."""
    settings = Scoring(
        **input_of(values), keep=values.keep, by=values.by, batch_size=values.batch_size
    )
    manifest = score(
        settings, values.model, values.output, step=values.step, weights=values.weights
    )
    without = manifest["without_score"]
    named = f"{without} have no picture that can be read, or no caption; " if without else ""
    return manifest, (
        f"{named}the others score less than {manifest['least_score_kept']:.4f}; "
        f"{absolute(values.output) / SCORES} has the scores"
    )
