import dataclasses
import json

import pytest

from cyclip_jax import evals
from cyclip_jax.evals.flat import flattened
from tests.evals.fakes import fake_encoders
from tests.pictures import write_pairs


def test_pictures_and_texts_are_embedded_once_for_all_evaluations(tmp_path):
    pairs = write_pairs(tmp_path)
    test = tmp_path / "test.csv"
    test.write_text("\n".join(pairs.read_text().splitlines()[:13]))
    settings = {"train": str(pairs), "test": str(test), "label_key": "caption"}
    chosen = {
        "retrieval": {"type": "retrieval", "pairs": str(pairs), "source": "csv"},
        "geometry": {"type": "geometry", "pairs": str(pairs), "image_key": "image"},
        "consistency": {"type": "consistency", **settings, "templates": ("{}",)},
        "probe": {"type": "linear_probe", **settings, "epochs": 1},
    }
    encoders, pictures, texts = fake_encoders(8), [], []

    def encode_features(images):
        pictures.append(len(images))
        return encoders.encode_features(images)

    def encode_text(tokens):
        texts.append(len(tokens))
        return encoders.encode_text(tokens)

    counting = dataclasses.replace(
        encoders, encode_features=encode_features, encode_text=encode_text
    )
    results = flattened(evals.evaluate(evals.create_evaluators(chosen), counting, directory=None))
    assert sum(pictures) == 24 + 2 * 8  # 12 in batches of 8
    assert (results["retrieval/images"], results["consistency/images"]) == (24, 12)
    assert sum(texts) == 2 * 24  # the captions in file order, and as classes in theirs


def test_results_are_written_in_clip_benchmarks_layout(tmp_path):
    pairs = write_pairs(tmp_path / "data")
    chosen = {"flickr": {"type": "retrieval", "pairs": str(pairs)}}
    evaluators = evals.create_evaluators(chosen)
    evals.evaluate(
        evaluators,
        fake_encoders(8),
        directory=tmp_path / "evals",
        model="RN50",
        checkpoint="runs/cc3m",
    )
    written = json.loads((tmp_path / "evals" / "clip_benchmark" / "flickr.json").read_text())
    assert written.pop("metrics") == {
        f"{target}_retrieval_recall@{k}": 1.0 for target in ("image", "text") for k in (1, 5, 10)
    }
    assert written == {
        "dataset": "flickr",
        "model": "RN50",
        "pretrained": "runs/cc3m",
        "task": "zeroshot_retrieval",
        "language": "en",
    }


def test_an_evaluation_that_fails_loses_nothing_of_the_others(tmp_path):
    pairs = write_pairs(tmp_path)
    (tmp_path / "gone.csv").write_text("image,caption\ngone.png,a red disc\n")
    chosen = {
        "gone": {"type": "retrieval", "pairs": str(tmp_path / "gone.csv")},
        "none": None,
        "there": {"type": "retrieval", "pairs": str(pairs)},
    }
    evaluators = evals.create_evaluators(chosen)
    assert evaluators.keys() == {"gone", "there"}
    with pytest.raises(
        evals.EvaluationFailed, match=r"the evaluation gone failed: none of"
    ) as error:
        evals.evaluate(evaluators, fake_encoders(8), directory=None)
    assert error.value.results["there"]["image_to_text_recall@1"].value == 1.0


def test_what_could_not_be_read_is_counted(tmp_path):
    pairs = write_pairs(tmp_path)
    evaluators = evals.create_evaluators({"val": {"type": "retrieval", "pairs": str(pairs)}})
    results = evals.evaluate(evaluators, fake_encoders(8), directory=None)
    assert "unreadable" not in results["val"]
    for name in ("red_disc.png", "blue_bar.png"):
        (tmp_path / name).write_bytes(b"no picture")
    results = flattened(evals.evaluate(evaluators, fake_encoders(8), directory=None))
    assert (results["val/unreadable"], results["val/images"]) == (2, 22)
