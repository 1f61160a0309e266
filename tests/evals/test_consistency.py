import collections
import json

import numpy as np
import pytest

from cyclip_jax.errors import UserError
from cyclip_jax.evals import Output
from cyclip_jax.evals.consistency import (
    Consistency,
    coarse_predictions,
    fine_and_coarse,
    majority_labels,
    neighbour_labels,
    predictions,
)
from cyclip_jax.evals.data.superclasses import SUPERCLASSES, read_superclasses, superclass_of_each
from cyclip_jax.evals.flat import flat_numbers
from cyclip_jax.evals.statistics.cyclic import cyclic_consistencies, cyclic_rows
from cyclip_jax.evals.statistics.neighbours import nearest
from cyclip_jax.losses.cyclic import cyclic_consistency_dense
from tests.conftest import unit_rows
from tests.evals.fakes import fake_encoders
from tests.pictures import COLOURS, SHAPES, write_pairs


def official_consistency(test, train, train_labels, classes, k):
    """The definition, an image at a time: the majority of k, then k − 1, … until it is unique."""
    agreed = []
    for image in test:
        zeroshot = int(np.argmax(classes @ image))
        order = np.argsort(-(train @ image), kind="stable")
        for size in range(k, 0, -1):
            votes = collections.Counter(train_labels[order[:size]].tolist()).most_common()
            if len(votes) == 1 or votes[0][1] > votes[1][1]:
                break
        agreed.append(zeroshot == votes[0][0])
    return np.mean(agreed)


@pytest.mark.parametrize("k", [1, 3, 5, 10])
def test_consistency_is_the_published_definition(k):
    test, train, classes = unit_rows(0, 200, 6), unit_rows(1, 90, 6), unit_rows(2, 4, 6)
    labels = np.random.default_rng(3).integers(4, size=90)
    majorities = neighbour_labels(test, train, labels, 10)
    ours = np.mean(predictions(test, classes) == majorities[:, k - 1])
    assert ours == official_consistency(test, train, labels, classes, k)


def test_a_tie_shrinks_the_number_of_neighbours_until_it_is_broken():
    votes = np.array([[2, 1, 1, 2, 0], [0, 1, 2, 3, 3], [1, 0, 0, 1, 1]])
    expected = [[2, 2, 1, 1, 1], [0, 0, 0, 0, 3], [1, 1, 0, 0, 1]]
    np.testing.assert_array_equal(majority_labels(votes), expected)


@pytest.mark.parametrize("query_rows, key_rows", [(7, 11), (50, 16), (64, 100)])
def test_tiles_of_neighbours_change_nothing(query_rows, key_rows):
    # Whole numbers, whose products no processor's kernel rounds: equals are equal everywhere.
    rng = np.random.default_rng(0)
    queries, keys = (rng.integers(-9, 10, (n, 8)).astype(np.float32) for n in (50, 60))
    keys = np.concatenate([keys, keys[:20]])  # equals: the first counts
    _, places = nearest(queries, keys, 10, query_rows=query_rows, key_rows=key_rows)
    similarities = queries.astype(np.float64) @ keys.T.astype(np.float64)
    expected = np.argsort(-similarities, axis=1, kind="stable")[:, :10]
    np.testing.assert_array_equal(places, expected)


def test_what_has_no_single_best_class_has_no_prediction():
    classes = np.eye(3)
    images = np.array([[0.9, 0.1, 0.2], [0.5, 0.5, 0.1], [np.nan, 0, 0], [0.1, 0.2, 0.3]])
    np.testing.assert_array_equal(predictions(images, classes), [0, -1, -1, 2])
    among = np.array([0, 1, 1]), np.ones(4, int)
    np.testing.assert_array_equal(predictions(images, classes, among=among), [2, 1, -1, 2])


def test_coarse_is_the_best_of_each_superclass_then_the_best_superclass():
    groups = np.array([1, 0, 1, 0])
    images = np.array([[0.5, 0.4, 0.1, 0.4], [0.3, 0.1, 0.3, 0.2], [0.2, 0.5, 0.5, 0.1]])
    # A tie within a superclass is none between them.
    np.testing.assert_array_equal(coarse_predictions(images, np.eye(4), groups), [1, 1, -1])
    labels = np.array([2, 0, 1])
    results = flat_numbers(fine_and_coarse(images, np.eye(4), groups, labels)[0])
    assert results["coarse_top1"] == pytest.approx(2 / 3)
    assert results["fine_top1"] == pytest.approx(1 / 3)  # of 0 and 2, then a tie, of 1 and 3
    assert results["chance_fine_top1"] == results["chance_coarse_top1"] == 0.5


def test_there_are_no_nearest_images_where_all_are_equally_near_or_nan():
    train, labels = np.eye(4)[[0, 0, 0, 0, 1]], np.array([0, 1, 1, 1, 2])
    test = np.array([[1.0, 0, 0, 0], [0, 1, 0, 0], [np.nan, 0, 0, 0], [0, 0, 1, 0]])
    found = neighbour_labels(test, train, labels, 3)
    np.testing.assert_array_equal(found[:, 0], [-2, 2, -2, -2])
    train[1] = np.nan
    assert neighbour_labels(test, train, labels, 1)[1, 0] == 2  # not the picture that is NaN


def test_rows_of_the_cyclic_terms_have_the_means_of_the_definition(x64):
    images, texts = unit_rows(0, 40, 12), unit_rows(1, 40, 12)
    inmodal, crossmodal = cyclic_rows(images, texts)
    image_image, text_text, image_text = images @ images.T, texts @ texts.T, images @ texts.T
    np.testing.assert_allclose(inmodal, np.mean((image_image - text_text) ** 2, axis=1), atol=1e-14)
    np.testing.assert_allclose(
        crossmodal, np.mean((image_text - image_text.T) ** 2, axis=1), atol=1e-14
    )
    dense = [float(term) / 40 for term in cyclic_consistency_dense(images, texts)]
    np.testing.assert_allclose([inmodal.mean(), crossmodal.mean()], dense, rtol=1e-12)


def test_the_intervals_of_the_cyclic_terms_hold_what_other_samples_have():
    """95 % intervals of 100 samples hold the value of a large one in 88 to 100 of them."""

    def sample(seed, n):
        images = unit_rows(seed, n, 5)
        noise = unit_rows(seed + 1000, n, 5)
        texts = images + 0.8 * noise
        return images, texts / np.linalg.norm(texts, axis=1, keepdims=True)

    for place, name in enumerate(("inmodal_consistency", "crossmodal_consistency")):
        truth = cyclic_rows(*sample(0, 20_000))[place].mean()
        held = 0
        for seed in range(1, 41):
            results = flat_numbers(cyclic_consistencies(*sample(seed, 80))[0])
            held += results[f"{name}_ci_low"] <= truth <= results[f"{name}_ci_high"]
        assert held >= 34  # of 40; 38 are expected


def write_labels(folder, name, colours):
    """The pictures of some colours, labelled "<colour> <shape>"."""
    rows = [f"{c}_{s}.png,{c} {s}" for s in SHAPES for c in colours]
    (folder / name).write_text("\n".join(["image,label", *rows]))
    return folder / name


@pytest.fixture
def folder(tmp_path):
    write_pairs(tmp_path)
    write_labels(tmp_path, "train.csv", COLOURS)
    write_labels(tmp_path, "test.csv", ["red", "blue", "grey"])
    (tmp_path / "pairs.csv").write_text("image,caption\nred_disc.png,red disc\nred_bar.png,red bar")
    groups = {shape: [f"{colour} {shape}" for colour in COLOURS] for shape in SHAPES}
    (tmp_path / "groups.json").write_text(json.dumps(groups))
    return tmp_path


def settings(folder, **more):
    data = {"train": folder / "train.csv", "test": folder / "test.csv"}
    hierarchy = {"superclasses": folder / "groups.json", "templates": ("the {}",)}
    return data | hierarchy | {"pairs": folder / "pairs.csv"} | more


@pytest.mark.parametrize("batch_size", [5, 24])
def test_a_model_that_sees_everything_is_consistent_and_right(folder, tmp_path, batch_size):
    evaluate = Consistency("x", **settings(folder)).open()
    results = flat_numbers(evaluate(fake_encoders(batch_size), Output(tmp_path / "details")))
    for name in ("consistency@1", "zeroshot_top1", "knn_top1@1", "fine_top1", "coarse_top1"):
        assert (results[name], results[f"{name}_ci_low"]) == (1.0, 1.0)
    assert (results["images"], results["train_images"], results["pairs"]) == (18, 24, 2)
    assert results["inmodal_consistency"] == results["crossmodal_consistency"] == 0.0
    agreement = json.loads((tmp_path / "details" / "agreement.json").read_text())
    assert agreement["k"] == [1, 3, 5, 10] and agreement["both_right"][0] == 1.0


def test_a_model_that_mixes_up_two_colours_is_consistently_wrong(folder):
    """Both in image space: the training images of red are where the test images of red are."""
    swap = {"red": "blue", "blue": "red"}
    encoders = fake_encoders(8, misread=lambda colour: swap.get(colour, colour))
    results = flat_numbers(Consistency("x", **settings(folder)).open()(encoders, Output()))
    assert results["knn_top1@1"] == 1.0
    assert results["consistency@1"] == results["zeroshot_top1"] == pytest.approx(1 / 3)
    assert results["coarse_top1"] == 1.0 and results["fine_top1"] == pytest.approx(1 / 3)


def test_a_collapsed_model_is_not_consistent(folder):
    encoders = fake_encoders(8)
    object.__setattr__(encoders, "encode_features", lambda images: np.ones((len(images), 25)))
    results = flat_numbers(Consistency("x", **settings(folder)).open()(encoders, Output()))
    assert results["consistency@1"] == results["zeroshot_top1"] == results["coarse_top1"] == 0.0


def test_a_set_is_not_compared_with_itself(folder):
    with pytest.raises(UserError, match=r"x.train and config.evals.x.test are the same pictures"):
        Consistency("x", **settings(folder, test=folder / "train.csv")).open()


@pytest.mark.parametrize("templates", ["a {}", ("a photo",), ()])
def test_templates_that_name_no_class_are_refused_at_once(folder, templates):
    with pytest.raises(UserError, match=r"config.evals.x.templates"):
        Consistency("x", **settings(folder, templates=templates)).open()


def test_cifar_100_has_twenty_superclasses_of_five():
    classes = [name for names in SUPERCLASSES["cifar100"].values() for name in names]
    assert len(SUPERCLASSES["cifar100"]) == 20 and len(set(classes)) == len(classes) == 100
    by_class = read_superclasses("cifar100", config_key="x")
    assert superclass_of_each(["Maple Tree", "bee"], by_class, config_key="x") == [
        "trees",
        "insects",
    ]


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "no file and none of cifar100"),
        ('["a"]', r"is not \{superclass"),
        ('{"a": ["red disc"], "b": ["Red Disc"]}', "has 'red_disc' in 'a' and in 'b'"),
        ('{"a": ["red disc"]}', "no superclass for 'blue bar'"),
    ],
)
def test_what_is_wrong_with_superclasses_is_said_at_once(folder, content, message):
    path = folder / "superclasses.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=message):
        Consistency("x", **settings(folder, superclasses=str(path))).open()
