"""Probes for which attribute belongs to which thing, on towers that know it, or do not."""

import json

import numpy as np
import pytest
from PIL import Image

from cyclip_jax.errors import UserError
from cyclip_jax.evals import Encoders, Output
from cyclip_jax.evals.binding import Binding
from cyclip_jax.evals.data.scenes import open_scenes
from cyclip_jax.evals.statistics.unit_norm import unit_rows

COLOURS, NOUNS = ("red", "green", "blue"), ("cube", "ball")
ALL = [(one, other) for one in COLOURS for other in COLOURS if one != other]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Two files of pictures, each of which says by its first pixel which scene it shows."""
    folder = tmp_path_factory.mktemp("scenes")
    for name, copies in (("train", 4), ("test", 2)):
        rows = []
        for number, (one, other) in enumerate(copies * ALL):
            picture = np.full((8, 8, 3), number % len(ALL), np.uint8)
            Image.fromarray(picture).save(folder / f"{name}_{number}.png")
            things = [[one, "cube"], [other, "ball"]]
            rows.append({"image": f"{name}_{number}.png", "things": things})
        (folder / f"{name}.json").write_text(json.dumps(rows))
    return folder


def embeds_of(one, other, *, knows, rng):
    """Both colours, and whose they are where that is known, with noise."""
    width = len(COLOURS)
    bag = np.zeros(width)
    bag[[COLOURS.index(one), COLOURS.index(other)]] = 1
    bound = np.zeros(width)
    bound[COLOURS.index(one)] = 1
    return np.concatenate([bag, bound if knows else np.zeros(width)]) + rng.normal(
        0, 0.02, 2 * width
    )


def encoders(image_knows, text_knows):
    rng = np.random.default_rng(0)

    def image(pictures):
        rows = [embeds_of(*ALL[p[0, 0, 0]], knows=image_knows, rng=rng) for p in pictures]
        return np.array(rows, np.float32)

    def text(tokens):
        rows = [embeds_of(*ALL[token], knows=text_knows, rng=rng) for token in tokens[:, 0]]
        return unit_rows(np.array(rows, np.float32))

    def tokenize(texts):
        words = [text.split() for text in texts]
        return np.array([[ALL.index((w[1], w[5]))] for w in words], np.int32)

    return Encoders(
        encode_features=image,
        encode_text=text,
        gather=lambda rows: rows,
        loss=lambda images, texts: {},
        tokenize=tokenize,
        image_size=8,
        batch_size=6,
    )


def scored(scenes, *knows, output=None):
    settings = {"train": str(scenes / "train.json"), "test": str(scenes / "test.json")}
    run = Binding("binding", **settings).open()
    return run(encoders(*knows), output or Output(None))


@pytest.mark.parametrize("image_knows, text_knows", [(True, False), (False, True), (True, True)])
def test_each_probe_tells_whether_its_tower_knows_whose_attribute_it_is(
    scenes, image_knows, text_knows
):
    """Who knows both colours and not whose they are is right by half, which is chance."""
    metrics = scored(scenes, image_knows, text_knows)
    for tower, knows in (("image", image_knows), ("text", text_knows)):
        metric = metrics[f"{tower}_binding"]
        assert metric.value == 1 if knows else metric.value < 0.8
        assert metric.chance == 0.5
    assert metrics["images"].value == 12 and metrics["things"].value == 24
    both = image_knows and text_knows
    nearer = metrics["cross_modal_binding"]
    assert (nearer.value == 1) == both and nearer.chance == 0.5


def test_outcomes_are_of_every_thing_and_picture(scenes, tmp_path):
    scored(scenes, True, False, output=Output(tmp_path))
    with np.load(tmp_path / "outcomes.npz") as outcomes:
        assert len(outcomes["things/index"]) == 24 and outcomes["things/image_binding"].all()
        assert outcomes["images/cross_modal_binding"].shape == (12,)


def test_captions_say_what_is_there_and_what_is_not(scenes):
    found = open_scenes(str(scenes / "train.json"), images=None, config_key="config.evals.x.train")
    template = "a {attribute} {noun}"
    assert found.captions(template)[0] == "a red cube and a green ball"
    assert found.swapped_captions(template)[0] == "a green cube and a red ball"


@pytest.mark.parametrize(
    "row, message",
    [
        ({"image": "a.png"}, "example 1 is not"),
        ({"image": "a.png", "things": [["red", "cube"]]}, "needs two things or more"),
        ({"image": "a.png", "things": [["red", "cube"], ["red", "ball"]]}, "differ in attribute"),
        ({"image": "a.png", "things": ["red cube"]}, "example 1 is not"),
    ],
)
def test_files_that_say_something_else_are_refused(tmp_path, row, message):
    (tmp_path / "scenes.json").write_text(json.dumps([row]))
    with pytest.raises(UserError, match=message):
        open_scenes(str(tmp_path / "scenes.json"), images=None, config_key="config.evals.x.train")


def test_a_noun_with_one_attribute_has_no_probe(scenes, tmp_path):
    rows = [{"image": "train_0.png", "things": [["red", "cube"], ["green", "ball"]]}]
    (tmp_path / "one.json").write_text(json.dumps(rows))
    settings = {"train": str(tmp_path / "one.json"), "test": str(scenes / "test.json")}
    run = Binding("binding", images=str(scenes), **settings).open()
    with pytest.raises(UserError, match="with two attributes"):
        run(encoders(True, True), Output(None))
