"""What is told of a data set: all numbers, and the examples that stand out, as JSON has them."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from cyclip_jax.data.inspection.duplicates import (
    alike,
    alike_others,
    changed_copies,
    copies_of_others,
    same_bytes,
)
from cyclip_jax.data.inspection.examples import Examples
from cyclip_jax.data.inspection.thumbnails import is_flat
from cyclip_jax.data.record import Source, first_caption

# {kind of copy: what is said of it}
KINDS = {
    "same_file": "the same file as",
    "changed_copy": "a changed copy of",
    "alike": "alike, to the model, to",
}
_QUANTILES = {"least": 0, "1 %": 0.01, "5 %": 0.05, "median": 0.5, "95 %": 0.95, "99 %": 0.99}
_BINS = 24  # of a histogram
_MOST = 100  # repeated captions, and shapes, that are named

Progress = Callable[[int], object]


class DataSet(NamedTuple):
    """A data set that was looked at.

    Attributes:
      path: as it was given.
      source: its examples.
      examples: what was found out about each.
      embeds: a model's unit-norm embeddings of the pictures, float [n, d], and which there are,
        bool [n]; None without a model.
    """

    path: str
    source: Source
    examples: Examples
    embeds: tuple[Float[np.ndarray, "n d"], Bool[np.ndarray, "n"]] | None = None


def findings_of(
    data: DataSet,
    validation: Sequence[DataSet],
    *,
    context_length: int,
    similarity: float,
    progress: Progress,
) -> dict[str, Any]:
    """Everything that is told of a data set.

    Args:
      data: the data set.
      validation: further ones, whose pictures must not be in it.
      context_length: tokens from which on a caption is cut.
      similarity: cosine of embeddings from which on two pictures count as alike.
      progress: function that is called with how many more pictures have been compared; each
        readable one is compared once with the others, and once with each set of `validation`.
    """
    examples = data.examples
    lost = [
        {"name": _writable(name), "reason": reason, "detail": _writable(detail)}
        for name, reason, detail in data.source.faults
    ]
    return {
        "examples": len(examples.is_readable),
        "readable": int(examples.is_readable.sum()),
        "lost": lost,
        "unreadable": _unreadable(data),
        "pictures": _pictures(data),
        "captions": _captions(data, context_length),
        "copies": _copies(data, similarity, progress),
        "in_validation": _in_validation(data, validation, similarity, progress),
    }


def _named(source: Source, rows: Iterable[int]) -> list[dict[str, Any]]:
    rows = [int(row) for row in rows]
    names = source.keys(rows)
    return [
        {"example": row, "name": _writable(name)} for row, name in zip(rows, names, strict=True)
    ]


def _writable(text: str) -> str:
    """A text as UTF-8 can hold it; names of files may have bytes that are no UTF-8."""
    return text.encode("utf-8", "replace").decode()


def _unreadable(data):
    faults = data.examples.faults
    counts = Counter(fault.reason for fault in faults)
    named = _named(data.source, (fault.example for fault in faults))
    return {
        "count": len(faults),
        "by_reason": dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))),
        "examples": [
            {**name, "reason": fault.reason, "detail": _writable(fault.detail)}
            for name, fault in zip(named, faults, strict=True)
        ],
    }


def _pictures(data):
    rows = np.flatnonzero(data.examples.is_readable)
    size, width, height = data.examples.sizes[rows].T
    flat = rows[is_flat(data.examples.thumbnails.luma[rows])]
    shapes = Counter(zip(width.tolist(), height.tolist(), strict=True))
    commonest = sorted(shapes.items(), key=lambda item: (-item[1], item[0]))[:_MOST]
    smallest = rows[np.argsort(np.minimum(width, height), kind="stable")[:_MOST]]
    return {
        "bytes": _spread(size),
        "width": _spread(width),
        "height": _spread(height),
        "shorter_side": _spread(np.minimum(width, height)),
        "shapes": [{"width": w, "height": h, "examples": n} for (w, h), n in commonest],
        "different_shapes": len(shapes),
        "smallest": [
            {**name, "width": int(w), "height": int(h)}
            for name, (_, w, h) in zip(
                _named(data.source, smallest), data.examples.sizes[smallest], strict=True
            )
        ],
        "flat": {"count": len(flat), "examples": _named(data.source, flat)},
    }


def _spread(values: Int[np.ndarray, "n"]) -> dict[str, Any] | None:
    """Quantiles, mean and a histogram of positive numbers; None of none."""
    if not len(values):
        return None
    quantiles = np.quantile(values, list(_QUANTILES.values()), method="lower")
    low, high = int(values.min()), int(values.max()) + 1
    is_wide = high > 50 * max(low, 1)
    ends = (
        np.geomspace(max(low, 1), high, _BINS + 1) if is_wide else np.linspace(low, high, _BINS + 1)
    )
    edges = np.unique(np.rint(ends).astype(np.int64))
    return {
        **dict(zip(_QUANTILES, quantiles.tolist(), strict=True)),
        "most": high - 1,
        "mean": float(values.mean()),
        "histogram": {"edges": edges.tolist(), "counts": np.histogram(values, edges)[0].tolist()},
    }


def _captions(data, context_length):
    examples = data.examples
    rows = np.flatnonzero(examples.is_readable)
    tokens = examples.tokens[rows]
    cut = rows[tokens > context_length]
    cut = cut[np.argsort(-examples.tokens[cut], kind="stable")]
    return {
        "context_length": context_length,
        "tokens": _spread(tokens),
        "cut": {
            "count": len(cut),
            "examples": [
                {**name, "tokens": int(examples.tokens[name["example"]])}
                for name in _named(data.source, cut)
            ],
        },
        "repeated": _repeated(data.source, rows, same_bytes(examples.captions[rows])),
    }


def _repeated(source, rows, originals):
    """Captions that several examples have: `originals` are places of the first, or -1."""
    copies = np.flatnonzero(originals >= 0)
    first, counts = np.unique(originals[copies], return_counts=True)
    most = np.argsort(-counts, kind="stable")[:_MOST]
    members = {place: [rows[place]] for place in first[most].tolist()}
    for copy in copies.tolist():
        if originals[copy] in members:
            members[originals[copy]].append(rows[copy])
    return {
        "captions": len(first),
        "examples": len(copies) + len(first),
        "most": [
            {
                "caption": _writable(first_caption(source.read, int(found[0]))),
                "count": len(found),
                "examples": _named(source, found),
            }
            for found in members.values()
        ],
    }


def _copies(data, similarity, progress):
    """{kind: groups of an original and its copies}; a copy counts once, of the first kind."""
    examples = data.examples
    rows = np.flatnonzero(examples.is_readable)
    found = {"same_file": (rows, same_bytes(examples.digests[rows]))}
    rows = rows[found["same_file"][1] < 0]
    progress(int(examples.is_readable.sum()) - len(rows))
    copies = changed_copies(examples.thumbnails.at(rows), progress)
    found["changed_copy"] = rows, copies
    if data.embeds is not None:
        embeds, has_one = data.embeds
        rows = rows[(copies < 0) & has_one[rows]]
        found["alike"] = rows, alike(embeds[rows], similarity, lambda more: None)
    return {kind: _groups(data, *each) for kind, each in found.items()}


def _groups(data, rows, originals):
    places = np.flatnonzero(originals >= 0)
    captions = data.examples.captions
    differs = (captions[rows[places]] != captions[rows[originals[places]]]).any(axis=1)
    members: dict[int, list[int]] = {}
    for place in places.tolist():
        members.setdefault(int(rows[originals[place]]), []).append(int(rows[place]))
    return {
        "count": len(places),
        "with_another_caption": int(differs.sum()),
        "groups": [
            {"original": _named(data.source, [first])[0], "copies": _named(data.source, copies)}
            for first, copies in sorted(members.items())
        ],
    }


def _in_validation(data, validation, similarity, progress):
    """Examples whose picture is in a validation set, each of the first kind and set that has it."""
    examples = data.examples
    readable = np.flatnonzero(examples.is_readable)
    found: dict[int, dict[str, Any]] = {}

    def enter(kind, other, rows, originals, other_rows):
        has_one = originals >= 0
        pairs = rows[has_one], other_rows[originals[has_one]]
        own, of = _named(data.source, pairs[0]), _named(other.source, pairs[1])
        for one, its_copy in zip(own, of, strict=True):
            found[one["example"]] = {**one, "kind": kind, "of": {"data": other.path, **its_copy}}

    for other in validation:
        others = np.flatnonzero(other.examples.is_readable)

        def left():
            return readable[~np.isin(readable, list(found))]

        rows = left()
        progress(len(readable) - len(rows))
        same = same_bytes(examples.digests[rows], other.examples.digests[others])
        enter("same_file", other, rows, same, others)
        progress(int((same >= 0).sum()))
        rows = left()
        thumbnails = examples.thumbnails.at(rows), other.examples.thumbnails.at(others)
        enter("changed_copy", other, rows, copies_of_others(*thumbnails, progress), others)
        if data.embeds is not None and other.embeds is not None:
            rows = left()
            rows, others = rows[data.embeds[1][rows]], others[other.embeds[1][others]]
            if len(others):
                embeds = data.embeds[0][rows], other.embeds[0][others]
                enter(
                    "alike", other, rows, alike_others(*embeds, similarity, lambda m: None), others
                )
    counts = Counter(pair["kind"] for pair in found.values())
    return {
        "sets": [
            {"data": other.path, "readable": int(other.examples.is_readable.sum())}
            for other in validation
        ],
        "count": len(found),
        "by_kind": {kind: counts[kind] for kind in KINDS if counts[kind]},
        "examples": [found[row] for row in sorted(found)],
    }


def left_out(findings: dict[str, Any]) -> dict[str, set[int]]:
    """{reason: numbers of the examples that training is better without}, each for one reason."""
    groups = {
        "unreadable": findings["unreadable"]["examples"],
        "in_validation": findings["in_validation"]["examples"],
        **{
            kind: [copy for group in copies["groups"] for copy in group["copies"]]
            for kind, copies in findings["copies"].items()
        },
    }
    seen: set[int] = set()
    found = {}
    for reason, examples in groups.items():
        numbers = {example["example"] for example in examples} - seen
        seen |= numbers
        found[reason] = numbers
    return found
