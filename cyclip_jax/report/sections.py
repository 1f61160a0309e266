"""The parts of the page, in their order: pictures, a card, few numbers; then the rest, folded.

Each is a function of the groups of runs and of what draws figures. It gives the HTML of its
section, or None without content. Sections of pictures are in pictures.py, of numbers in numbers.py,
of charts in charts.py, and of what evaluators write beside their numbers in details.py.
"""

from collections.abc import Callable, Sequence

from cyclip_jax.page.markup import Html, folded, join, table
from cyclip_jax.report.card import card
from cyclip_jax.report.charts import at_k, comparison, fine_tuning, robustness, training
from cyclip_jax.report.details import (
    agreements,
    categories,
    classes,
    planes,
    similarities,
)
from cyclip_jax.report.differences import differences, item_by_item
from cyclip_jax.report.numbers import all_headlines, headlines, meanings
from cyclip_jax.report.parts import Drawings, run_names
from cyclip_jax.report.pictures import pictures
from cyclip_jax.report.runs import Group, differing
from cyclip_jax.runtime.sections import flat


def settings(groups: Sequence[Group], _: Drawings | None) -> Html | None:
    """Where the configs differ, and one of each group in full."""
    runs = [run for group in groups for run in group.runs if run.config is not None]
    configs = [flat(run.config or {}) for run in runs]
    if not runs:
        return None
    content = []
    names = differing(configs)
    if names:
        rows = [[n, *(_written(c[n]) if n in c else "" for c in configs)] for n in names]
        caption = "Settings that are not the same in all runs"
        content.append(table(caption, ["setting", *run_names(groups, of=runs)], rows))
    for group in groups:
        run = group.runs[0]
        if run.config is None:
            continue
        rows = [[name, _written(value)] for name, value in flat(run.config).items()]
        rows += [[f"version of {name}", str(version)] for name, version in run.versions.items()]
        title = f"All settings of {group.name} ({run.name})"
        content.append(folded(title, table(title, ["setting", "value"], rows)))
    return join(*content)


def changes(groups: Sequence[Group], _: Drawings | None) -> Html | None:
    """The settings with which a run went on otherwise than it had begun."""
    rows = [
        [run.name, str(one["step"]), name, str(before), str(after)]
        for group in groups
        for run in group.runs
        for one in run.changes
        for name, (before, after) in one["settings"].items()
    ]
    caption = "Settings that were changed when a run was continued, from the named step on"
    return table(caption, ["run", "step", "setting", "before", "after"], rows) if rows else None


def _written(value):
    return "" if value is None else str(value)


SECTIONS: dict[str, Callable[[Sequence[Group], Drawings], Html | None]] = {
    "Pictures": pictures,
    "Card": card,
    "Headline numbers": headlines,
    "Differences, item by item": item_by_item,
    "Differences, seed by seed": differences,
    "Image space beside text space": similarities,
    "Images and texts on one plane": planes,
    "Before and after fine-tuning": fine_tuning,
    "Training": training,
    "Metrics and their intervals": comparison,
    "All numbers": all_headlines,
    "What the numbers mean": meanings,
    "Recall, accuracy and consistency over k": at_k,
    "Zero-shot beside nearest neighbours": agreements,
    "Robustness to shifts": robustness,
    "Categories": categories,
    "Classes": classes,
    "Changes on the way": changes,
    "Configuration": settings,
}
DRAWN = (similarities, planes, fine_tuning, training, comparison, at_k)
DRAWN += (agreements, robustness, categories, classes)  # all sections with figures
_FIRST_FOLDED = "Training"
FOLDED = list(SECTIONS)[list(SECTIONS).index(_FIRST_FOLDED) :]
