"""The page of an inspection: numbers and pictures, for a person to look at."""

import base64
from collections.abc import Iterable, Sequence
from typing import Any

from cyclip_jax.data.inspection.findings import KINDS, left_out
from cyclip_jax.data.pillow import small_jpeg
from cyclip_jax.data.record import Source, Unreadable, read_told
from cyclip_jax.data.transform import MAX_PIXELS
from cyclip_jax.page.document import document
from cyclip_jax.page.markup import Cell, Html, element, folded, image, join, table

_SIDE = 120  # pixels of a picture on the page
_SHOWN = 12  # groups or examples of a finding that have pictures
_LISTED = 200  # rows of a table
_ACROSS = 6  # pictures of a group
_LONGEST = 160  # characters of a name or a caption
_REASONS = {
    "unreadable": "cannot be read",
    "in_validation": "are in the validation data",
    "same_file": "have the same file as an earlier one",
    "changed_copy": "are changed copies of an earlier one",
    "alike": "are alike to an earlier one by the model",
}
_TITLES = {
    "same_file": "The same file",
    "changed_copy": "Changed copies",
    "alike": "Alike to the model",
}


def page_of(findings: dict[str, Any], sources: Sequence[Source]) -> str:
    """The HTML text of the page.

    Args:
      findings: as of `findings_of`, with "settings".
      sources: the data, and then the validation data.
    """
    return document(
        f"What is in {_short(findings['settings']['input'])}",
        {
            "Summary": _summary(findings),
            "What cannot be read": _unreadable(findings),
            "Pictures": _pictures(findings["pictures"], sources[0]),
            "Captions": _captions(findings["captions"], sources[0]),
            "Copies": _copies(findings["copies"], sources[0]),
            "Pictures of the validation data": _in_validation(findings["in_validation"], sources),
        },
    )


def summary_of(findings: dict[str, Any]) -> list[str]:
    """What was found, a sentence in each line."""
    captions, pictures = findings["captions"], findings["pictures"]
    lines = [f"{findings['readable']} of {findings['examples']} examples can be used."]
    for reason, count in findings["unreadable"]["by_reason"].items():
        lines.append(f"{_counted(count)} cannot be used: {reason}.")
    if findings["lost"]:
        lines.append(f"{len(findings['lost'])} parts of the files are damaged.")
    lines.append(
        f"Of {_counted(captions['cut']['count'])} the caption has more than "
        f"{captions['context_length']} tokens and is cut."
    )
    repeated = captions["repeated"]
    lines.append(
        f"{repeated['examples']} examples share {repeated['captions']} captions with others."
    )
    lines.append(f"{pictures['flat']['count']} pictures show one colour alone, or shades of it.")
    for kind, copies in findings["copies"].items():
        differing = copies["with_another_caption"]
        other = f", {differing} of them with another caption" if differing else ""
        lines.append(f"{_counted(copies['count'])}: {KINDS[kind]} an earlier picture{other}.")
    found = findings["in_validation"]
    for kind, count in found["by_kind"].items():
        lines.append(f"{_counted(count)}: {KINDS[kind]} a picture of the validation data.")
    if found["sets"] and not found["count"]:
        lines.append("No picture of the validation data was found in the data.")
    return lines


def _counted(count):
    return f"{count} example{'' if count == 1 else 's'}"


def _summary(findings):
    out = left_out(findings)
    stay = findings["examples"] - sum(map(len, out.values()))
    rows = [
        [f"examples that {_REASONS[reason]}", Cell(str(len(numbers)), len(numbers))]
        for reason, numbers in out.items()
    ]
    rows.append(["examples that stay", Cell(str(stay), stay)])
    return join(
        element("ul", *(element("li", line) for line in summary_of(findings))),
        table("What --clean leaves out, each example once", ["", "examples"], rows),
    )


def _unreadable(findings):
    found = findings["unreadable"]
    counts = [[why, Cell(str(count), count)] for why, count in found["by_reason"].items()]
    rows = [[_name(one), one["reason"], _short(one["detail"])] for one in found["examples"]]
    lost = [[_short(one["name"]), one["reason"], _short(one["detail"])] for one in findings["lost"]]
    if not rows and not lost:
        return element("p", "Everything can be read.")
    return join(
        table("Examples that cannot be used, by reason", ["reason", "examples"], counts),
        _table("Each example that cannot be used", ["example", "reason", "detail"], rows),
        _table("Damaged parts of the files", ["file", "reason", "detail"], lost) if lost else "",
    )


def _table(caption, columns, rows):
    """A table that opens by a click, of the first rows where there are many."""
    if len(rows) > _LISTED:
        caption = f"{caption} (the first {_LISTED} of {len(rows)}; inspect.json has all)"
    return folded(caption, table(caption, columns, rows[:_LISTED]))


def _pictures(found, source):
    if found["bytes"] is None:
        return None
    shapes = [
        [f"{one['width']} × {one['height']}", Cell(str(one["examples"]), one["examples"])]
        for one in found["shapes"]
    ]
    smallest = [
        join(_name(one), element("div", f"{one['width']} × {one['height']}"))
        for one in found["smallest"][:_SHOWN]
    ]
    flat = found["flat"]
    return join(
        _spreads(
            "Sizes of the pictures",
            {
                "bytes of the file": found["bytes"],
                "width in pixels": found["width"],
                "height in pixels": found["height"],
                "shorter side in pixels": found["shorter_side"],
            },
        ),
        _bars("Shorter sides of the pictures, in pixels", found["shorter_side"]),
        _table(
            f"The commonest of {found['different_shapes']} shapes", ["shape", "examples"], shapes
        ),
        element("h3", "The smallest pictures"),
        _row(source, found["smallest"], smallest),
        element("h3", f"Pictures that show next to nothing: {flat['count']}"),
        _row(source, flat["examples"], [_name(one) for one in flat["examples"][:_SHOWN]]),
    )


def _spreads(caption, spreads):
    names = [key for key in next(iter(spreads.values())) if key != "histogram"]
    rows = [
        [what, *(Cell(f"{spread[name]:,.{name == 'mean':d}f}", spread[name]) for name in names)]
        for what, spread in spreads.items()
    ]
    return table(caption, ["", *names], rows)


def _bars(caption, spread):
    """A histogram."""
    edges, counts = spread["histogram"]["edges"], spread["histogram"]["counts"]
    width, height, most = 600 / len(counts), 100, max(counts)
    bars = [
        element(
            "rect",
            element("title", f"{low} to {high - 1}: {count}"),
            x=f"{place * width:.2f}",
            y=f"{height * (1 - count / most):.2f}",
            width=f"{max(width - 1, 1):.2f}",
            height=f"{height * count / most:.2f}",
        )
        for place, (low, high, count) in enumerate(zip(edges, edges[1:], counts, strict=False))
    ]
    svg = element(
        "svg",
        *bars,
        viewBox=f"0 0 600 {height}",
        preserveAspectRatio="none",
        role="img",
        aria_label=caption,
        class_="bars",
    )
    ends = f"{caption}, from {edges[0]:,} on the left to {edges[-1] - 1:,} on the right"
    return element("figure", svg, element("figcaption", ends))


def _captions(found, source):
    if found["tokens"] is None:
        return None
    repeated, cut = found["repeated"], found["cut"]
    rows = [
        [_short(one["caption"]), Cell(str(one["count"]), one["count"])] for one in repeated["most"]
    ]
    told_of = [
        element("p", element("q", _short(one["caption"])), f" – {one['count']} examples")
        for one in repeated["most"][: _SHOWN // 2]
    ]
    groups = [one["examples"][:_ACROSS] for one in repeated["most"][: _SHOWN // 2]]
    longest = [[_name(one), Cell(str(one["tokens"]), one["tokens"])] for one in cut["examples"]]
    return join(
        _spreads("Lengths of the captions, with start and end", {"tokens": found["tokens"]}),
        _bars("Tokens of the captions", found["tokens"]),
        _table("Captions that are cut, the longest first", ["example", "tokens"], longest)
        if longest
        else element("p", "No caption is cut."),
        _table("Repeated captions, the commonest first", ["caption", "examples"], rows)
        if rows
        else element("p", "No caption stands there twice."),
        _gallery(
            join(head, _row(source, group, [_name(one) for one in group]))
            for head, group in zip(told_of, groups, strict=True)
        ),
    )


def _copies(found, source):
    content = []
    for kind, copies in found.items():
        title = f"{_TITLES[kind]}: {_counted(copies['count'])}"
        content.append(element("h3", title))
        if not copies["count"]:
            continue
        shown = []
        for group in copies["groups"][:_SHOWN]:
            members = [group["original"], *group["copies"]][:_ACROSS]
            texts = [
                join(element("strong", "first: "), _name(members[0])),
                *map(_name, members[1:]),
            ]
            shown.append(_row(source, members, texts))
        rows = [
            [
                _name(group["original"]),
                join(*(element("div", _name(one)) for one in group["copies"])),
            ]
            for group in copies["groups"]
        ]
        content += [_gallery(shown), _table("Each group", ["the first", "its copies"], rows)]
    return join(*content)


def _in_validation(found, sources):
    if not found["sets"]:
        return None
    places = {one["data"]: place for place, one in enumerate(found["sets"], 1)}
    shown, rows = [], []
    for one in found["examples"]:
        of, kind = one["of"], _TITLES[one["kind"]]
        rows.append([_name(one), kind, _name(of), _short(of["data"])])
        if len(shown) < _SHOWN:
            own = _item(sources[0], one, join("training: ", _name(one)))
            other = _item(sources[places[of["data"]]], of, join("validation: ", _name(of)))
            told_of = element("p", kind)
            shown.append(join(told_of, element("ol", own, other, class_="answers loose")))
    if not rows:
        return element("p", "None was found.")
    return join(
        _gallery(shown),
        _table("Each example", ["example", "kind", "validation example", "validation data"], rows),
    )


def _gallery(content: Iterable[Html]) -> Html:
    blocks = [element("div", one, class_="query") for one in content]
    return element("div", *blocks, class_="gallery") if blocks else join()


def _row(source, examples, texts):
    """Pictures beside one another, as many as there are texts below them."""
    if not texts:
        return join()
    pairs = zip(examples, texts, strict=False)
    return element("ol", *(_item(source, one, text) for one, text in pairs), class_="answers loose")


def _item(source, example, text):
    return element("li", _picture(source, example), element("span", text))


def _picture(source: Source, example: dict[str, Any]) -> Html:
    """A small picture of an example; words where it cannot be read any more."""
    from cyclip_jax.data.decoding import pixels_of  # TensorFlow: slow to import

    try:
        pixels = pixels_of(read_told(source.read, example["example"]).image, MAX_PIXELS)
    except Unreadable as error:
        return element("span", error.reason)
    encoded = base64.b64encode(small_jpeg(pixels, _SIDE, quality=80)).decode()
    return image(encoded, f"The picture of {_short(example['name'])}")


def _name(example):
    """An example's name and number; its direction cannot turn that of the page."""
    return join(element("bdi", _short(example["name"])), f" ({example['example']})")


def _short(text):
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} … {text[-_LONGEST // 2 :]}"
