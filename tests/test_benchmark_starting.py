"""The map of where CyCLIP begins to learn."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import starting


@pytest.fixture
def few_pairs(monkeypatch):
    """Eight pairs of each split, and runs of three steps of which two are in warm-up."""
    monkeypatch.setattr(starting, "STEPS", 3)
    monkeypatch.setattr(starting, "WARMUP", 2)
    monkeypatch.setattr(starting, "LAST", 1)
    draws = np.random.default_rng(0)
    images = draws.standard_normal((8, 32, 32, 3)).astype(np.float32)
    tokens = draws.integers(1, starting.VOCAB_SIZE, (8, starting.CONTEXT_LENGTH))
    return dict.fromkeys(("train", "new_drawings"), (images, tokens))


def test_a_run_is_a_function_of_its_cell_and_terms_that_grow_in_are_others(few_pairs):
    run = starting.make_run("ViT-tiny", 4, few_pairs)
    whole, again, grown, none = (run(0, *cell) for cell in ((1.0, 0), (1.0, 0), (1.0, 2), (0.0, 0)))
    assert whole == again
    assert len({each["share_of_log_n"] for each in (whole, grown, none)}) == 3
    assert all(1 <= each["rank"] <= 4 and 0 <= each["mean_recall"] <= 1 for each in (whole, none))


def test_mean_recall_is_by_hand():
    # Of three images the first finds its text first, the second second, and the third last; the
    # texts find theirs first, third and second.
    similarities = jnp.array([[0.9, 0.1, 0.2], [0.1, 0.3, 0.8], [0.5, 0.6, 0.4]])
    recall = starting.mean_recall(similarities, jnp.eye(3))
    assert recall == pytest.approx((1 / 3 + 1 + 1 + 1 / 3 + 1 + 1) / 6)


def test_without_a_weight_there_is_no_warmup():
    cells = list(starting.cells(("a",), (4,), (0.0, 0.25), (0, 1)))
    assert [(cell["seed"], cell["weight"], cell["warmup"]) for cell in cells] == [
        (seed, *kind) for seed in (0, 1) for kind in ((0.0, 0), (0.25, 0), (0.25, starting.WARMUP))
    ]


def test_what_has_its_line_is_not_run_again_and_the_map_is_drawn(few_pairs, tmp_path, monkeypatch):
    ran = []

    def make_run(tower, batch_size, data):
        def run(*cell):
            ran.append((tower, batch_size, *cell))
            return {"share_of_log_n": 0.5, "rank": 2.0, "mean_recall": 0.1}

        return run

    monkeypatch.setattr(starting, "load", lambda folder: few_pairs)
    monkeypatch.setattr(starting, "make_run", make_run)
    arguments = [f"--output={tmp_path}", "--towers=ViT-tiny", "--batches=4,8"]
    starting.main([*arguments, "--weights=0"])
    starting.main([*arguments, "--weights=0,1"])
    warmups = (0, starting.WARMUP)
    of_weight = [("ViT-tiny", batch, 0, 1.0, warmup) for batch in (4, 8) for warmup in warmups]
    assert ran == [("ViT-tiny", 4, 0, 0.0, 0), ("ViT-tiny", 8, 0, 0.0, 0), *of_weight]
    lines = (tmp_path / "runs.jsonl").read_text().splitlines()
    assert len(lines) == len(ran) and json.loads(lines[0])["share_of_log_n"] == 0.5
    assert (tmp_path / "starting.png").stat().st_size > 10_000
