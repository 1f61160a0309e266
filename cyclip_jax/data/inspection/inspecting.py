"""An inspection from its data to its files: look, compare, tell."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from cyclip_jax.data.inspection.examples import BLOCK, Tokens, look_at
from cyclip_jax.data.inspection.findings import DataSet, findings_of, left_out
from cyclip_jax.data.inspection.page import page_of
from cyclip_jax.data.listing import Blocks, Found, Here, Input, begin
from cyclip_jax.data.record import Source
from cyclip_jax.data.result_folder import claimed
from cyclip_jax.data.sources.kept import MANIFEST, write_kept
from cyclip_jax.errors import UserError
from cyclip_jax.files import absolute, parse_json, write_atomically, write_json
from cyclip_jax.runtime.progress import progress_bar

PAGE, NUMBERS = "inspect.html", "inspect.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inspection(Input):
    """The settings that decide about the result; each has the name of its flag but `input`.

    Attributes:
      tokenizer, vocabulary, context_length: see `Tokens`.
      validation: paths of data whose pictures must not be in training.
      checkpoint: a model by which pictures are compared too, or None.
      step, weights: which of a workdir's weights, as of `open_checkpoint`.
      similarity: cosine of its embeddings from which on two pictures count as alike.
      batch_size: pictures that are embedded at once.
    """

    tokenizer: str = "clip_bpe"
    vocabulary: str | None = None
    context_length: int = 77
    validation: tuple[str, ...] = ()
    checkpoint: str | None = None
    step: int | None = None
    weights: str = "raw"
    similarity: float = 0.98
    batch_size: int = 64

    def tokens(self) -> Tokens:
        """How captions are counted."""
        return Tokens(
            tokenizer=self.tokenizer,
            vocabulary=self.vocabulary,
            context_length=self.context_length,
        )

    def sets(self) -> dict[str, Input]:
        """{where its blocks lie: the data}, of the data themselves and of all validation data."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(Input)}
        own = {"": Input(**fields)}
        for number, path in enumerate(self.validation):
            own[f"validation_{number}"] = Input(**fields | {"input": path, "kept": None})
        return own


def inspect(
    settings: Inspection,
    output: str | os.PathLike[str],
    *,
    clean: str | os.PathLike[str] | None = None,
    workers: int = 1,
) -> dict[str, Any]:
    """Writes what is in a data set: PAGE and NUMBERS, and a list of what to train on.

    Args:
      settings: the command's.
      output: folder for the result.
      clean: folder for the list, or None, which writes none.
      workers: how many processes look at examples.

    Returns:
      The findings, as NUMBERS has them.

    Raises:
      UserError: the data cannot be read, a folder holds something else, or nothing is left to
        train on.
    """
    if not 0 < settings.similarity <= 1:
        raise UserError(f"--similarity={settings.similarity} must be above 0 and at most 1")
    settings.tokens().open()
    folder = absolute(output, "--output")
    if clean is not None and absolute(clean, "--clean") == folder:
        raise UserError(
            f"--clean and --output are both {folder}; set --clean to a folder of its own"
        )
    with claimed(folder):
        sources = {
            name: data.open("data.validation" if name else "data.train")
            for name, data in settings.sets().items()
        }
        opened = _opened(settings)
        told = dataclasses.asdict(settings)
        if opened is not None:
            told["weights_sum"] = opened.checkpoint.weights_sum()
        blocks = {"": Blocks(folder, told, len(sources[""]), BLOCK)}
        if not (folder / NUMBERS).exists():
            for name in list(sources)[1:]:
                (folder / name).mkdir(exist_ok=True)
                blocks[name] = Blocks(folder / name, told, len(sources[name]), BLOCK)
            findings = {"settings": told, **_findings(settings, sources, blocks, opened, workers)}
            write_atomically(folder / PAGE, page_of(findings, list(sources.values())))
            write_json(folder / NUMBERS, findings)
        findings = parse_json((folder / NUMBERS).read_text())
        _remove_parts(folder, list(sources))
        if clean is not None:
            _write_clean(absolute(clean, "--clean"), sources[""], findings)
    return dict(findings)


def _findings(settings, sources: Mapping[str, Source], blocks, opened, workers):
    total = sum(map(len, sources.values()))
    sets = []
    with progress_bar(total * (1 if opened is None else 2), 0) as progress:
        for name, data in settings.sets().items():
            config_key = "data.validation" if name else "data.train"
            examples = look_at(data, config_key, settings.tokens(), blocks[name], workers, progress)
            embeds = (
                None
                if opened is None
                else _embedded(sources[name], blocks[name], opened.encoders, progress)
            )
            sets.append(DataSet(data.input, sources[name], examples, embeds))
    compared = int(sets[0].examples.is_readable.sum()) * len(sets)
    with progress_bar(compared, 0, "comparisons") as progress:
        return findings_of(
            sets[0],
            sets[1:],
            context_length=settings.context_length,
            similarity=settings.similarity,
            progress=lambda more: progress(more, 0),
        )


def _opened(settings):
    """The model of --checkpoint, or None."""
    if settings.checkpoint is None:
        return None
    from cyclip_jax.training.opened_model import open_model

    return open_model(
        settings.checkpoint,
        step=settings.step,
        weights=settings.weights,
        batch_size=settings.batch_size,
    )


def _embedded(source, blocks, encoders, progress):
    """(embeddings [n, d] of all pictures of a data set, which of them there are)."""

    def compute(rows: range) -> Found:
        found, places = encoders.embeds_of_rows(source, rows)
        embeds = np.zeros((len(rows), found.shape[1]), np.float32)
        has_one = np.zeros(len(rows), bool)
        embeds[places], has_one[places] = found, True
        return {"embeds": embeds, "has_one": has_one}

    with Here() as pool:
        parts = list(blocks.results("embeds", compute, lambda rows: (rows,), pool, 0, progress))
    dimension = max(part["embeds"].shape[1] for part in parts)
    whole = [
        part["embeds"] if part["embeds"].shape[1] else np.zeros((len(part["has_one"]), dimension))
        for part in parts
    ]
    return np.concatenate(whole), np.concatenate([part["has_one"] for part in parts])


def _remove_parts(folder: epath.Path, names):
    """Removes what the result was made of."""
    for name in names:
        unfinished = folder / name if name else folder / "parts"
        if unfinished.exists():
            unfinished.rmtree()


def _write_clean(folder, source, findings):
    """Writes a list of the examples that are left, which `config.data.kept` follows."""
    with claimed(folder):
        begin(folder, {**findings["settings"], "examples": len(source)}, "--clean")
        if (folder / MANIFEST).exists():
            return
        out = left_out(findings)
        rows = np.setdiff1d(np.arange(len(source)), np.array(sorted(set().union(*out.values()))))
        if not len(rows):
            raise UserError(f"none of the {len(source)} examples is left to train on")
        reasons = {reason: len(numbers) for reason, numbers in out.items()}
        write_kept(folder, source, rows, {**findings["settings"], "left_out": reasons})
