import json

import numpy as np
import pytest

from cyclip_jax.errors import UserError
from cyclip_jax.evals import Output
from cyclip_jax.evals.datasets import read_labels
from cyclip_jax.evals.zeroshot import class_embeddings, ranks_of_label, zeroshot
from tests.conftest import COLOURS, SHAPES, write_pairs
from tests.evals.fakes import fake_encoders

CLASSES = [f"{colour} {shape}" for shape in SHAPES for colour in COLOURS]


@pytest.fixture
def folder(tmp_path):
    """24 pictures, each its own class."""
    write_pairs(tmp_path)
    rows = [f"{name.replace(' ', '_')}.png,{number}" for number, name in enumerate(CLASSES)]
    (tmp_path / "labels.csv").write_text("\n".join(["image,label", *rows]))
    templates = ["a photo of a {}", "the {}"]
    (tmp_path / "classes.json").write_text(json.dumps({"classes": CLASSES, "templates": templates}))
    return tmp_path


def test_ranks_of_a_hand_made_table():
    images = np.array([[0.9, 0.5, 0.1], [0.9, 0.5, 0.1], [0.3, 0.3, 0.1]])
    labels = np.array([0, 2, 1])
    np.testing.assert_array_equal(ranks_of_label(images, np.eye(3), labels), [0, 2, 1])


def test_a_diverged_model_is_never_right():
    assert ranks_of_label(np.full((1, 3), np.nan), np.eye(3), np.array([0]))[0] > 0


def test_labels_that_are_names_are_never_taken_for_numbers():
    np.testing.assert_array_equal(read_labels(["1", "2", "3"], ["1", "2", "3"], ""), [0, 1, 2])
    np.testing.assert_array_equal(read_labels(["1", "2", "0"], ["a", "b", "c"], ""), [1, 2, 0])


def test_a_class_is_the_normalised_mean_over_its_templates():
    embeds = {"a x": [1.0, 0.0], "the x": [0.0, 1.0], "a y": [0.6, 0.8], "the y": [0.6, 0.8]}
    result = class_embeddings(
        lambda texts: np.array([embeds[t] for t in texts]), ["x", "y"], ["a {}", "the {}"]
    )
    np.testing.assert_allclose(result, [[2**-0.5, 2**-0.5], [0.6, 0.8]])


@pytest.mark.parametrize("batch_size", [7, 24])
def test_a_model_that_sees_everything_is_right(folder, batch_size):
    results = zeroshot("x", folder=folder)(fake_encoders(batch_size), Output())
    tops = {f"top{k}{bound}": 1.0 for k in (1, 3, 5, 10) for bound in ("", "_ci_low", "_ci_high")}
    assert results == tops | {"images": 24}


def test_a_model_that_mixes_up_two_colours_is_half_right(folder):
    swap = {"red": "blue", "blue": "red"}
    encoders = fake_encoders(8, misread=lambda colour: swap.get(colour, colour))
    assert zeroshot("x", folder=folder)(encoders, Output())["top1"] == 0.5


def test_labels_may_be_names_and_small_k_alone_are_given(folder):
    (folder / "labels.csv").write_text(
        "image,label\nred_disc.png,red disc\nblue_bar.png,blue bar\n"
    )
    (folder / "classes.json").write_text(
        '{"classes": ["red disc", "blue bar"], "templates": ["{}"]}'
    )
    results = zeroshot("x", folder=folder)(fake_encoders(8), Output())
    assert (results["top1"], results["images"]) == (1.0, 2)
    assert "top3" not in results


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("classes.json", None, "classes.json does not exist"),
        ("classes.json", '{"classes": ["a"]}', "needs lists 'classes' and 'templates'"),
        ("classes.json", '{"classes": ["a"], "templates": ["photo"]}', r"a \{\} in each template"),
        ("classes.json", "{", "needs lists"),
        ("labels.csv", "image,label\nred_disc.png,99\n", "neither all classes .*'99'"),
        ("labels.csv", "image,label\nred_disc.png,red disc\nred_bar.png,1\n", "neither all"),
        ("classes.json", '{"classes": ["a", "a"], "templates": ["{}"]}', "names a class twice"),
        ("labels.csv", "image,class\nred_disc.png,1\n", "no column 'label'"),
    ],
)
def test_what_is_wrong_with_the_folder_is_said(folder, name, content, message):
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(content)
    with pytest.raises(UserError, match=message):
        zeroshot("x", folder=folder)(fake_encoders(8), Output())
