"""What the page tells of a run beside its numbers: a card, words, points, files for a paper."""

import base64
import io
import json

import numpy as np
import pytest

from cyclip_jax.errors import UserError
from cyclip_jax.evals.known_metrics import KNOWN
from cyclip_jax.evals.metric_words import in_words
from cyclip_jax.report import __main__ as command_line
from cyclip_jax.report import figures, matrices, style
from cyclip_jax.report.card import card
from cyclip_jax.report.numbers import headlines
from cyclip_jax.report.pictures import pictures
from cyclip_jax.report.runs import group_runs, read_run
from cyclip_jax.report.write import write_figure
from tests.test_report import (
    EVIL,
    Page,
    write_arrays,
    write_json,
    write_run,
)


@pytest.mark.parametrize("name", KNOWN)
def test_every_metric_that_is_known_is_known_in_words(name):
    is_at_k = name in ("consistency", "knn_top1") or name.endswith("_image_recall")
    is_at_k = is_at_k or name.endswith("_text_recall")
    title, meaning = in_words(f"{name}@5" if is_at_k else name)
    assert title and meaning and not meaning.endswith(".")
    assert "{k}" not in title + meaning


def test_metrics_of_parts_and_of_several_k_are_told_in_words():
    assert in_words("image_to_text_recall@5").title == "texts found for an image, recall@5"
    assert "the 5 nearest" in in_words("image_to_text_recall@5").meaning
    assert in_words("imagenetv2_top1").title == "accuracy on imagenetv2"
    assert in_words("mean_recall_64_dims").title == "mean recall, first 64 dimensions"
    assert in_words("text_score_before").title == "text score, before the matrix was learned"
    assert in_words("new_number") == ("new number", "")


def facts_of(directory):
    page = Page(str(card(group_runs([read_run(directory)]), None)))
    return {name: cells[0] for name, cells in page.rows("How it was made").items()}


def test_the_card_tells_what_a_run_was(tmp_path):
    run = write_run(tmp_path / "run", weights=(0.25, 0.5))
    content = json.loads((run / "config.json").read_text())
    content |= {
        "command": "python -m cyclip_jax.main --config=configs/cc3m.py",
        "git_commit": "0123456789abcdef",
        "machine": {"devices": 8, "device_kind": "TPU v5 lite", "processes": 2, "cpu_cores": 4},
        "changes": [{"step": 3, "settings": {"optimizer.learning_rate": [0.2, 0.1]}}],
    }
    write_json(run / "config.json", content)
    write_json(run / "heartbeat.json", {"seconds": {"training": 3300, "startup": 300}})
    facts = facts_of(run)
    assert facts["objective"] == "CyCLIP: λ1 = 0.25, λ2 = 0.5"
    assert facts["length"] == "4 steps of 8"
    assert facts["time"] == "1 h (92% training, 8% startup)"
    assert facts["machine"].startswith("8 × TPU v5 lite in 2 processes, 4 CPU cores")
    assert facts["code"] == "commit 0123456789ab, jax 0.1"
    assert facts["command"] == "python -m cyclip_jax.main --config=configs/cc3m.py"
    assert facts["changed on the way"] == "from step 3 optimizer.learning_rate 0.2 → 0.1"


def test_the_card_of_an_older_run_leaves_out_what_was_not_kept(tmp_path):
    facts = facts_of(write_run(tmp_path / "run"))
    assert not {"command", "machine", "time"} & facts.keys()
    assert facts["changed on the way"] == "nothing"


def test_facts_that_all_groups_share_stand_once(tmp_path):
    runs = [write_run(tmp_path / name, batch_size=size) for name, size in (("a", 8), ("b", 16))]
    page = Page(str(card(group_runs(list(map(read_run, runs))), None)))
    rows = page.rows("How it was made")
    assert rows["model"] == ["RN-tiny"]
    assert rows["length"] == ["4 steps of 8", "4 steps of 16"]


def test_headlines_are_few_and_in_words_with_what_they_mean(tmp_path):
    page = Page(str(headlines(group_runs([read_run(write_run(tmp_path / "run"))]), None)))
    rows = page.rows("In brackets")
    assert rows["Texts found for an image, recall@1 ↑ val"] == ["25.0% [12.5, 50.0]", "1.00%"]
    tips = [attrs["data-tip"] for _, attrs in page.elements if "data-tip" in attrs]
    assert tips[0].startswith("val/image_to_text_recall@1: The share of images")
    assert tips[0].endswith("More is better.")
    meters = [attrs["style"] for _, attrs in page.elements if attrs.get("class") == "meter"]
    assert meters == ["--value: 25.00%; --low: 12.50%; --high: 50.00%; --chance: 1.00%"]


def jpeg():
    file = io.BytesIO()
    from PIL import Image

    Image.new("RGB", (4, 4)).save(file, "JPEG")
    return base64.b64encode(file.getvalue()).decode()


def gallery(directory, ranks):
    answers = [{"jpeg": jpeg(), "is_partner": True}]
    rows = [
        {"caption": f"caption {number}", "rank": rank, "of": 9, "images": answers}
        for number, rank in enumerate(ranks)
    ]
    write_json(directory / "evals" / "val" / "gallery.json", rows)


def test_pictures_show_what_is_right_before_what_is_wrong(tmp_path):
    run = write_run(tmp_path / "run")
    gallery(run, (3, 1, 2))
    own = {"caption": EVIL, "rank": 4, "of": 9, "cosine": 0.25, "jpeg": jpeg()}
    answer = {"caption": "another", "cosine": 0.75, "jpeg": jpeg()}
    write_json(run / "evals" / "val" / "confused.json", [own | {"answer": answer}])
    counts = np.array([[5, 3, 0], [0, 4, 0], [1, 0, 1]])
    write_arrays(run / "evals" / "val" / "confusion.npz", counts=counts, classes=list("abc"))
    page = Page(str(pictures(group_runs([read_run(run)]), None)))
    text = " ".join("".join(page.texts["div"]).split())
    assert page.texts["q"] == ["caption 1", "caption 0", "caption 2", EVIL]
    assert "1 of these 3 find their own picture first." in page.texts["p"][0]
    assert "first answer, cosine 0.75, of “another”" in text
    assert "its own, cosine 0.25, 4th of 9" in text
    rows = page.rows("val: the classes that CLIP confuses most often")
    assert rows == {
        "class": ["taken for", "images", "of the class's"],
        "a": ["b", "3", "37.5%"],
        "c": ["a", "1", "50.0%"],
    }


def test_models_answer_the_same_captions_beside_each_other(tmp_path):
    clip, ours = write_run(tmp_path / "clip"), write_run(tmp_path / "c", weights=(0.25, 0.25))
    gallery(clip, (3, 1))
    gallery(ours, (1, 1))
    page = Page(str(pictures(group_runs([read_run(clip), read_run(ours)]), None)))
    assert page.texts["q"] == ["caption 0", "caption 1"]
    assert "first: CLIP 1, CyCLIP 2." in page.texts["p"][0]
    told = [" ".join(text.split()) for text in page.texts["p"] if text.startswith(("CLIP", "Cy"))]
    assert told[:2] == ["CLIP ✗ wrong – its own picture comes 3rd of 9", "CyCLIP ✓ right"]


def test_points_are_told_where_they_are_drawn():
    with style.style():
        chart = figures.curves({"CLIP": [([0, 10], [1.0, 2.0])]}, "loss")
        drawing = style.drawn(chart)
    assert [text for *_, text in drawing.spots] == ["step 0: 1", "step 10: 2"]
    (first_x, first_y, _), (second_x, second_y, _) = drawing.spots
    assert 0 < first_x < second_x < 1000 and 0 < second_y < first_y < 1000
    # Where the SVG draws the end of the line, in the same thousandths.
    path = drawing.svg.partition('id="line2d_')[2]
    points = [p.split() for p in drawing.svg.split('d="M ')[1:] if "L" in p.split('"')[0]]
    width, height = (72 * inches for inches in chart.get_size_inches())
    ends = [(float(p[0]) / width, float(p[1]) / height) for p in points]
    assert path and any(
        (1000 * x, 1000 * y) == pytest.approx((first_x, first_y), abs=0.2) for x, y in ends
    )


def test_cells_of_a_matrix_are_told():
    counts = np.array([[3, 1], [0, 2]])
    with style.style():
        (grid,) = style.drawn(matrices.confusion(counts, ["cat", "dog"])).grids
    cells = np.frombuffer(base64.b64decode(grid["cells"]), np.uint8) / 255
    values = grid["low"] + cells * (grid["high"] - grid["low"])
    assert values == pytest.approx([0.75, 0.25, 0, 1], abs=1 / 255)
    assert grid["rows"] == grid["columns"] == ["cat", "dog"]
    left, top, right, bottom = grid["box"]
    assert 0 < left < right < 1000 and 0 < top < bottom < 1000


@pytest.mark.parametrize("file_format", ["pdf", "svg", "png"])
def test_one_figure_is_written_for_a_paper(tmp_path, file_format):
    run = write_run(tmp_path / "run")
    path = write_figure([run], "loss", file_format, output=tmp_path / f"new/loss.{file_format}")
    content = path.read_bytes()
    assert content.startswith({"pdf": b"%PDF", "svg": b"<?xml", "png": b"\x89PNG"}[file_format])
    if file_format == "pdf":
        assert b"/Type3" not in content and b"/FontFile2" in content
        assert b"CreationDate" not in content
    assert not (run / "figures").exists()


def test_a_figure_that_there_is_not_is_told_with_those_there_are(tmp_path, capsys):
    run = write_run(tmp_path / "run")
    with pytest.raises(SystemExit, match=r"--figure=lost is no figure .* choose one of loss, "):
        command_line.main([str(run), "--figure=lost"])
    with pytest.raises(SystemExit, match=r"x\.svg does not end in \.pdf"):
        command_line.main([str(run), "--figure=loss", f"--output={tmp_path}/x.svg"])
    with pytest.raises(SystemExit, match="--format=svg is of one figure"):
        command_line.main([str(run), "--format=svg"])
    command_line.main([str(run), "--figure=loss", f"--output={tmp_path}/x.pdf"])
    assert capsys.readouterr().out.strip() == f"{tmp_path}/x.pdf"
    with pytest.raises(UserError, match="named twice"):
        write_figure([run, run], "loss", "pdf")
