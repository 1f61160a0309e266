"""The card of a run: what was trained, on what, for how long, with which command."""

import json
from collections.abc import Sequence

from cyclip_jax.files import parse_json
from cyclip_jax.page.markup import Html, element, facts, join
from cyclip_jax.report.numbers import summary_sentences
from cyclip_jax.report.parts import Drawings
from cyclip_jax.report.runs import Group, Run, is_of_head, objective, trained_data
from cyclip_jax.runtime.progress import duration_in_words
from cyclip_jax.workdir.layout import HEARTBEAT

_COLUMNS = 8  # of a wide comparison, more are no help


def card(groups: Sequence[Group], _: Drawings | None) -> Html:
    """Sentences on each group, and a table of facts; each group is told by its first run."""
    sentences = [element("p", *summary_sentences(group)) for group in groups]
    shown = groups[:_COLUMNS]
    rows = []
    for name, fact in _FACTS.items():
        cells = [fact(group) for group in shown]
        if any(cells):
            rows.append([name, *cells])
    if not rows:
        return join(*sentences)
    caption = "How it was made"
    if any(len(group.runs) > 1 for group in shown):
        caption += "; of several seeds what belongs to one run is told of the first"
    if len(groups) > len(shown):
        caption += f"; of {len(groups)} the first {len(shown)}"
    told = facts(caption, [group.name for group in shown], rows)
    if len(shown) > 2:
        return join(element("div", *sentences, class_="grid"), told)
    return element("div", element("div", *sentences), told, class_="beside")


def _of_config(fact):
    """A fact that is read from the config of a group's first run, where that is known."""

    def told(group):
        config = group.runs[0].config
        return "" if config is None else fact(config)

    return told


def _of_run(fact):
    return lambda group: fact(group.runs[0])


def _model(config):
    model = config["model"]
    size = model.get("image_size")
    return model["name"] + (f", pictures of {size} × {size}" if size else "")


def _objective(config):
    if is_of_head(config):
        return objective(config)
    loss = config["loss"]
    weights = f"λ1 = {loss['inmodal_weight']:g}, λ2 = {loss['crossmodal_weight']:g}"
    return f"{objective(config)}: {weights}"


def _data(config):
    return ", ".join(trained_data(config))


def _length(group):
    run = group.runs[0]
    if run.config is None or not run.training:
        return ""
    last = run.training[-1]
    steps = f"{last['step']} steps of {run.config['batch_size']}"
    epoch = last.get("epoch")
    return steps + (f", {epoch:.0f} passes over the data" if epoch else "")


def _seeds(group):
    seeds = [str(run.seed) for run in group.runs if run.seed is not None]
    return ", ".join(seeds)


def _time(run: Run) -> str:
    """The time of all processes that worked on a run, and what it went into."""
    seconds = _seconds(run)
    total = sum(seconds.values())
    if not total:
        return ""
    parts = sorted(seconds.items(), key=lambda part: -part[1])
    told = [f"{share / total:.0%} {phase}" for phase, share in parts[:3] if share / total >= 0.01]
    return f"{duration_in_words(total)} ({', '.join(told)})"


def _seconds(run):
    try:
        told = parse_json((run.path / HEARTBEAT).read_text())["seconds"]
        return {phase: float(seconds) for phase, seconds in told.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        last = run.training[-1] if run.training else {}
        ending = "_seconds"
        return {
            name.removesuffix(ending): seconds
            for name, seconds in last.items()
            if name.endswith(ending) and seconds
        }


def _speed(run):
    speeds = [line["images_per_second"] for line in run.training if line.get("images_per_second")]
    return f"{sorted(speeds)[len(speeds) // 2]:.0f} images/s" if speeds else ""


def _machine(run: Run) -> str:
    told = run.machine
    if not {"devices", "device_kind"} <= told.keys():
        return ""
    where = f" in {told['processes']} processes" if told.get("processes", 1) != 1 else ""
    cores = f", {told['cpu_cores']} CPU cores" if told.get("cpu_cores") else ""
    return f"{told['devices']} × {told['device_kind']}{where}{cores}, {told.get('system', '')}"


def _code(run: Run) -> str:
    versions = [
        f"{name} {run.versions[name]}" for name in ("jax", "python") if name in run.versions
    ]
    commit = (
        [f"commit {run.commit[:12]}{'-dirty' * run.commit.endswith('-dirty')}"]
        if run.commit
        else []
    )
    return ", ".join([*commit, *versions])


def _command(run: Run):
    if not run.command:
        return ""
    words = (element("span", word, class_="word") for word in run.command.split(" "))
    return element("code", Html(" ".join(words)))


def _changes(run: Run) -> str:
    if run.config is None:
        return ""
    told = [
        f"from step {one['step']} {name} {_written(before)} → {_written(after)}"
        for one in run.changes
        for name, (before, after) in one["settings"].items()
    ]
    return "; ".join(told) or "nothing"


def _written(value):
    return value if isinstance(value, str) else json.dumps(value)


_FACTS = {
    "model": _of_config(_model),
    "objective": _of_config(_objective),
    "data": _of_config(_data),
    "length": _length,
    "seeds": _seeds,
    "time": _of_run(_time),
    "speed": _of_run(_speed),
    "machine": _of_run(_machine),
    "code": _of_run(_code),
    "command": _of_run(_command),
    "changed on the way": _of_run(_changes),
}
