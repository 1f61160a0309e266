"""LABCLIP: a matrix for text embeddings, learned, scored, and folded into an export."""

import json

import numpy as np
import pytest

from cyclip_jax import load
from cyclip_jax.errors import UserError
from cyclip_jax.evals import Output
from cyclip_jax.evals.compositional import Compositional
from cyclip_jax.evals.labclip import Labclip, train_text_map
from cyclip_jax.evals.statistics.unit_norm import unit_rows
from cyclip_jax.export import export_checkpoint
from tests.conftest import unit_rows as random_rows
from tests.evals.fakes import fake_encoders
from tests.pictures import write_pairs

N, D = 256, 6


def rotated(seed=0):
    """Images, and texts that are the same but for a rotation R: (images, texts, R)."""
    images = random_rows(seed, N, D, np.float32)
    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(D, D)))[0].astype(np.float32)
    return images, images @ rotation, rotation


def accuracy(images, texts):
    return np.mean((images @ texts.T).argmax(axis=1) == np.arange(len(images)))


def test_it_finds_a_rotation_between_the_towers():
    images, texts, rotation = rotated()
    assert accuracy(images, texts) < 0.1
    learned = train_text_map(images, texts, epochs=400, batch_size=N, learning_rate=0.03, seed=0)
    assert accuracy(images, unit_rows(texts @ learned)) > 0.98
    direction = learned / np.linalg.norm(learned) * np.sqrt(D)
    assert np.abs(direction - rotation.T).max() < 0.1


def test_what_is_learned_follows_from_the_seed_and_looks_at_wrong_texts():
    images, texts, _ = rotated()
    wrong = random_rows(5, N, D, np.float32)
    settings = {"epochs": 2, "batch_size": 100, "learning_rate": 1e-3}
    has = np.arange(N) % 2 == 0
    first = train_text_map(images, texts, wrong, has, **settings, seed=3)
    again = train_text_map(images, texts, wrong, has, **settings, seed=3)
    np.testing.assert_array_equal(first, again)
    for other in (
        train_text_map(images, texts, wrong, has, **settings, seed=4),
        train_text_map(images, texts, wrong, ~has, **settings, seed=3),
        train_text_map(images, texts, **settings, seed=3),
    ):
        assert not np.array_equal(first, other)
    nothing = train_text_map(images, texts, **settings | {"learning_rate": 0.0}, seed=3)
    np.testing.assert_array_equal(nothing, np.eye(D))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """(pairs with a wrong caption each, choices) of 24 pictures."""
    folder = tmp_path_factory.mktemp("labclip")
    pairs = write_pairs(folder)
    header, *rows = pairs.read_text().splitlines()
    wrong = [row.rpartition(",")[2] for row in rows[1:] + rows[:1]]
    lines = [f"{header},wrong", *(f"{r},{w}" for r, w in zip(rows, wrong, strict=True))]
    pairs.write_text("\n".join(lines) + "\n")
    choices = [
        {"image": row.split(",")[0], "caption": row.split(",")[1], "negative_caption": w}
        for row, w in zip(rows, wrong, strict=True)
    ]
    (folder / "choices.json").write_text(json.dumps(choices))
    return str(pairs), str(folder / "choices.json")


@pytest.mark.parametrize("negatives", ["given", "swap", "none"])
def test_before_is_what_the_choices_are_without_it(files, negatives, tmp_path):
    pairs, choices = files
    key = {"negative_caption_key": "wrong"} if negatives == "given" else {}
    settings = {"train": pairs, "examples": choices, "negatives": negatives, **key}
    encoders = fake_encoders(8, misread=lambda colour: "red")
    found = Labclip("x", **settings).open()(encoders, Output(tmp_path))
    plain = Compositional("x", examples=choices).open()(encoders, Output(None))
    for name in ("accuracy", "macro_accuracy", "blind_accuracy"):
        assert found[f"{name}_before"].value == plain[name].value
        assert found[f"{name}_before"].interval == plain[name].interval
    assert found["train_pairs"].value == 24
    with np.load(tmp_path / "text_map.npz") as saved:
        assert not np.array_equal(saved["text_map"], np.eye(len(saved["text_map"])))


def test_an_export_has_the_matrix_in_its_projection(finished, tmp_path):
    text_map = np.random.default_rng(0).normal(size=(16, 16)).astype(np.float32)
    np.savez(tmp_path / "text_map.npz", text_map=text_map)
    for name, matrix in (("plain", None), ("mapped", tmp_path / "text_map.npz")):
        export_checkpoint(
            finished[0], export_format="open_clip", output=tmp_path / name, text_map=matrix
        )
    texts = []
    for name in ("plain", "mapped"):
        model, _, tokenize = load(tmp_path / name)
        texts.append(np.asarray(model.encode_text(tokenize(["a red disc", "a blue bar"]))))
    np.testing.assert_allclose(texts[1], texts[0] @ text_map, rtol=1e-4, atol=1e-5)
    np.savez(tmp_path / "narrow.npz", text_map=np.eye(3))
    (tmp_path / "text.npz").write_text("no matrix")
    for name, said in (("narrow", "has a matrix"), ("text", "is no text_map"), ("no", "not there")):
        with pytest.raises(UserError, match=said):
            export_checkpoint(
                finished[0],
                export_format="open_clip",
                output=tmp_path / "bad",
                text_map=tmp_path / f"{name}.npz",
            )
    assert not (tmp_path / "bad").exists()
