"""What a person looks at: the table at the end of a run, and pictures of what was learned."""

import io

from cyclip_jax.files import write_atomically

_TERMS = ("loss", "contrastive_loss", "inmodal_cyclic_loss", "crossmodal_cyclic_loss")
_CONSISTENCIES = ("inmodal_consistency", "crossmodal_consistency")


def final_table(metrics):
    """The last step's metrics as text: a column for training and one for each evaluation.

    Args:
      metrics: {name: number}, evaluation's as "<evaluation>/<metric>".
    """
    evaluations = list(dict.fromkeys(name.split("/")[0] for name in metrics if "/" in name))
    columns = {"training": metrics} | {
        evaluation: {
            name.removeprefix(f"{evaluation}/"): value
            for name, value in metrics.items()
            if name.startswith(f"{evaluation}/")
        }
        for evaluation in evaluations
    }
    evaluated = [name for column in list(columns.values())[1:] for name in column]
    shares = [name for name in dict.fromkeys(evaluated) if _is_share(name)]
    rows = [("", list(columns))]
    rows += [(name, [_number(c.get(name)) for c in columns.values()]) for name in _TERMS]
    rows += [(name, [_small(c.get(name)) for c in columns.values()]) for name in _CONSISTENCIES]
    for name in shares:
        cells = [_share(c.get(name), c.get(f"chance_{name}")) for c in list(columns.values())[1:]]
        rows.append((name, ["", *cells]))
    for name in ("pairs", "images", "captions"):
        if name in evaluated:
            rows.append((name, [_whole(c.get(name)) for c in columns.values()]))
    if "images_per_second" in metrics:
        rows.append(("images/s", [_whole(metrics["images_per_second"])]))
    lines = _aligned(rows)
    if any(name.startswith("chance_") for name in evaluated):
        lines.append("(in brackets: what a random order gets)")
    return "\n".join(lines)


def _is_share(name):
    return name.startswith(("image_to_text_recall", "text_to_image_recall", "top"))


def _number(value):
    return "" if value is None else f"{value:.4f}"


def _small(value):
    return "" if value is None else f"{value:.5f}"


def _whole(value):
    return "" if value is None else f"{value:.0f}"


def _share(value, chance):
    if value is None:
        return ""
    return f"{value:.1%}" + ("" if chance is None else f" ({chance:.2%})")


def _aligned(rows):
    label_width = max(len(label) for label, _ in rows)
    cell_width = max(len(cell) for _, cells in rows for cell in cells)
    return [
        f"{label:{label_width}}  " + "  ".join(f"{cell:>{cell_width}}" for cell in cells)
        for label, cells in rows
    ]


def retrieval_gallery(path, *, captions, ranked, partners, read_image, columns=6):
    """Draws captions with the images that they retrieve, best first, the right ones framed.

    Args:
      path: of the PNG.
      captions: the queries, list[str].
      ranked: image numbers by falling similarity, int [len(captions), images].
      partners: for each caption the set of its own images' numbers.
      read_image: function from an image number to uint8 [h, w, 3].
      columns: images per caption.
    """
    import matplotlib  # slow to import, and needed here alone

    matplotlib.use("Agg")
    from matplotlib import pyplot

    columns = min(columns, ranked.shape[1])
    width, height = 1.3 * columns + 2.6, 1.3 * len(captions) + 0.4  # inches; a picture has 1.3
    margins = {"left": 2.5 / width, "right": 0.99, "bottom": 0.05 / height, "top": 1 - 0.4 / height}
    figure, axes = pyplot.subplots(
        len(captions), columns, figsize=(width, height), squeeze=False, gridspec_kw=margins
    )
    figure.text(
        0.01, 1 - 0.25 / height, "Held-out captions and the images nearest to them; its own framed"
    )
    for row, caption in enumerate(captions):
        place = min(list(ranked[row]).index(partner) for partner in partners[row]) + 1
        axes[row, 0].annotate(
            f"{_wrapped(caption)}\nits image comes {_ordinal(place)} of {ranked.shape[1]}",
            (-0.1, 0.5),
            xycoords="axes fraction",
            ha="right",
            va="center",
            fontsize=9,
            parse_math=False,
        )
        for column in range(columns):
            image = ranked[row, column]
            axes[row, column].imshow(read_image(image))
            axes[row, column].set(xticks=[], yticks=[])
            is_partner = image in partners[row]
            for spine in axes[row, column].spines.values():
                spine.set(
                    linewidth=4 if is_partner else 0.5, color="#0072b2" if is_partner else "#ccc"
                )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    pyplot.close(figure)
    write_atomically(path, buffer.getvalue())


def _wrapped(text, width=30):
    import textwrap

    return "\n".join(textwrap.wrap(text, width)[:3])


def _ordinal(number):
    suffix = (
        "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    )
    return f"{number}{suffix}"
