"""The section of pictures: what captions find, right and wrong, and what is confused with what."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from cyclip_jax.page.markup import Cell, Html, element, folded, image, join, table
from cyclip_jax.report.parts import (
    Drawings,
    detailed,
    evaluations_of,
    read_rows,
    require,
    require_shapes,
)
from cyclip_jax.report.runs import Group, read_arrays

_SHOWN_GROUPS = 6  # of a comparison; those of further ones would fill the page
_CONFUSED_CLASSES = 8


def pictures(groups: Sequence[Group], _: Drawings | None) -> Html | None:
    """Captions with what they retrieve, and what the model takes for something else."""
    content = []
    for evaluation in evaluations_of(groups):
        found = _galleries(groups, evaluation)
        shown = [
            *([_gallery(found)] if found else []),
            *_confusions(groups, evaluation),
            *_confused_classes(groups, evaluation),
        ]
        if shown:
            content += [element("h3", evaluation), *shown]
    return join(*content) if content else None


def _galleries(groups, evaluation):
    """[(name of the group, its queries)] of those groups whose first run has a gallery."""
    found = []
    for group, _, its, path in detailed(groups, "gallery.json"):
        if its != evaluation or len(found) == _SHOWN_GROUPS:
            continue
        queries = read_rows(path, ("caption", "rank", "of", "images"))
        for query in queries:
            for answer in query["images"]:
                require(answer, ("jpeg", "is_partner"), path)
        if queries:
            found.append((group.name, queries))
    return found


def _gallery(found):
    explained = (
        "Captions drawn at random, each with the pictures nearest to it, best first; its own are "
        "framed and ticked. "
    )
    (_, queries), *others = found
    if not others:
        right = [query for query in queries if query["rank"] == 1]
        wrong = [query for query in queries if query["rank"] != 1]
        told = f"{len(right)} of these {len(queries)} find their own picture first."
        shown = [_query(query["caption"], [("", query)]) for query in right + wrong]
        return join(element("p", explained, told), element("div", *shown, class_="gallery"))
    counts = [f"{name} {sum(q['rank'] == 1 for q in queries)}" for name, queries in found]
    told = f"Of {len(queries)} captions these find their own picture first: {', '.join(counts)}."
    by_caption = [{query["caption"]: query for query in queries} for _, queries in found]
    shown = [
        _query(caption, [(n, its[caption]) for (n, _), its in zip(found, by_caption, strict=True)])
        for caption in by_caption[0]
        if all(caption in its for its in by_caption)
    ]
    if shown:
        return join(element("p", explained, told), element("div", *shown, class_="gallery"))
    each = [
        (element("h4", name), *(_query(query["caption"], [("", query)]) for query in queries))
        for name, queries in found
    ]
    return join(element("p", explained), *(element("div", *one, class_="gallery") for one in each))


def _query(caption: str, answers: Sequence[tuple[str, dict[str, Any]]]) -> Html:
    """A caption, and what each group finds for it."""
    parts = [
        element("p", element("q", caption), *([] if answers[0][0] else [_told(answers[0][1])]))
    ]
    for name, query in answers:
        if name:
            parts.append(element("p", name, _told(query), class_="by"))
        parts.append(_strip(query))
    return element("div", *parts, class_="query")


def _told(query):
    """In words and a colour where a caption's own picture comes."""
    rank, of = query["rank"], query["of"]
    if rank == 1:
        return join(" ", element("span", "✓ right", class_="right"))
    wrong = element("span", "✗ wrong", class_="wrong")
    return join(" ", wrong, f" – its own picture comes {ordinal(rank)} of {of}")


def _strip(query):
    items = []
    for place, answer in enumerate(query["images"], 1):
        own = answer["is_partner"]
        alt = f"Answer {place}: " + ("a picture of this caption" if own else "another picture")
        mark = element("span", f"{place} ✓ own" if own else str(place))
        items.append(element("li", image(answer["jpeg"], alt), mark, class_="own" if own else None))
    return element("ol", *items, class_="answers")


def ordinal(number: int) -> str:
    """`1st`, `2nd`, `13th`."""
    suffix = (
        "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    )
    return f"{number}{suffix}"


def _confusions(groups, evaluation):
    """The pairs that a model is most wrongly sure of; of several groups folded."""
    content = []
    for group, _, its, path in detailed(groups, "confused.json"):
        if its != evaluation:
            continue
        rows = read_rows(path, ("caption", "rank", "of", "cosine", "jpeg", "answer"))
        for row in rows:
            require(row["answer"], ("caption", "cosine", "jpeg"), path)
        if rows:
            shown = element("div", *map(_confusion, rows), class_="pairs")
            content.append((f"Most confused: {group.name}", shown))
    if not content:
        return []
    explained = element(
        "p",
        "Captions for which the picture of another is much nearer than their own: the largest "
        "differences of cosines.",
    )
    if len(content) == 1:
        return [element("h4", "Most confused"), explained, content[0][1]]
    return [explained, *(folded(*one) for one in content)]


def _confusion(row):
    answer = row["answer"]
    return element(
        "div",
        element("p", element("q", row["caption"])),
        element(
            "div",
            image(answer["jpeg"], "The first answer, of another caption"),
            f"first answer, cosine {answer['cosine']:.2f}, of “{answer['caption']}”",
        ),
        element(
            "div",
            image(row["jpeg"], "Its own picture"),
            f"its own, cosine {row['cosine']:.2f}, {ordinal(row['rank'])} of {row['of']}",
        ),
        class_="pair",
    )


def _confused_classes(groups, evaluation):
    """A table of the pairs of classes that are confused most often."""
    tables = []
    for group, _, its, path in detailed(groups, "confusion.npz"):
        if its != evaluation:
            continue
        counts, names = read_arrays(path, "counts", "classes")
        require_shapes(path, counts, rows=len(names), columns=len(names))
        rows = _most_confused(counts, names)
        if rows:
            caption = f"{evaluation}: the classes that {group.name} confuses most often"
            tables.append(table(caption, ["class", "taken for", "images", "of the class's"], rows))
    return tables


def _most_confused(counts, names):
    wrong = np.array(counts, np.int64)
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:_CONFUSED_CLASSES]
    rows = []
    for true, taken in zip(*np.unravel_index(order, wrong.shape), strict=True):
        number, of = int(wrong[true, taken]), int(np.sum(counts[true]))
        if number:
            share = Cell(f"{number / of:.1%}", number / of)
            rows.append([names[true], str(names[taken]), Cell(str(number), number), share])
    return rows
