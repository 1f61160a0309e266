"""Examples chosen by how alike a model finds picture and caption."""

import csv
import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from cyclip_jax import load
from cyclip_jax.data import score as module
from cyclip_jax.data.prepare import main
from cyclip_jax.data.score import best, without_numbers
from tests.pictures import write_pairs
from tests.runs import status_of


@pytest.mark.parametrize(
    ("caption", "bare"),
    [
        ("a dog", "a dog"),
        (" two  gaps ", " two  gaps "),
        ("a dog, 3 years old in 1999", "a dog, years old in"),
        ("IMG_2034.jpg", "IMG_.jpg"),
        ("٣ dogs", "dogs"),
        ("123", ""),
    ],
)
def test_digits_are_left_out_and_other_captions_are_as_they_were(caption, bare):
    assert without_numbers(caption) == bare


def test_the_best_stay_and_of_equal_ones_the_first():
    scores = np.array([0.5, np.nan, 0.7, 0.5, 0.1, 0.5])
    assert best(scores, 0.6).tolist() == [0, 2, 3]
    assert best(scores, 1).tolist() == [0, 2, 3, 4, 5]
    assert best(scores, 0.05).tolist() == []


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """24 pairs, some with numbers in their captions; one has no picture and one no caption."""
    path = write_pairs(tmp_path_factory.mktemp("scored"))
    with open(path, newline="") as file:
        header, *rows = csv.reader(file)
    rows = [[name, f"99 {text}" if i % 3 == 0 else text] for i, (name, text) in enumerate(rows)]
    rows[4][0], rows[5][1] = "missing.png", " "
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def run(data, workdir, output, *flags, code=0):
    arguments = ["score", f"--input={data}", f"--model={workdir}", f"--output={output}"]
    assert status_of(main, [*arguments, "--batch_size=8", *flags]) == code
    files = [path for path in output.rglob("*") if path.is_file()]
    return {str(path.relative_to(output)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def scored(data, finished, tmp_path_factory):
    return run(data, finished[0], tmp_path_factory.mktemp("out"), "--keep=0.5")


def test_scores_are_the_models_cosines(data, finished, scored):
    model, preprocess, tokenize = load(finished[0])
    table = list(csv.DictReader(io.StringIO(scored["scores.csv"].decode())))
    with open(data, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in table] == [row["image"] for row in rows]
    for number in (0, 1, 23):
        picture = preprocess(Image.open(data.parent / rows[number]["image"]))
        caption = rows[number]["caption"]
        for name, text in (("caption", caption), ("without_numbers", without_numbers(caption))):
            images, texts, _ = model(picture, tokenize([text]))
            assert float(table[number][name]) == pytest.approx(
                float((images * texts).sum()), abs=2e-5
            )
    for number in (4, 5):
        assert table[number]["caption"] == table[number]["without_numbers"] == ""
    same = [row["caption"] == row["without_numbers"] for row in table]
    assert all(same[number] for number in range(24) if number % 3)
    assert not all(same[number] for number in range(24) if number % 3 == 0)


def test_the_list_has_those_with_the_best_scores(scored):
    manifest = json.loads(scored["manifest.json"])
    table = list(csv.DictReader(io.StringIO(scored["scores.csv"].decode())))
    rows = np.load(io.BytesIO(scored["kept.npy"]), allow_pickle=False)
    assert [number for number, row in enumerate(table) if row["kept"] == "1"] == rows.tolist()
    assert manifest["examples"] == len(rows) == 11 and manifest["without_score"] == 2
    scores = {n: float(row["without_numbers"] or "-inf") for n, row in enumerate(table)}
    left = max(score for number, score in scores.items() if number not in rows)
    assert left <= min(scores[number] for number in rows.tolist()) + 1e-6
    assert manifest["mean_score_after"] > manifest["mean_score_before"]


def test_a_killed_run_goes_on_to_the_same_bytes(data, finished, tmp_path, monkeypatch):
    """Killed after the first of three blocks, and once more before the scores are written."""
    monkeypatch.setattr(module, "_BLOCK", 8)
    whole = run(data, finished[0], tmp_path / "whole")
    scored, calls = module._scored, []

    def once(*arguments):
        calls.append(arguments)
        if len(calls) in (2, 5):
            raise KeyboardInterrupt
        return scored(*arguments)

    for name in ("_scored", "_write_scores"):
        monkeypatch.setattr(module, name, once)
        run(data, finished[0], tmp_path / "out", code=130)
    assert [len(arguments) for arguments in calls] == [3, 3, 3, 3, 5]
    monkeypatch.undo()
    monkeypatch.setattr(module, "_BLOCK", 8)
    assert run(data, finished[0], tmp_path / "out") == whole


def test_what_is_wrong_is_said(data, finished, tmp_path, capsys):
    run(data, finished[0], tmp_path / "out", "--keep=1.5", code=1)
    assert "--keep=1.5 must be above 0 and at most 1" in capsys.readouterr().err
    run(data, finished[0], tmp_path / "out", "--keep=0.3")
    run(data, finished[0], tmp_path / "out", "--keep=0.4", code=1)
    assert "--keep was 0.3 and is 0.4" in capsys.readouterr().err
    lone = tmp_path / "lone.csv"
    lone.write_text("image,caption\nmissing.png,a dog\n")
    run(lone, finished[0], tmp_path / "none", code=1)
    assert "no example of" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "none")
    run(lone, tmp_path / "nowhere", tmp_path / "none", code=1)
    assert "nowhere" in capsys.readouterr().err
