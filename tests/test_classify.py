"""Pictures labelled with classes that the user names."""

import csv
import io

import numpy as np
import pytest
from PIL import Image

from cyclip_jax.classify import classify_pictures, main
from cyclip_jax.evals.statistics.classification import scores_of_classes
from cyclip_jax.training.opened_model import open_model
from tests.pictures import COLOURS, SHAPES, draw
from tests.runs import status_of

CLASSES = [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    (folder / "inner").mkdir()
    for colour in COLOURS:
        Image.fromarray(draw(SHAPES[0], colour)).save(folder / "inner" / f"{colour}.png")
    (folder / "broken.png").write_bytes(b"no picture")
    (folder / "notes.txt").write_text("not of a picture")
    return folder


def rows_of(text):
    return list(csv.DictReader(io.StringIO(text)))


def test_a_folder_becomes_a_csv(finished, photos, tmp_path, capsys):
    """In the order of the names; what cannot be read stands there without a label."""
    file = tmp_path / "labels.csv"
    flags = [finished[0], photos, f"--classes={','.join(CLASSES)}", "--template=a {}"]
    assert status_of(main, [*map(str, flags), f"--output={file}", "--top=2"]) == 0
    rows = rows_of(file.read_text())
    assert [row["picture"] for row in rows] == [
        "broken.png",
        *sorted(f"inner/{colour}.png" for colour in COLOURS),
    ]
    assert set(rows[0].values()) == {"broken.png", ""}
    assert "1 pictures cannot be read: broken.png" in capsys.readouterr().err
    for row in rows[1:]:
        assert {row["label"], row["label_2"]} <= set(CLASSES)
        assert 1 >= float(row["score"]) >= float(row["score_2"]) > 0


def test_it_is_what_the_models_similarities_say(finished, photos):
    """And one picture, named by its path, gets what it gets in its folder."""
    settings = {"templates": ["a {}"], "top": len(CLASSES)}
    found = classify_pictures(finished[0], [str(photos)], CLASSES, **settings)
    for picture in found[1:]:
        assert sum(picture.scores) == pytest.approx(1)
        assert sorted(picture.labels) == sorted(CLASSES)
    one = photos / found[1].picture
    (alone,) = classify_pictures(finished[0], [str(one)], CLASSES, **settings)
    assert alone.labels == found[1].labels
    np.testing.assert_allclose(alone.scores, found[1].scores, rtol=1e-5)


def test_a_checkpoint_in_a_workdir_is_a_model_too_and_any_batch_will_do(finished, photos):
    settings = {"templates": ["a {}"], "top": 2}
    (step,) = [path for path in (finished[0] / "checkpoints").iterdir() if path.name == "120"]
    of_step = classify_pictures(step, [str(photos)], CLASSES, **settings, batch_size=16)
    found = classify_pictures(finished[0], [str(photos)], CLASSES, **settings, step=120)
    for one, other in zip(of_step, found, strict=True):
        assert (one.picture, one.labels) == (other.picture, other.labels)
        np.testing.assert_allclose(one.scores, other.scores, rtol=1e-4)
    opened = open_model(finished[0], batch_size=24)
    assert opened.encoders.batch_size == 24


def test_scores_are_those_of_the_loss():
    images, classes = np.eye(3)[:2], np.eye(3)
    scores = scores_of_classes(images, classes, 2.0)
    assert scores[0, 0] == pytest.approx(np.e**2 / (np.e**2 + 2))
    by_sigmoid = scores_of_classes(images, classes, 2.0, bias=-1.0)
    assert by_sigmoid[0].tolist() == pytest.approx([1 / (1 + np.e**-1), 1 / (1 + np.e), 0.2689414])


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["{photos}", "--classes=cat"], "neither a file nor names with commas"),
        (["{photos}", "--classes=cat,"], "fewer than two classes"),
        (["{photos}", "--classes=cat,dog", "--top=3"], "--top=3 must be from 1 to 2"),
        (["{photos}/nowhere", "--classes=cat,dog"], "there is no file or folder"),
        (["{photos}/inner/../broken.png", "--classes=cat,dog"], "broken.png is no picture"),
        (["--classes=cat,dog"], "PICTURES is missing"),
        (["{photos}", "--classes=cat,dog", "--template=a photo"], "--template"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_computed(
    finished, photos, capsys, arguments, message
):
    arguments = [argument.format(photos=photos) for argument in arguments]
    assert status_of(main, [str(finished[0]), *arguments]) == 1
    assert message in capsys.readouterr().err


def test_classes_may_stand_in_a_file(finished, photos, tmp_path, capsys):
    (tmp_path / "lines.txt").write_text("red square\n\nblue disc\n")
    (tmp_path / "classes.json").write_text('{"classes": ["red square", "blue disc"]}')
    printed = []
    for name in ("lines.txt", "classes.json"):
        flags = [str(finished[0]), str(photos), f"--classes={tmp_path / name}", "--template=a {}"]
        assert status_of(main, flags) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
    assert {row["label"] for row in rows_of(printed[0])} <= {"red square", "blue disc", ""}
