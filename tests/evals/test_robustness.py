import dataclasses
import json
import types

import numpy as np
import pytest
import tensorflow as tf

from cyclip_jax import defaults
from cyclip_jax.data.images import decode
from cyclip_jax.errors import UserError
from cyclip_jax.evals import Encoders, Output, create_evaluators
from cyclip_jax.evals.flat import flat_numbers
from cyclip_jax.evals.robustness import (
    LINES,
    Line,
    Robustness,
    common_classes,
    effective_robustness,
    fit_line,
    hits_among,
    read_models,
)
from cyclip_jax.evals.statistics.classification import Embedded
from tests.evals.fakes import fake_encoders
from tests.pictures import COLOURS, SHAPES, write_pairs

CLASSES = [f"{colour} {shape}" for shape in SHAPES for colour in COLOURS]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    write_pairs(folder)
    return folder


def labelled(pictures, name, classes):
    """A CSV of the pictures of some classes, by name, and settings that open it."""
    path = pictures / name / "labels.csv"
    path.parent.mkdir(exist_ok=True)
    rows = [f"../{c.replace(' ', '_')}.png,{c}" for c in classes]
    path.write_text("\n".join(["image,label", *rows]))
    return {"folder": str(path.parent)}


@pytest.fixture
def encode_at_once(monkeypatch):
    """Pictures go to the encoder as they are, without the batches of a run, which take a second."""

    def features(self, images):
        files = [images.source.read(index).image for index in range(len(images.source))]
        pixels = np.stack([decode(tf.constant(file)).numpy() for file in files])
        return self.encode_features(pixels), np.arange(len(files))

    monkeypatch.setattr(Encoders, "image_features", features)


@pytest.fixture(scope="module")
def settings(pictures):
    """All classes; those of discs and squares; all again with its red ones twice."""
    template = {"classes": ["red disc"], "templates": ["a photo of a {}"]}
    (pictures / "templates.json").write_text(json.dumps({"templates": template["templates"]}))
    reds = [name for name in CLASSES if name.startswith("red")]
    shifts = {
        "imagenetv2": labelled(pictures, "v2", CLASSES + reds),
        "part": labelled(pictures, "part", [n for n in CLASSES if "disc" in n or "square" in n]),
    }
    settings = {"reference": labelled(pictures, "reference", CLASSES), "shifts": shifts}
    for own in (settings["reference"], *shifts.values()):
        own["classes"] = str(pictures / "templates.json")
    return settings


def test_effective_robustness_by_hand(settings, encode_at_once, tmp_path):
    """Red is taken for blue and blue for red: half of all is right, and 12 of 30 with red twice."""
    swap = {"red": "blue", "blue": "red"}
    encoders = fake_encoders(8, misread=lambda colour: swap.get(colour, colour))
    results = flat_numbers(Robustness("x", **settings).open()(encoders, Output(tmp_path)))
    assert results["reference_top1"] == 0.5 and results["images"] == 24
    assert results["imagenetv2_top1"] == 0.4 and results["imagenetv2_images"] == 30
    assert abs(results["imagenetv2_effective"] - (0.4 - (1.2 * 0.5 - 0.09))) < 1e-12
    assert results["part_top1"] == 0.5 and "part_effective" not in results
    content = json.loads((tmp_path / "robustness.json").read_text())
    assert content["reference"]["accuracy"] == 0.5 and content["models"] == []
    v2, part = content["shifts"]
    assert v2["line"] == {"slope": 1.2, "intercept": -0.09, "scale": "linear"}
    assert (v2["name"], v2["accuracy"], v2["low"] <= 0.4 <= v2["high"]) == ("imagenetv2", 0.4, True)
    assert v2["effective"] == results["imagenetv2_effective"]
    assert part["line"] is None and part["effective"] is None


def test_a_shift_with_a_part_of_the_classes_is_beside_the_reference_on_these(
    settings, encode_at_once, tmp_path
):
    """Squares look like bars first, no class of the shift, and then red ones like grey ones."""
    (tmp_path / "models.csv").write_text("model,reference,part\na,0.2,0.1\nb,0.8,0.7\n")
    encoders = fake_encoders(8)
    table = np.eye(25)
    for number, name in enumerate(CLASSES):
        if "square" in name:
            own = CLASSES.index(name.replace("red", "grey"))
            bar = CLASSES.index(name.replace("square", "bar"))
            table[number] = 0.6 * np.eye(25)[own] + 0.8 * np.eye(25)[bar]
    seen = encoders.encode_features
    encoders = dataclasses.replace(
        encoders, encode_features=lambda images: table[seen(images).argmax(axis=1)]
    )
    evaluate = Robustness("x", **settings, models=tmp_path / "models.csv", scale="linear").open()
    results = flat_numbers(evaluate(encoders, Output()))
    assert results["reference_top1"] == 20 / 24
    assert results["part_reference"] == results["part_top1"] == 7 / 8
    assert abs(results["part_effective"] - 0.1) < 1e-12  # the line is accuracy − 0.1


def test_a_line_through_logits_meets_models_that_lie_on_one():
    reference = np.array([0.3, 0.5, 0.8])
    odds = np.exp(0.7) * (reference / (1 - reference)) ** 1.3
    line = fit_line(reference, odds / (1 + odds), "logit", "")
    assert abs(line.slope - 1.3) < 1e-12 and abs(line.intercept - 0.7) < 1e-12
    np.testing.assert_allclose(line(reference), odds / (1 + odds), rtol=0, atol=1e-12)


def test_a_line_is_the_least_squares_one():
    line = fit_line(np.array([0.0, 0.5, 1.0]), np.array([0.1, 0.2, 0.6]), "linear", "")
    assert abs(line.slope - 0.5) < 1e-12 and abs(line.intercept - 0.05) < 1e-12


def test_extreme_accuracies_have_finite_lines():
    line = Line(-2.0, 0.5, "logit")
    np.testing.assert_allclose(line(np.array([0.0, 1.0])), [1, 0], atol=1e-9)


def test_a_line_promises_no_accuracy_below_0_or_above_1():
    line = Line(2.0, -0.5, "linear")
    np.testing.assert_array_equal(line(np.array([0.1, 0.5, 0.9])), [0, 0.5, 1])


def classes_of(keys, names, labels=None):
    labels = np.arange(len(keys)) if labels is None else np.array(labels)
    return types.SimpleNamespace(keys=keys, classes=names, labels=labels, path="/data")


def test_classes_in_common_are_told_by_wordnet_ids_or_names_and_never_by_numbers():
    ids, names = ["n00000001", "n00000002", "n00000003", "n00000004"], ["a", "x", "x", "b"]
    by_id, by_number = classes_of(ids, names), classes_of(["0", "1", "2", "3"], names)
    np.testing.assert_array_equal(common_classes(by_id, classes_of(ids[2:], ["x", "b"])), [2, 3])
    # The shift's 0 and 1 are other classes; of one name both take part.
    shift = classes_of(["0", "1"], ["x", "b"])
    np.testing.assert_array_equal(common_classes(by_number, shift), [1, 2, 3])
    np.testing.assert_array_equal(common_classes(by_id, shift), [1, 2, 3])
    np.testing.assert_array_equal(common_classes(by_number, by_id), [0, 1, 2, 3])


def test_classes_that_are_not_in_common_are_refused():
    reference = classes_of(["n00000001", "n00000002"], ["a", "b"], labels=[0, 0])
    for shift in (classes_of(["0", "1"], ["a", "c"]), classes_of(["n00000003"], ["a"])):
        with pytest.raises(UserError, match=r"1 classes of /data are none of /data: (c|n0.*3);"):
            common_classes(reference, shift)
    with pytest.raises(UserError, match="has no image of the classes of"):
        common_classes(reference, classes_of(["0"], ["b"]))
    embedded = Embedded(np.ones((1, 2)), np.eye(2), np.array([0]), np.array([0]))
    with pytest.raises(UserError, match="none can be read"):
        hits_among(embedded, reference, np.array([1]))


def test_classes_in_common_are_looked_for_when_the_data_are_opened(settings, pictures):
    other = labelled(pictures, "other", CLASSES[:2])
    (pictures / "other.json").write_text('{"classes": {"red square": "x", "green square": "y"}}')
    shifts = {"other": other | {"classes": str(pictures / "other.json")}}
    with pytest.raises(UserError, match=r"2 classes of .* are none of .*: x, y;"):
        Robustness("x", reference=settings["reference"], shifts=shifts).open()


def test_the_published_line_is_in_percentage_points():
    """1.2 · 20.03 − 9 = 15.036."""
    assert abs(LINES["imagenetv2"](0.2003) - 0.15036) < 1e-12


def test_the_interval_has_both_sets_in_it():
    rng = np.random.default_rng(1)
    hits, reference = rng.random(400) < 0.4, rng.random(900) < 0.6
    line = Line(1.5, -0.3, "linear")
    results = flat_numbers({"e": effective_robustness(hits, reference, line)})
    p, q = hits.mean(), reference.mean()
    assert abs(results["e"] - (p - 1.5 * q + 0.3)) < 1e-12
    deviation = np.sqrt(p * (1 - p) / 400 + 1.5**2 * q * (1 - q) / 900)
    width = results["e_ci_high"] - results["e_ci_low"]
    assert abs(width / (2 * 1.96 * deviation) - 1) < 0.1


@pytest.mark.parametrize("unit", [1, 100])
def test_models_are_in_percent_or_fractions(tmp_path, unit):
    path = tmp_path / "models.csv"
    path.write_text(
        f"model, reference, v2, other\na, {0.5 * unit}, {0.25 * unit}, x\nb,{unit},,y\n"
    )
    assert read_models(path, ["v2", "r"]) == [
        {"model": "a", "reference": 0.5, "v2": 0.25},
        {"model": "b", "reference": 1.0, "v2": None},
    ]


def test_models_may_begin_with_a_byte_order_mark_and_must_be_there(tmp_path):
    path = tmp_path / "models.csv"
    path.write_bytes(b"\xef\xbb\xbfmodel,reference,v2\na,0.5,0.25\n")
    assert read_models(path, ["v2"]) == [{"model": "a", "reference": 0.5, "v2": 0.25}]
    with pytest.raises(UserError, match=r"none\.csv cannot be read"):
        read_models(tmp_path / "none.csv", ["v2"])
    path.write_bytes(b"model,reference,v2\n\xff,1,1\n")
    with pytest.raises(UserError, match=r"models\.csv cannot be read"):
        read_models(path, ["v2"])


@pytest.mark.parametrize(
    "models, scale, message",
    [
        ("model,reference\na,1\n", "logit", "needs rows with the columns model, reference and one"),
        ("model,reference,part\n", "logit", "needs rows"),
        ("model,reference,part\na,x,1\n", "logit", "reference of a is no number: x"),
        ("model,reference,part\na,120,1\n", "logit", "above 100 %"),
        ("model,reference,part\na,20,0\nb,30,20\n", "logit", "part: 0 and 100 % have no logit"),
        ("model,reference,part\na,20,10\nb,20,20\n", "linear", "two models of different accuracy"),
        ("model,reference,part\na,20,10\n", "cubic", "scale is 'cubic'"),
    ],
)
def test_what_is_wrong_with_the_models_is_said(settings, tmp_path, models, scale, message):
    (tmp_path / "models.csv").write_text(models)
    with pytest.raises(UserError, match=message):
        Robustness("x", **settings, models=tmp_path / "models.csv", scale=scale).open()


def test_what_is_wrong_with_the_settings_is_said(settings):
    reference = settings["reference"]
    with pytest.raises(UserError, match=r"config\.evals\.x\.shifts\.v2: .*'splt'"):
        Robustness("x", reference=reference, shifts={"v2": {"folder": "/data", "splt": "x"}}).open()
    with pytest.raises(UserError, match=r"config\.evals\.x\.reference\.folder is empty"):
        Robustness("x", reference={"folder": None}, shifts={}).open()
    with pytest.raises(UserError, match=r"x\.reference\.type is 'gda'"):
        Robustness("x", reference={"type": "gda", "train": "a", "test": "b"}, shifts={}).open()
    with pytest.raises(UserError, match="shifts is empty"):
        Robustness("x", reference=reference, shifts={"v2": None, "r": {"folder": None}}).open()


def test_a_config_file_names_it(settings):
    typed = {
        "reference": defaults.zeroshot(**settings["reference"]),
        "shifts": {name: defaults.zeroshot(**own) for name, own in settings["shifts"].items()},
    }
    assert create_evaluators({"typed": defaults.robustness(**typed)}).keys() == {"typed"}
    evals = {"robust": defaults.robustness(**settings), "absent": defaults.robustness(None, {})}
    assert create_evaluators(evals).keys() == {"robust"}
