import base64
import html
import html.parser
import io
import json
import os
import re
import subprocess
import sys
import types
import xml.etree.ElementTree

import numpy as np
import pytest
from PIL import Image

from cyclip_jax import train
from cyclip_jax.errors import UserError
from cyclip_jax.evals.flat import metrics_of
from cyclip_jax.evals.metric import Metric, Unit
from cyclip_jax.evals.output import read_abouts
from cyclip_jax.page.markup import Cell, element, join, table
from cyclip_jax.report import __main__ as command_line
from cyclip_jax.report import charts, figures, matrices, parts, sections, style
from cyclip_jax.report.card import card
from cyclip_jax.report.numbers import alarms, all_headlines
from cyclip_jax.report.parts import Drawings
from cyclip_jax.report.runs import group_runs, objective, read_run, student_interval
from cyclip_jax.report.write import write_report

# How the captions of tables of headlines begin.
FEW, HEADLINES = "In brackets 95 % intervals", "The headlines of all evaluations"
EVIL = '<script>alert("1")</script> & $x_{'
CONFIG = {
    "batch_size": 8,
    "seed": 0,
    "data": {"source": "csv", "train": "{workdir}/train.csv"},
    "loss": {"inmodal_weight": 0.0, "crossmodal_weight": 0.0},
    "model": {"name": "RN-tiny"},
    "optimizer": {"learning_rate": 0.1},
}
EVALUATED = {
    "step": 4,
    "val/loss": 2.5,
    "val/image_to_text_recall@1": 0.25,
    "val/image_to_text_recall@1_ci_low": 0.125,
    "val/image_to_text_recall@1_ci_high": 0.5,
    "val/chance_image_to_text_recall@1": 0.01,
    "val/alignment": 0.5,
    "val/pairs": 100,
}


def write_run(directory, *, seed=0, weights=(0.0, 0.0), recall=0.25, **settings):
    """A workdir with three logged steps and an evaluation."""
    directory.mkdir(parents=True)
    loss = dict(zip(("inmodal_weight", "crossmodal_weight"), weights, strict=True))
    config = CONFIG | settings | {"seed": seed, "loss": loss}
    content = {"config": config, "versions": {"jax": "0.1"}, "git_commit": None}
    (directory / "config.json").write_text(json.dumps(content))
    lines = [{"step": 0, "compile_seconds": 1.0}]
    for step in (2, 3, 4):
        terms = {"loss": 5.0 / step, "contrastive_loss": 4.0 / step, "learning_rate": 0.1}
        lines.append({"step": step, **terms, "images_per_second": 100.0, "examples/part": 3})
    lines.append(EVALUATED | {"val/image_to_text_recall@1": recall})
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return directory


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write_arrays(path, **arrays):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **arrays)


def write_details(directory):
    """What evaluators write beside their numbers, of an evaluation with an unkind name in it."""
    evals = directory / "evals"
    rng = np.random.default_rng(0)
    numbers = {
        f"concepts/{name}@{k}": 0.1 * place
        for name in ("consistency", "knn_top1")
        for place, k in enumerate((1, 3, 5, 10), 1)
    }
    write_json(evals / "step_4.json", {"step": 4, **numbers, "concepts/top1": float("nan")})
    picture = io.BytesIO()
    Image.new("RGB", (4, 4)).save(picture, "JPEG")
    jpeg = base64.b64encode(picture.getvalue()).decode()
    answers = [{"jpeg": jpeg, "is_partner": own} for own in (False, True)]
    query = {"caption": EVIL, "rank": 2, "of": 7, "images": answers}
    write_json(evals / "val" / "gallery.json", [query])
    names = [EVIL, "b", "c"]
    concepts = evals / "concepts"
    write_arrays(concepts / "confusion.npz", counts=np.diag([1, 2, 0]), classes=names)
    rows = [{"class": name, "images": 9, "top1": 0.5, "most_confused_with": None} for name in names]
    write_json(concepts / "classes.json", rows)
    cosines = {"image_image": rng.random((5, 5)), "text_text": rng.random((5, 5))}
    groups = np.array([EVIL, EVIL, "b", "b", ""])
    write_arrays(
        concepts / "similarities.npz", names=np.array(list("abcde")), groups=groups, **cosines
    )
    shares = ("both_right", "only_zeroshot", "only_knn", "both_wrong")
    write_json(concepts / "agreement.json", {"k": [1, 3]} | {name: [0.25, 0.25] for name in shares})
    points = {"image_xy": rng.random((5, 2)), "text_xy": rng.random((5, 2))}
    write_arrays(concepts / "map.npz", names=np.array(list("abcde")), groups=groups, **points)
    line = {"slope": 1.0, "intercept": -0.5, "scale": "logit"}
    shift = {"name": "sketch", "accuracy": 0.3, "low": 0.2, "high": 0.4, "effective": 0.1}
    models = [{"model": "m", "reference": 0.5, "sketch": 0.35}]
    write_json(
        concepts / "robustness.json",
        {"reference": 0.4, "shifts": [shift | {"line": line}], "models": models},
    )
    category = {"category": EVIL, "examples": 3, "accuracy": 0.5, "low": 0.2, "high": 0.8}
    write_json(concepts / "categories.json", [category])


class Page(html.parser.HTMLParser):
    """What a test asks of a page."""

    def __init__(self, text):
        super().__init__()
        self.source = text
        self.elements = []  # (tag, attributes)
        self.texts = {}  # {tag: [text of each element]}
        self.tables = {}  # {caption: [rows of (tag, attributes, text)]}
        self._open = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "wbr"):
            self._open.append(tag)
            self.texts.setdefault(tag, []).append("")
        if tag == "table":
            self._rows = []
        if tag == "tr":
            self._rows.append([])
        if tag in ("td", "th"):
            self._rows[-1].append([tag, dict(attrs), ""])

    def handle_endtag(self, tag):
        if tag == "table":
            self.tables[self.texts["caption"][-1]] = self._rows
        assert self._open.pop() == tag

    def handle_data(self, data):
        for tag in set(self._open):
            self.texts[tag][-1] += data
        if {"td", "th"} & set(self._open):
            self._rows[-1][-1][2] += data

    def rows(self, start):
        """{head: [cells' texts]} of the table whose caption starts so."""
        rows = next(rows for caption, rows in self.tables.items() if caption.startswith(start))
        return {row[0][2]: [cell[2] for cell in row[1:]] for row in rows}


def shown_text(page):
    """The text of a page as it is read."""
    return " ".join("".join(page.texts["main"]).split())


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    """Two seeds of CLIP and one of CyCLIP, whose evaluations wrote details."""
    folder = tmp_path_factory.mktemp("runs")
    cyclip = write_run(folder / "cyclip", weights=(0.25, 0.25), recall=0.75)
    write_details(cyclip)
    return [
        write_run(folder / "clip_0", recall=0.2),
        write_run(folder / "clip_1", seed=1, recall=0.3),
        cyclip,
    ]


@pytest.fixture(scope="module")
def report(directories):
    return write_report(directories, output=directories[0].parent / "all.html")


@pytest.fixture(scope="module")
def page(report):
    return Page(report.read_text())


def test_every_kind_of_content_has_its_section(page):
    assert page.texts["h2"] == [
        "Pictures",
        "Card",
        "Headline numbers",
        "Image space beside text space",
        "Images and texts on one plane",
        "Training",
        "Metrics and their intervals",
        "All numbers",
        "What the numbers mean",
        "Recall, accuracy and consistency over k",
        "Zero-shot beside nearest neighbours",
        "Robustness to shifts",
        "Categories",
        "Classes",
        "Configuration",
    ]
    assert [attrs["id"] for _, attrs in page.elements if attrs.get("class") == "folded"] == [
        re.sub(r"\W+", "-", name.lower()) for name in page.texts["h2"][5:]
    ]
    assert page.texts["h1"] == ["CLIP · CyCLIP"]


def test_a_run_in_a_folder_with_brackets_shows_what_evaluate_wrote(tmp_path):
    run = write_run(tmp_path / "lr=[1e-3]")
    write_json(run / "evals" / "step_9.json", {"step": 9, "new/pairs": 7})
    about = {"pairs": {"unit": "count", "better": None, "is_headline": True}}
    write_json(run / "evals" / "new" / "metrics.json", about)
    assert read_run(run).steps["new"] == 9
    assert read_abouts(run / "evals")["new"]["pairs"].is_headline


def test_a_section_without_content_is_left_out(tmp_path):
    written = write_report([write_run(tmp_path / "run")])
    assert written == tmp_path / "run" / "report.html"
    assert Page(written.read_text()).texts["h2"] == [
        "Card",
        "Headline numbers",
        "Training",
        "Metrics and their intervals",
        "All numbers",
        "What the numbers mean",
        "Configuration",
    ]
    written = {path.name for path in (tmp_path / "run" / "figures").iterdir()}
    assert {"loss.svg", "loss.png", "val_shares.svg"} <= written


def test_a_run_that_learned_nothing_has_an_alarm_that_is_seen(tmp_path):
    good, bad = write_run(tmp_path / "good"), write_run(tmp_path / "bad", seed=1)
    losses = {"loss": 4.85, "contrastive_loss": 4.85}
    lines = [losses | {"step": step, "collapsed": step > 99} for step in (50, 100, 150, 200)]
    lines[-1]["collapsed"] = False
    (bad / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert alarms(group_runs([read_run(good)])) is None
    text = str(alarms(group_runs([read_run(good), read_run(bad)])))
    assert text.count('<p class="alarm"><strong>Alarm: ') == 1
    assert "Alarm: bad had learned nothing at step 100. " in text
    assert "at 2 of the 3 logged steps from there on, the last time at step 150. Try" in text


def test_groups_have_means_over_seeds_and_students_interval(page):
    rows = page.rows(HEADLINES)
    assert rows["metric"] == ["CLIP, 2 seeds", "CyCLIP", "chance"]
    # Mean of 0.2 and 0.3; 12.7062 times 0.0707107 over the root of 2 is 0.63531 on either side.
    assert rows["image_to_text_recall@1 ↑ val"] == [
        "25.0% [-38.5, 88.5]",
        "75.0% [12.5, 50.0]",
        "1.00%",
    ]
    assert rows["alignment ↑ val"] == ["0.5000 [0.5, 0.5]", "0.5000", ""]
    assert "pairs val" not in rows


def test_a_seed_that_is_not_as_far_is_in_no_mean(tmp_path):
    first = write_run(tmp_path / "first", recall=0.2)
    second = write_run(tmp_path / "second", seed=1, recall=0.4)
    third = write_run(tmp_path / "third", seed=2, recall=0.9)
    lines = (third / "metrics.jsonl").read_text().replace('"step": 4', '"step": 3')
    (third / "metrics.jsonl").write_text(lines)
    (group,) = group_runs([read_run(path) for path in (first, second, third)])
    assert group.metric("val", "image_to_text_recall@1").value == pytest.approx(0.3)
    text = str(sections.headlines([group], None))
    assert "third is not in the means on val: its evaluation is of step 3" in text


def test_a_seed_that_has_diverged_is_not_hidden_in_a_mean(tmp_path):
    runs = [write_run(tmp_path / str(seed), seed=seed, recall=0.2) for seed in range(2)]
    lines = (runs[1] / "metrics.jsonl").read_text()
    name = '"val/image_to_text_recall@1": '
    (runs[1] / "metrics.jsonl").write_text(lines.replace(f"{name}0.2", f"{name}null"))
    (group,) = group_runs([read_run(path) for path in runs])
    assert np.isnan(group.metric("val", "image_to_text_recall@1").value)


def test_differences_from_clip_are_taken_seed_by_seed(tmp_path):
    clip = [write_run(tmp_path / f"a{s}", seed=s, recall=r) for s, r in enumerate((0.1, 0.3, 0.5))]
    ours = [
        write_run(tmp_path / f"b{s}", seed=s, recall=r, weights=(0.25, 0.25))
        for s, r in enumerate((0.2, 0.41, 0.59))
    ]
    groups = group_runs([read_run(path) for path in clip + ours])
    rows = Page(str(sections.differences(groups, None))).rows("Means over seeds")
    assert rows["metric"] == ["CyCLIP"]
    # 10, 11 and 9 points: s = 1 and t = 4.3027, so 2.4841 on either side, far less than unpaired.
    assert rows["image_to_text_recall@1 ↑ val"] == ["+10.0 [+7.5, +12.5]"]
    assert sections.differences(groups[:1], None) is None


SENTENCES = {"train": "/data/nli.csv", "weight": 1.0, "only_steps": 0, "until_step": None}
SENTENCES["batch_size"] = 64


@pytest.mark.parametrize(
    "section, name, told",
    [
        ({}, "CyCLIP with nli.csv", "on nli.csv, 64 in a step, in 4 steps"),
        ({"only_steps": 3}, "CyCLIP after and with nli.csv", "alone in the first 3 steps, 64 in a"),
        (
            {"only_steps": 3, "until_step": 3},
            "CyCLIP after nli.csv",
            "alone in the first 3 steps, up to step 3, 64 in a step",
        ),
        ({"weight": 0}, "CyCLIP", "on train.csv in 4 steps"),
        ({"train": None}, "CyCLIP", "on train.csv in 4 steps"),
    ],
)
def test_sentences_are_told_of_and_name_a_group(tmp_path, section, name, told):
    run = write_run(tmp_path / "run", weights=(0.25, 0.25), sentences=SENTENCES | section)
    (group,) = group_runs([read_run(run)])
    assert group.name == name
    assert told in str(card([group], None))


def test_without_clip_differences_are_taken_from_cyclip(tmp_path):
    settings = {"weights": (0.25, 0.25)}
    plain = [write_run(tmp_path / f"a{s}", seed=s, recall=0.1, **settings) for s in (0, 1)]
    ours = [
        write_run(tmp_path / f"b{s}", seed=s, recall=0.2, sentences=SENTENCES, **settings)
        for s in (0, 1)
    ]
    groups = group_runs([read_run(path) for path in plain + ours])
    page = Page(str(sections.differences(groups, None)))
    assert "less CyCLIP's with the same seed" in html.unescape(page.source)
    assert page.rows("Means over seeds")["metric"] == ["CyCLIP with nli.csv"]


def test_a_run_on_sentences_alone_has_a_page(tmp_path):
    run = write_run(tmp_path / "run", sentences=SENTENCES | {"only_steps": 4})
    lines = [{"step": 4, "loss": 2.0, "sentence_loss": 2.0, "sentences_per_second": 9.0}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = Page(write_report([run]).read_text())
    assert "its last sentences' loss was 2.000" in html.unescape(page.source)


def test_the_differences_of_similarities_share_one_scale(directories, tmp_path, monkeypatch):
    scales = []
    monkeypatch.setattr(
        "cyclip_jax.report.matrices.similarities",
        lambda *arguments, **_: scales.append(arguments[-1]),
    )
    for weight, size in ((0, 0.5), (0.25, 0.1)):
        run = write_run(tmp_path / str(weight), weights=(weight, weight))
        cosines = {"image_image": np.full((3, 3), size), "text_text": np.zeros((3, 3))}
        path = run / "evals" / "val" / "similarities.npz"
        write_arrays(path, groups=np.array(list("abc")), names=np.array(list("abc")), **cosines)
    groups = group_runs([read_run(tmp_path / name) for name in ("0", "0.25")])
    drawings = types.SimpleNamespace(add=lambda *arguments, main, wide: "")
    sections.similarities(groups, drawings)
    assert scales == [0.5] * 4  # each wide and narrow


def test_students_interval_by_hand():
    # s = 0.1 and t = 4.30265273 for two degrees of freedom: 0.430265273 over the root of 3.
    assert student_interval([0.2, 0.3, 0.4]) == pytest.approx((0.05158623, 0.54841377), abs=1e-8)
    assert student_interval([0.2]) is None


def test_a_number_that_is_not_finite_says_so(page):
    assert page.rows("All numbers of")["top1 concepts"] == ["", "", "not finite"]


def test_strings_from_data_are_text_and_not_markup(page):
    assert len(page.texts["script"]) == 1
    assert EVIL not in page.source
    assert page.texts["q"] == [EVIL]
    assert EVIL in page.rows("concepts: the 3 classes")
    assert EVIL in page.rows("concepts: each category")
    assert join("<", element("b", '"', title='"<')) == '&lt;<b title="&quot;&lt;">&quot;</b>'


def test_the_page_needs_nothing_from_elsewhere(page):
    addresses = [
        value
        for _, attributes in page.elements
        for name, value in attributes.items()
        if name in ("src", "href", "srcset", "action", "xlink:href")
    ]
    assert len(addresses) > 20
    assert all(address.startswith(("#", "data:image/")) for address in addresses)
    assert not re.search(r"https?:|@import|url\((?!#)", page.source)


def test_ids_are_unique_and_every_reference_has_its_target(page):
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    named = [attributes.get("aria-labelledby") for _, attributes in page.elements]
    references = re.findall(r'(?:url\(#|href="#)([^)"]+)', page.source) + [n for n in named if n]
    assert len(references) > 40
    assert set(references) <= set(ids)


def test_tables_are_sorted_by_buttons_of_their_heads(page):
    sortable = {name: rows for name, rows in page.tables.items() if not name.startswith("How it")}
    assert len(sortable) == 8 == len(page.tables) - 1
    for head, *body in sortable.values():
        assert all(tag == "th" and attrs["aria-sort"] == "none" for tag, attrs, _ in head)
        assert all(row[0][:2] == ["th", row[0][1] | {"scope": "row"}] for row in body)
    heads = sum(len(rows[0]) for rows in sortable.values())
    assert len(page.texts["button"]) == heads
    rows = Page(table("t", ["a", "b"], [["x", Cell("29.1%", 0.291)], ["y", Cell("", None)]])).tables
    assert [row[1][1]["data-sort"] for row in rows["t"][1:]] == ["0.291", ""]


def test_figures_have_captions_and_are_drawn_in_the_pages_colours(page):
    drawings = re.split("<figure[ >]", page.source)[1:]
    assert len(drawings) == len(page.texts["figcaption"]) >= 14
    for drawing in drawings:
        svg = drawing[: drawing.index("</svg>")]
        assert "var(--ink)" in svg and 'role="img"' in svg
        assert not any(colour in svg for colour in (*style.SERIES, style.INK, style.PAPER))
    css = page.texts["style"][0]
    for scheme in css.split("prefers-color-scheme: dark")[0], css.split("dark)")[1]:
        assert all(f"--series-{number}:" in scheme for number in range(len(style.SERIES)))


def test_pictures_have_words_for_what_their_frame_says(page):
    pictures = [attributes for tag, attributes in page.elements if tag == "img"]
    assert [picture["alt"] for picture in pictures] == [
        "Answer 1: another picture",
        "Answer 2: a picture of this caption",
    ]
    assert f"{EVIL} ✗ wrong – its own picture comes 2nd of 7" in shown_text(page)
    assert "2 ✓ own" in page.texts["ol"][0]


def test_every_figure_is_written_as_png_and_svg(report, page):
    folder = report.parent / "all_figures"
    names = {path.stem for path in folder.iterdir()}
    wide = {name for name in names if name.endswith("_wide")}
    assert len(names - wide) == len(page.texts["figure"]) and len(wide) == 3
    for name in names:
        root = xml.etree.ElementTree.parse(folder / f"{name}.svg").getroot()
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        inches = style.WIDE if name in wide else 4.5
        assert Image.open(folder / f"{name}.png").width == pytest.approx(inches * 160, abs=1)


def test_the_page_holds_what_is_told_of_its_figures(page):
    charts = [attrs for _, attrs in page.elements if "chart" in (attrs.get("class") or "")]
    spots = [json.loads(chart["data-spots"]) for chart in charts if "data-spots" in chart]
    grids = [json.loads(chart["data-grids"]) for chart in charts if "data-grids" in chart]
    assert len(spots) > 8 and len(grids) == 4  # two figures, each wide and narrow
    assert all(len(spot) == 3 for its in spots for spot in its)
    assert any(EVIL in name for grid in grids for one in grid for name in one["rows"])


def test_the_same_figure_gives_the_same_file():
    pairs = {"counts": np.eye(3), "classes": ["a", "b", "c"]}
    with style.style():
        first, second = (style.drawn(matrices.confusion(**pairs)) for _ in range(2))
    assert first == second


@pytest.mark.parametrize(
    ("weights", "name"),
    [((0, 0), "CLIP"), ((0.25, 0.25), "CyCLIP"), ((0, 0.5), "C-CyCLIP"), ((0.5, 0), "I-CyCLIP")],
)
def test_groups_are_named_by_the_objective(weights, name):
    inmodal, crossmodal = weights
    assert objective({"loss": {"inmodal_weight": inmodal, "crossmodal_weight": crossmodal}}) == name


def groups_of(*directories):
    groups = group_runs([read_run(directory) for directory in directories])
    return {group.name: [run.name for run in group.runs] for group in groups}


def test_runs_that_differ_in_the_seed_and_folders_are_one_group(tmp_path):
    data = {"source": "csv", "train": "/elsewhere/train.csv"}
    first = write_run(tmp_path / "a")
    assert groups_of(first, write_run(tmp_path / "b", seed=1, data=data)) == {"CLIP": ["a", "b"]}
    # The same seed on data of the same name cannot be a repeat: the folders tell them apart.
    assert groups_of(first, write_run(tmp_path / "c", data=data)) == {
        "CLIP (a)": ["a"],
        "CLIP (c)": ["c"],
    }


def test_groups_of_one_objective_are_named_by_what_differs(tmp_path):
    large = write_run(tmp_path / "large", batch_size=16)
    assert groups_of(write_run(tmp_path / "small"), large) == {
        "CLIP, batch_size 8": ["small"],
        "CLIP, batch_size 16": ["large"],
    }


def test_groups_of_a_sweep_that_differ_in_much_have_its_own_names(tmp_path):
    arms = {
        "clip_seed0": {},
        "clip_seed1": {"seed": 1},
        "large_batch_seed0": {"batch_size": 16, "micro_batches": 2},
        "long_seed0": {"total_steps": 9, "log_every_steps": 4, "eval_every_steps": 4},
    }
    runs = [write_run(tmp_path / name, **settings) for name, settings in arms.items()]
    assert groups_of(*runs) == {
        "CLIP": ["clip_seed0", "clip_seed1"],
        "CLIP, large batch": ["large_batch_seed0"],
        "CLIP, long": ["long_seed0"],
    }


def recall_in(directory):
    return read_run(directory).evaluations["val"]["image_to_text_recall@1"].value


def test_the_newest_numbers_of_an_evaluation_count(tmp_path):
    directory = write_run(tmp_path / "run", recall=0.25)
    name = "val/image_to_text_recall@1"
    write_json(directory / "evals" / "step_3.json", {"step": 3, name: 0.3, "other/top1": 0.9})
    assert recall_in(directory) == 0.25
    assert read_run(directory).steps == {"val": 4, "other": 3}
    same_step = directory / "evals" / "step_4.json"
    write_json(same_step, {"step": 4, name: 0.4})
    os.utime(same_step, (1, 1))
    assert recall_in(directory) == 0.25
    os.utime(same_step, (2**33, 2**33))
    assert recall_in(directory) == 0.4


def test_the_output_directory_of_an_evaluation_has_a_report_too(tmp_path):
    write_json(tmp_path / "results.json", EVALUATED)
    text = Page(write_report([tmp_path]).read_text())
    assert text.texts["h2"][:2] == ["Card", "Headline numbers"]
    assert "Training" not in text.texts["h2"]


def test_a_run_that_diverged_is_drawn_with_gaps(tmp_path):
    directory = write_run(tmp_path / "run")
    lines = (directory / "metrics.jsonl").read_text().replace('_loss": 1.0', '_loss": null')
    (directory / "metrics.jsonl").write_text(lines)
    assert "its last contrastive loss was not finite" in write_report([directory]).read_text()


@pytest.fixture
def undrawn(monkeypatch):
    """Figures are made but not drawn, which takes most of a report's time."""
    monkeypatch.setattr(parts, "drawn", lambda figure: style.Drawing("<svg></svg>", b"", [], []))


BROKEN = [
    ("metrics.jsonl", "{\n"),
    ("config.json", "{"),
    ("evals/step_4.json", '{"val/top1": "high"}'),
    ("evals/val/gallery.json", '[{"caption": "x"}]'),
    ("evals/val/gallery.json", '[{"caption": "x", "rank": 1, "of": 1, "images": [{}]}]'),
    ("evals/concepts/classes.json", "{}"),
    ("evals/concepts/agreement.json", "[]"),
    ("evals/concepts/robustness.json", '{"reference": 0.4}'),
    ("evals/concepts/map.npz", "PK"),
]


@pytest.mark.parametrize(("name", "content"), BROKEN)
def test_a_broken_file_is_named(tmp_path, undrawn, name, content):
    directory = write_run(tmp_path / "run")
    write_details(directory)
    (directory / name).write_text(content)
    with pytest.raises(UserError, match=re.escape(str(directory / name))):
        write_report([directory])


def test_arrays_of_another_shape_are_named(tmp_path, undrawn):
    directory = write_run(tmp_path / "run")
    write_details(directory)
    path = directory / "evals" / "concepts" / "confusion.npz"
    write_arrays(path, counts=np.eye(3), classes=["a", "b"])
    with pytest.raises(UserError, match=rf"{path} has an array of \(3, 3\)"):
        write_report([directory])


def test_a_directory_without_numbers_is_refused(tmp_path):
    with pytest.raises(UserError, match="nothing to report"):
        write_report([tmp_path])
    with pytest.raises(UserError, match="no directory"):
        write_report([tmp_path / "nowhere"])
    with pytest.raises(UserError, match="named twice"):
        run = write_run(tmp_path / "run")
        write_report([run, run])


def test_a_report_goes_by_what_the_metrics_of_a_run_say(tmp_path, undrawn):
    directory = write_run(tmp_path / "run")
    told = {
        "alignment": {"unit": "share", "better": "more", "is_headline": True},
        "image_to_text_recall@1": {"unit": "number", "better": "less", "is_headline": False},
    }
    write_json(directory / "evals" / "val" / "metrics.json", told)
    page = Page(write_report([directory]).read_text())
    rows = page.rows(HEADLINES)
    assert rows["alignment ↑ val"] == ["50.0%", ""]
    assert not any("image_to_text_recall@1" in name for name in rows)
    every = page.rows("All numbers of")
    assert every["image_to_text_recall@1 val"] == ["0.2500 [0.125, 0.5]"]
    assert every["pairs val"] == ["100"]  # of which nothing is said: by its name


def test_what_the_evaluators_write_is_drawn(tmp_path, undrawn):
    """The reference of shifts with its interval, and categories with Winoground's scores."""
    directory = write_run(tmp_path / "run")
    write_details(directory)
    concepts = directory / "evals" / "concepts"
    content = json.loads((concepts / "robustness.json").read_text())
    content["reference"] = {"accuracy": 0.4, "low": 0.3, "high": 0.5}
    write_json(concepts / "robustness.json", content)
    score = {"group_score": 0.5, "group_score_ci_low": 0.25, "group_score_ci_high": None}
    scores = score | {"text_score": 0.75, "image_score": 0.5}
    write_json(concepts / "categories.json", [{"category": "c", "examples": 4} | scores])
    page = Page(write_report([directory]).read_text())
    assert {"Robustness to shifts", "Categories"} <= set(page.texts["h2"])
    assert page.rows("concepts: each category")["c"] == ["4", "50.0%"]
    assert any("group score in each category" in text for text in page.texts["figcaption"])


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("top5", 0.5, "50.0%"),
        ("fine_top1", 0.5, "50.0%"),
        ("top1@16", 0.5, "50.0%"),
        ("image_to_text_recall@10", 0.5, "50.0%"),
        ("consistency@3", 0.5, "50.0%"),
        ("group_score", 0.5, "50.0%"),
        ("mean_per_class", 0.5, "50.0%"),
        ("imagenetv2_effective", -0.012, "-1.2%"),
        ("imagenetv2_reference", 0.7, "70.0%"),
        ("image_effective_rank", 1.0, "1.000"),
        ("inmodal_consistency", 0.00422, "0.004220"),
        ("alignment", 0.5, "0.5000"),
        ("image_log_likelihood", -1.419, "-1.419"),
        ("clip_score", 61.5, "61.50"),  # no fraction
        ("images", 351.0, "351"),
        ("top1", None, "not finite"),
    ],
)
def test_shares_are_percentages_by_their_names(name, value, text):
    assert metrics_of({name: value})[name].text() == text


def test_a_number_with_a_chance_level_is_a_share_whatever_its_name():
    metrics = metrics_of({"group": 0.5, "chance_group": 0.1667, "group_ci_low": 0.4})
    assert [metric.text() for metric in metrics.values()] == ["50.0% (16.67%)"]


def test_headlines_leave_out_losses_counts_and_further_k():
    names = ("top1", "top5", "top10", "knn_top1@1", "knn_top1@10", "text_to_image_recall@1", "loss")
    names += ("image_to_text_recall@1_as_published", "consistency@1", "alignment", "temperature")
    shown = [name for name in names if metrics_of({name: 0.5})[name].is_headline]
    assert shown == ["top1", "knn_top1@1", "text_to_image_recall@1", "consistency@1", "alignment"]
    assert not metrics_of({"images": 351.0})["images"].is_headline


def test_shares_of_one_figure_have_one_scale_that_shows_them_all():
    values = (0.1, 0.75, 0.3)
    rows = [(str(value), [Metric(value, (value / 2, 1.5), unit=Unit.SHARE)]) for value in values]
    with style.style():
        axes = figures.bars(rows, ["a run"]).axes
    assert len({axis.get_xlim() for axis in axes}) == 1
    low, high = axes[0].get_xlim()
    # An interval that reaches beyond 1 ends there; behind it the number has its place.
    assert low <= 0 and 1.15 < high < 1.3


def test_numbers_of_one_figure_have_each_its_scale():
    rows = [(str(value), [Metric(value, unit=Unit.DISTANCE)]) for value in (0.5, 50.5)]
    with style.style():
        first, second = figures.bars(rows, ["a run"]).axes
    assert first.get_xlim()[1] < 1 and second.get_xlim()[1] > 50.5


def test_the_line_of_other_models_is_drawn_on_its_scale():
    assert figures.on_line({"slope": 1.2, "intercept": -0.09, "scale": "linear"}, 0.5) == 0.51
    # logit(0.8) = ln 4; half of it is ln 2, whose share is 2/3.
    line = {"slope": 0.5, "intercept": 0.0, "scale": "logit"}
    assert figures.on_line(line, 0.8) == pytest.approx(2 / 3, abs=1e-12)


def test_the_table_needs_neither_matplotlib_nor_tensorflow():
    check = (
        "import sys; from cyclip_jax.workdir.table import final_table; "
        "assert not {'matplotlib', 'tensorflow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", check], check=True)


def test_the_command_prints_the_path_or_one_sentence(tmp_path, undrawn, capsys):
    directory = write_run(tmp_path / "run")
    command_line.main([str(directory)])
    assert capsys.readouterr().out.strip() == str(directory / "report.html")
    with pytest.raises(SystemExit, match=r"^error: .*nowhere is no directory"):
        command_line.main([str(tmp_path / "nowhere")])


class Said(list):
    """A console that keeps what it is told."""

    say = log = list.append


def captions_of_training(directory):
    """The captions of the curves of a run's report, in their order."""
    drawings = Drawings()
    page = charts.training(group_runs([read_run(directory)]), drawings)
    return re.findall(r"<figcaption[^>]*>(.*?) at each logged step", page), list(drawings.drawings)


def test_the_curves_of_an_older_run_are_those_that_it_always_had(tmp_path):
    captions, names = captions_of_training(write_run(tmp_path / "run"))
    assert names == ["loss", "contrastive_loss", "learning_rate", "images_per_second"]
    assert captions == [
        "The whole loss",
        "The contrastive term",
        "The learning rate",
        "The speed in images per second over all devices",
    ]


def test_a_term_that_no_list_names_has_its_curve(tmp_path):
    directory = write_run(tmp_path / "run")
    told = {name: {"meaning": "The term of " + name} for name in ("new_loss", "other_loss")}
    told["share"] = {"meaning": "A share", "unit": "share"}
    write_json(directory / "metrics.json", told)
    text = (directory / "metrics.jsonl").read_text()
    numbers = '"share": 0.5, "other_loss": 1.0, "new_loss": 2.0, "learning_rate"'
    (directory / "metrics.jsonl").write_text(text.replace('"learning_rate"', numbers))
    captions, names = captions_of_training(directory)
    assert names == ["loss", "new_loss", "other_loss", "learning_rate", "images_per_second"]
    assert captions[1:3] == ["The term of new_loss", "The term of other_loss"]


def test_an_arrow_shows_where_a_metric_is_better(tmp_path):
    directory = write_run(tmp_path / "run")
    text = (directory / "metrics.jsonl").read_text()
    numbers = (
        '"val/uniformity": -1.5, "val/image_to_text_median_rank": 3.0, "val/modality_gap": 0.5, '
    )
    text = text.replace('"val/image_to_text_recall@1"', numbers + '"val/image_to_text_recall@1"')
    (directory / "metrics.jsonl").write_text(text)
    page = Page(str(all_headlines(group_runs([read_run(directory)]), None)))
    shown = page.rows(HEADLINES)
    better = ("image_to_text_recall@1 ↑", "image_to_text_median_rank ↓", "uniformity ↓")
    assert {f"{name} val" for name in (*better, "modality_gap")} <= shown.keys()


def test_the_end_of_a_run_reports_and_shows_the_main_figures_in_tensorboard(tmp_path):
    directory = write_run(tmp_path / "run")
    said = Said()
    train.report_at_end(types.SimpleNamespace(workdir=directory, console=said), 4)
    assert said == [f"report: {directory / 'report.html'}"]
    events = next((directory / "tensorboard").iterdir()).read_bytes()
    assert b"report/contrastive_loss" in events and b"PNG" in events


def test_a_report_that_fails_does_not_fail_the_run(tmp_path):
    directory = write_run(tmp_path / "run")
    (directory / "metrics.jsonl").write_text("broken\n")
    said = Said()
    train.report_at_end(types.SimpleNamespace(workdir=directory, console=said), 4)
    traceback, sentence = said
    assert "UserError" in traceback
    assert f"python -m cyclip_jax.report {directory}" in sentence


@pytest.mark.parametrize(
    ("file", "content", "told"),
    [
        ("config.json", b'{"config": "x"}', "config.json cannot be read"),
        ("config.json", b'{"config": {"data": "x"}}', "config.json cannot be read"),
        ("config.json", b'{"config": {}, "versions": 3}', "versions 3 must be settings by name"),
        ("config.json", b'{"config": {}, "changes": [3]}', "'changes' of"),
        ("metrics.jsonl", b'{"step": 1}\n{"caf\xe9": 1}\n', "line 2, is not JSON"),
        ("metrics.jsonl", b"[" * 10_000 + b"\n", "line 1, is not JSON"),
        ("evals/step_4.json", b"[" * 10_000, "cannot be read as JSON"),
        ("evals/val/metrics.json", b'{"a": {"unit": "share", "better": 3, "is_headline": 1}}', ""),
        ("evals/val/metrics.json", b'{"a": {"unit": "share", "better": [], "is_headline": 1}}', ""),
    ],
)
def test_a_file_of_a_run_that_is_not_what_it_should_be_is_said(tmp_path, file, content, told):
    write_run(tmp_path / "run")
    (tmp_path / "run" / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "run" / file).write_bytes(content)
    with pytest.raises(UserError, match=told or "does not say what metrics mean"):
        read_run(tmp_path / "run")


def test_a_run_that_lacks_settings_had_their_defaults(tmp_path):
    write_run(tmp_path / "run")
    assert read_run(tmp_path / "run").config["data"]["decoder"] == "exact"
