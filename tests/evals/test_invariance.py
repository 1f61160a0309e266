"""Neither padding, nor the batch size, nor the number of devices changes any result."""

import json

import jax
import numpy as np
import pytest

from cyclip_jax import evals, parallel
from cyclip_jax.inference import Model
from cyclip_jax.models.clip import split_model
from tests import tiny
from tests.pictures import COLOURS, SHAPES, write_pairs

# Of a group of batch_size pairs, as in training.
OF_BATCHES = {
    f"pairs/{name}"
    for name in (
        "loss",
        "contrastive_loss",
        "inmodal_cyclic_loss",
        "crossmodal_cyclic_loss",
        "image_to_text_accuracy",
        "text_to_image_accuracy",
    )
}
WORDS = ["a", *COLOURS, *SHAPES]


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """Every evaluator, on 24 pictures and one that cannot be read."""
    folder = tmp_path_factory.mktemp("invariance")
    pairs = write_pairs(folder)
    with open(pairs, "a") as file:
        file.write("broken.png,a red disc\n")
    (folder / "broken.png").write_bytes(b"no picture")
    labels = [f"{c}_{s}.png,{s}" for s in SHAPES for c in COLOURS]
    (folder / "labels.csv").write_text("\n".join(["image,label", *labels, "broken.png,disc"]))
    few = "\n".join(["image,label", *labels[::3]])
    (folder / "test").mkdir()
    for name in labels[::3]:
        picture = name.partition(",")[0]
        (folder / "test" / picture).write_bytes((folder / picture).read_bytes())
    (folder / "test" / "labels.csv").write_text(few)
    choices = [
        {"image": f"red_{s}.png", "caption": f"a red {s}", "negative_caption": f"a blue {s}"}
        for s in SHAPES
    ]
    (folder / "choices.json").write_text(json.dumps(choices))
    labelled = {"train": str(folder), "test": str(folder / "test")}
    zeroshot = {"folder": str(folder)}
    return {
        "zeroshot": {"type": "zeroshot", **zeroshot},
        "pairs": {"type": "retrieval", "pairs": str(pairs)},
        "adamw": {"type": "linear_probe", **labelled, "epochs": 2},
        "lbfgs": {
            "type": "linear_probe",
            **labelled,
            "method": "lbfgs",
            "regularization": 1.0,
        },
        "few_shot": {"type": "few_shot", **labelled, "shots": (1,), "seeds": 2},
        "gda": {"type": "gda", **labelled, "alpha": 1.0},
        "consistency": {"type": "consistency", **labelled, "pairs": str(pairs)},
        "geometry": {"type": "geometry", "pairs": str(pairs)},
        "robustness": {
            "type": "robustness",
            "reference": zeroshot,
            "shifts": {"imagenetv2": {"folder": str(folder / "test")}},
        },
        "choices": {"type": "compositional", "examples": str(folder / "choices.json")},
    }


def tokenize(texts):
    """Ids of the known words, others as one; 63 ends a text."""
    tokens = np.zeros((len(texts), 8), np.int32)
    for row, text in zip(tokens, texts, strict=True):
        words = [word.strip(".") for word in text.split()][:7]
        row[: len(words)] = [WORDS.index(word) + 1 if word in WORDS else 40 for word in words]
        row[len(words)] = 63
    return tokens


def results_on(devices, batch_size, settings):
    """All metrics in double precision."""
    config = tiny.get_config()
    config.batch_size = batch_size
    config.model.name, config.model.dtype = "ViT-tiny", "float64"
    config.model.vision_layers, config.model.vision_heads = 1, 1
    model = Model(config, parallel.create_mesh(jax.devices()[:devices]))
    _, params, batch_stats = split_model(model.create())
    placed = parallel.place({"params": params, "batch_stats": batch_stats}, model.abstract)
    encoders = model.encoders(**placed, tokenize=tokenize)
    return evals.evaluate(evals.create_evaluators(settings), encoders, directory=None)


@pytest.fixture(scope="module")
def of_one_device(settings):
    with jax.enable_x64(True):
        return results_on(1, 5, settings)


@pytest.mark.parametrize("devices, batch_size", [(1, 25), (8, 16), (8, 40)])
def test_all_evaluators_give_what_one_device_gives(settings, of_one_device, devices, batch_size):
    with jax.enable_x64(True):
        results = results_on(devices, batch_size, settings)
    assert {name.partition("/")[0] for name in results} == settings.keys()
    assert results.keys() == of_one_device.keys()
    kept = [name for name in results if name not in OF_BATCHES]
    np.testing.assert_allclose(
        [results[name] for name in kept],
        [of_one_device[name] for name in kept],
        rtol=1e-7,
        atol=1e-10,
    )
    assert results["pairs/images"] == results["zeroshot/images"] == 24


def test_the_settings_name_every_evaluator(settings):
    assert {one["type"] for one in settings.values()} == evals.EVALUATORS.keys()
