import json
import sys

import numpy as np
import pytest
from clip_benchmark.metrics import zeroshot_classification as theirs
from sklearn import metrics

from cyclip_jax.errors import UserError
from cyclip_jax.evals import Output
from cyclip_jax.evals.data.class_names import read_labels
from cyclip_jax.evals.flat import flat_numbers
from cyclip_jax.evals.statistics.classification import (
    class_embeddings,
    class_table,
    confusion,
    embed_classes,
    mean_per_class,
    predicted,
    ranks_of_label,
    top_k,
)
from cyclip_jax.evals.zeroshot import Zeroshot
from tests.conftest import unit_rows
from tests.evals.fakes import fake_encoders
from tests.pictures import COLOURS, SHAPES, write_pairs
from tests.pytorch import open_clip, torch

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
    """The rank is the number of classes, wherever the NaN is, whatever their names."""
    nan, classes = np.array([[np.nan, 0, 0], [0, 1.0, 0]]), np.eye(3)
    labels = np.array([1, 1])
    np.testing.assert_array_equal(ranks_of_label(nan, classes, labels), [3, 0])
    np.testing.assert_array_equal(ranks_of_label(nan, classes[:1], labels * 0), [1, 0])
    names = ["x", "x", "x"]
    np.testing.assert_array_equal(ranks_of_label(nan, classes, labels, names=names)[0], 3)
    classes[0, 0] = np.nan  # one class alone
    np.testing.assert_array_equal(ranks_of_label(nan, classes, labels), [3, 3])
    assert (predicted(nan, classes) == -1).all()


def test_classes_of_one_name_rank_in_their_order_and_count_each():
    """As by an argmax over all of them: nothing else can tell them apart."""
    images, classes = np.array([[0.9, 0.5]] * 4), np.array([[0, 1], [1, 0], [1, 0], [0, 1.0]])
    names = ["a", "b", "b", "c"]
    ranks = ranks_of_label(images, classes, np.array([0, 1, 2, 3]), names=names)
    np.testing.assert_array_equal(ranks, [3, 0, 1, 3])  # a and c have two names, and are a tie
    one_image = ranks_of_label(np.ones((2, 2)), np.ones((2, 2)), np.array([0, 1]), names=["b", "b"])
    np.testing.assert_array_equal(one_image, [0, 1])


def test_labels_that_are_names_are_never_taken_for_numbers():
    np.testing.assert_array_equal(read_labels(["1", "2", "3"], ["1", "2", "3"], ""), [0, 1, 2])
    np.testing.assert_array_equal(read_labels(["1", "2", "0"], ["a", "b", "c"], ""), [1, 2, 0])


@pytest.mark.parametrize("labels", [["1", "2"], ["1"]])
def test_numbers_from_1_on_are_not_taken_for_numbers_from_0_on(labels):
    with pytest.raises(UserError, match="no label 0: whether its labels count the 3 classes"):
        read_labels(labels, ["a", "b", "c"], "data")


def test_numbers_without_names_are_no_prompts(tmp_path):
    (tmp_path / "labels.csv").write_text("image,label\n1.png,0\n2.png,1\n")
    with pytest.raises(UserError, match=r"numbers without names; set config\.evals\.x\.classes"):
        Zeroshot("x", folder=tmp_path).open()


def test_a_class_is_the_normalised_mean_over_its_templates():
    embeds = {"a x": [1.0, 0.0], "the x": [0.0, 1.0], "a y": [0.6, 0.8], "the y": [0.6, 0.8]}
    result = class_embeddings(
        lambda texts: np.array([embeds[t] for t in texts]), ["x", "y"], ["a {}", "the {}"]
    )
    np.testing.assert_allclose(result, [[2**-0.5, 2**-0.5], [0.6, 0.8]])


@pytest.mark.parametrize("batch_size", [7, 24])
def test_a_model_that_sees_everything_is_right(folder, batch_size):
    results = flat_numbers(Zeroshot("x", folder=folder).open()(fake_encoders(batch_size), Output()))
    bounds = ("", "_ci_low", "_ci_high")
    tops = {f"top{k}{bound}": 1.0 for k in (1, 3, 5, 10) for bound in bounds}
    mean = {f"mean_per_class{bound}": 1.0 for bound in bounds}
    chance = {f"chance_top{k}": k / 24 for k in (1, 3, 5, 10)} | {"chance_mean_per_class": 1 / 24}
    assert results == tops | mean | chance | {"images": 24, "classes": 24}


def test_labels_may_be_names_and_small_k_alone_are_given(folder):
    (folder / "labels.csv").write_text(
        "image,label\nred_disc.png,red disc\nblue_bar.png,blue bar\n"
    )
    (folder / "classes.json").write_text(
        '{"classes": ["red disc", "blue bar"], "templates": ["{}"]}'
    )
    results = flat_numbers(Zeroshot("x", folder=folder).open()(fake_encoders(8), Output()))
    assert (results["top1"], results["images"]) == (1.0, 2)
    assert "top3" not in results


def test_a_mean_over_classes_by_hand():
    """Class 0 has 3 of 4 right, class 1 none of one, class 2 no image: (3/4 + 0)/2."""
    is_hit, labels = np.array([True, True, False, True, False]), np.array([0, 0, 0, 0, 1])
    results = flat_numbers({"mean_per_class": mean_per_class(is_hit, labels, 3)})
    assert results["mean_per_class"] == 0.375
    assert 0 <= results["mean_per_class_ci_low"] < 0.375 < results["mean_per_class_ci_high"] <= 1


def test_details_by_hand():
    labels, predictions = np.array([0, 0, 0, 2, 2, 0]), np.array([0, 2, 2, 2, -1, 1])
    hits = predictions == labels
    assert class_table(["a", "b", "c"], hits, labels, predictions) == [
        {"class": "a", "images": 4, "top1": 0.25, "most_confused_with": "c"},
        {"class": "b", "images": 0, "top1": None, "most_confused_with": None},
        {"class": "c", "images": 2, "top1": 0.5, "most_confused_with": None},
    ]
    np.testing.assert_array_equal(
        confusion(labels, predictions, 3), [[1, 1, 2], [0, 0, 0], [0, 0, 1]]
    )


def test_a_model_that_mixes_up_two_colours_is_half_right_and_leaves_details(folder, tmp_path):
    swap = {"red": "blue", "blue": "red"}
    encoders = fake_encoders(8, misread=lambda colour: swap.get(colour, colour))
    results = flat_numbers(Zeroshot("x", folder=folder).open()(encoders, Output(tmp_path / "out")))
    assert results["top1"] == results["mean_per_class"] == 0.5
    table = json.loads((tmp_path / "out" / "classes.json").read_text())
    assert table[0] == {
        "class": "red square",
        "images": 1,
        "top1": 0.0,
        "most_confused_with": "blue square",
    }
    arrays = np.load(tmp_path / "out" / "confusion.npz")
    assert arrays["classes"].tolist() == CLASSES
    swapped = [CLASSES.index(" ".join([swap.get(c, c), s])) for c, s in map(str.split, CLASSES)]
    np.testing.assert_array_equal(arrays["counts"], np.eye(24, dtype=int)[swapped])


def test_a_diverged_model_predicts_nothing():
    images = np.array([[1.0, 0], [np.nan, 0]])
    np.testing.assert_array_equal(predicted(images, np.eye(2)), [0, -1])


def test_accuracies_are_those_of_open_clip_and_clip_benchmark():
    """Their own code on the same embeddings, of which none tie."""
    rng, classes, templates = np.random.default_rng(0), [f"c{n}" for n in range(12)], ["a {}", "{}"]
    images, labels = rng.normal(size=(300, 8)), rng.permutation(np.arange(300) ** 2 // 7500)
    prompts = [template.format(name) for name in classes for template in templates]
    texts = rng.normal(size=(24, 8))
    images += texts[2 * labels]  # so that many are right, of some classes more
    table = dict(zip(prompts, texts, strict=True))

    class Model:
        def encode_text(self, texts, normalize=False):
            rows = torch.tensor(np.array([table[prompts[n]] for n in texts[:, 0]]))
            return torch.nn.functional.normalize(rows, dim=-1) if normalize else rows

        def encode_image(self, rows):
            return rows

    def tokenize(texts):
        return torch.tensor([[prompts.index(text)] for text in texts])

    batches = [
        (torch.tensor(images[r]), torch.tensor(labels[r])) for r in (slice(200), slice(200, 300))
    ]
    braces = [template.replace("{}", "{c}") for template in templates]
    classifier = theirs.zero_shot_classifier(Model(), tokenize, classes, braces, "cpu", amp=False)
    logits, targets = theirs.run_classification(Model(), classifier, batches, "cpu", amp=False)

    unit = {prompt: row / np.linalg.norm(row) for prompt, row in table.items()}
    embeds = class_embeddings(lambda texts: np.array([unit[t] for t in texts]), classes, templates)
    weights = open_clip.build_zero_shot_classifier(Model(), tokenize, classes, templates)
    np.testing.assert_allclose(embeds, weights.numpy().T, rtol=0, atol=1e-12)
    np.testing.assert_allclose(embeds, classifier.numpy().T, rtol=0, atol=1e-12)
    unit_images = images / np.linalg.norm(images, axis=1, keepdims=True)
    ranks = ranks_of_label(unit_images, embeds, labels)
    for k in (1, 3, 5, 10):
        # As their `accuracy`, which NumPy 2.4 refuses.
        hits = (logits.topk(k, 1).indices == targets[:, None]).any(dim=1)
        np.testing.assert_array_equal(ranks < k, hits.numpy())
    is_hit = ranks < 1
    recall = metrics.balanced_accuracy_score(targets, logits.argmax(dim=1))
    assert abs(mean_per_class(is_hit, labels, 12).value - recall) < 1e-12
    assert abs(recall - is_hit.mean()) > 1e-3
    counts = metrics.confusion_matrix(targets, logits.argmax(dim=1))
    np.testing.assert_array_equal(confusion(labels, predicted(unit_images, embeds), 12), counts)


def test_ranks_do_not_depend_on_tiles(monkeypatch):
    images, classes = unit_rows(0, 50, 6), unit_rows(1, 9, 6)
    labels = np.arange(50) % 9
    whole = ranks_of_label(images, classes, labels)
    monkeypatch.setattr(sys.modules[ranks_of_label.__module__], "_TILE_ROWS", 7)
    np.testing.assert_array_equal(ranks_of_label(images, classes, labels), whole)
    np.testing.assert_array_equal(predicted(images, classes), (images @ classes.T).argmax(axis=1))


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("classes.json", "{}", "needs lists 'classes' and 'templates'"),
        ("classes.json", '{"classes": ["a"], "templates": ["photo"]}', r"a \{\} in each template"),
        ("classes.json", '{"classes": ["a"], "templates": ["{x} {}"]}', r"a \{\} in each template"),
        (
            "classes.json",
            '{"classes": [1], "templates": ["{}"]}',
            "'classes' must be a list of texts",
        ),
        ("classes.json", "{", "cannot be read as a JSON object"),
        ("labels.csv", "image,label\nred_disc.png,99\n", "neither all classes .*'99'"),
        ("labels.csv", "image,label\nred_disc.png,red disc\nred_bar.png,1\n", "neither all"),
        ("labels.csv", "image,label\nred_disc.png,\n", "1 of the 1 pictures .* have no label"),
        (
            "labels.csv",
            "image,class\nred_disc.png,1\n",
            r"no column 'label' .*evals\.x\.label_key",
        ),
    ],
)
def test_what_is_wrong_with_the_folder_is_said(folder, name, content, message):
    (folder / name).write_text(content)
    with pytest.raises(UserError, match=message):
        Zeroshot("x", folder=folder).open()


class CutContext:
    """Encoders whose tokenizer keeps so many letters of a text."""

    def __init__(self, letters):
        self._letters = letters

    def tokenize(self, texts):
        cut = [text[: self._letters].ljust(self._letters) for text in texts]
        return np.array([list(map(ord, text)) for text in cut])

    def text_embeds(self, texts):
        return np.eye(len(texts))


def test_classes_whose_prompts_the_context_makes_alike_are_refused():
    names, templates = ["cat", "dog", "cat"], ["a photo of a {}.", "a drawing of a {}."]
    with pytest.raises(UserError, match=r"all 2 classes have the same tokens .*'a photo of a cat"):
        embed_classes(CutContext(13), names, templates)
    assert embed_classes(CutContext(14), names, templates).shape == (3, 6)  # the first tells
    assert embed_classes(CutContext(9), ["cat"], templates).shape == (1, 2)


def test_some_classes_alike_are_said_before_scoring(caplog):
    names = ["a tower of bricks", "a tower of stones", "a house"]
    embed_classes(CutContext(9), names, ["{}"])
    assert "2 classes have the same tokens" in caplog.text
    assert "'a tower of bricks', 'a tower of stones'" in caplog.text
    assert "house" not in caplog.text


def test_one_class_has_a_top1_with_its_chance():
    metrics, hits = top_k(np.array([0, 0, 1]), np.zeros(3, int), 1, (1, 3))
    assert list(metrics) == ["top1", "mean_per_class"] and list(hits) == ["top1"]
    assert (metrics["top1"].value, metrics["top1"].chance) == (pytest.approx(2 / 3), 1)
