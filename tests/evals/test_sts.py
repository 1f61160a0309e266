import dataclasses

import numpy as np
import pytest
import scipy.stats

from cyclip_jax.errors import UserError
from cyclip_jax.evals import Output
from cyclip_jax.evals.flat import flat_numbers
from cyclip_jax.evals.statistics import intervals
from cyclip_jax.evals.sts import Sts
from tests.conftest import unit_rows
from tests.evals.fakes import fake_encoders


def encoders_of(vectors):
    """Encoders that give these texts these unit vectors, {text: [D]}."""
    names, table = list(vectors), np.array(list(vectors.values()))
    return dataclasses.replace(
        fake_encoders(8),
        tokenize=lambda texts: np.array([[names.index(text)] for text in texts], np.int32),
        encode_text=lambda tokens: table[tokens[:, 0]],
    )


def vectors_of(cosines):
    """{"a0": …, "b0": …}: pairs of vectors with these cosines."""
    found = {}
    for number, cosine in enumerate(cosines):
        found[f"a{number}"] = [1.0, 0.0]
        found[f"b{number}"] = [cosine, np.sqrt(1 - cosine**2)]
    return found


def write_table(path, scores, first="a{}", second="b{}"):
    rows = [f"{first.format(n)},{second.format(n)},{score}" for n, score in enumerate(scores)]
    path.write_text("\n".join(["sentence1,sentence2,score", *rows]))
    return path


def write_year(folder, scores):
    """A year of three subsets with these scores; the pairs are numbered through all of them."""
    year, number = folder / "STS" / "STS13-en-test", 0
    year.mkdir(parents=True)
    for subset, own in zip(("FNWN", "headlines", "OnWN"), scores, strict=True):
        pairs = [f"a{number + n}\tb{number + n}\n" for n in range(len(own))]
        number += len(own)
        (year / f"STS.input.{subset}.txt").write_text("".join(pairs))
        (year / f"STS.gs.{subset}.txt").write_text("".join(f"{score}\n" for score in own))


def write_benchmark(folder, scores):
    benchmark = folder / "STS" / "STSBenchmark"
    benchmark.mkdir(parents=True)
    rows = [f"x\tx\tx\t1\t{score}\ta{n}\tb{n}\n" for n, score in enumerate(scores)]
    (benchmark / "sts-test.csv").write_text("".join(rows))


def results_of(sentences, vectors, output=None, **settings):
    evaluate = Sts("x", sentences=str(sentences), **settings).open()
    return flat_numbers(evaluate(encoders_of(vectors), output or Output()))


def test_cosines_in_the_order_of_the_scores_have_one_and_in_reverse_minus_one(tmp_path):
    cosines = [0.1, 0.3, 0.35, 0.8, 0.9]
    table = write_table(tmp_path / "a.csv", cosines)
    results = results_of(table, vectors_of(cosines))
    assert results["spearman"] == results["spearman_ci_low"] == pytest.approx(1, rel=1e-15)
    assert results["pairs"] == 5 and results["sentences"] == 10
    table = write_table(tmp_path / "b.csv", cosines[::-1])
    assert results_of(table, vectors_of(cosines))["spearman"] == pytest.approx(-1, rel=1e-15)


def test_tied_scores_share_the_mean_of_their_ranks(tmp_path):
    table = write_table(tmp_path / "a.csv", [0, 1, 1, 3])
    results = results_of(table, vectors_of([0.1, 0.5, 0.2, 0.9]))
    assert results["spearman"] == pytest.approx(0.9486833, abs=1e-7)


def test_sentences_with_themselves_are_ties_whatever_their_embeddings_round_to(tmp_path):
    texts = {f"a{n}": row for n, row in enumerate(unit_rows(0, 40, 30).astype(np.float32))}
    table = write_table(tmp_path / "a.csv", range(40), second="a{}")
    assert results_of(table, texts)["spearman"] == 0


def test_a_year_is_one_list_of_pairs_and_wmean_the_mean_of_its_subsets(tmp_path):
    # The third subset has no gold, and so no pair.
    write_year(tmp_path, [(0, 1), (4, 5), ("",)])
    results = results_of(tmp_path, vectors_of([0.8, 0.9, 0.1, 0.2, 0.5]))
    assert results["sts13_spearman"] == results["spearman"] == pytest.approx(-0.6, rel=1e-12)
    assert results["sts13_spearman_wmean"] == results["spearman_wmean"] == 1
    assert results["pairs"] == 4


def test_a_large_subset_weighs_more_in_wmean(tmp_path):
    write_year(tmp_path, [(0, 1, 2, 3, 4, 5), (5, 4), (1, 2)])
    cosines = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.1, 0.2, 0.1, 0.2]
    results = results_of(tmp_path, vectors_of(cosines))
    assert results["sts13_spearman_wmean"] == pytest.approx((6 - 2 + 2) / 10, rel=1e-12)


def test_the_mean_is_over_tasks_and_uniformity_is_of_the_whole_benchmark(tmp_path):
    write_year(tmp_path, [(0, 1), (4, 5), ("",)])
    write_benchmark(tmp_path, [4.5, 4.0, 4.2])
    cosines = [0.8, 0.9, 0.1, 0.2, 0.5]
    output = Output(tmp_path / "details")
    results = results_of(tmp_path, vectors_of(cosines), output)
    of_benchmark = scipy.stats.spearmanr([4.5, 4, 4.2], cosines[:3]).statistic
    assert results["stsb_spearman"] == pytest.approx(of_benchmark)
    assert results["spearman"] == pytest.approx((of_benchmark - 0.6) / 2)
    assert results["spearman_wmean"] == pytest.approx((of_benchmark + 1) / 2)
    assert "stsb_spearman_wmean" not in results and results["pairs"] == 7
    # Scored above 4.0: two of three.
    assert results["text_alignment"] == pytest.approx(2 - 2 * np.mean([0.8, 0.1]), abs=1e-8)
    texts = np.array(list(vectors_of(cosines[:3]).values()))
    terms = [np.exp(-2 * np.sum((texts[j] - texts[k]) ** 2)) for k in range(6) for j in range(k)]
    assert results["text_uniformity"] == pytest.approx(np.log(np.mean(terms)))
    with np.load(tmp_path / "details" / "outcomes.npz") as arrays:
        assert list(arrays["sts13/subset"]) == ["FNWN", "FNWN", "headlines", "headlines"]
        assert list(arrays["positives/index"]) == [0, 2]
        np.testing.assert_allclose(arrays["stsb/cosine"], cosines[:3])


def test_a_table_has_an_alignment_where_positives_are_named(tmp_path):
    table = write_table(tmp_path / "a.csv", [0.1, 0.5, 0.7])
    vectors = vectors_of([0.1, 0.2, 0.4])
    assert "text_alignment" not in results_of(table, vectors)
    results = results_of(table, vectors, positive_from=0.3)
    assert results["text_alignment"] == pytest.approx(2 - 2 * 0.3, abs=1e-8)


def write_documents(folder, n):
    """n documents d0, d1, … with random scores; returns these and the settings of their files."""
    scores = np.random.default_rng(1).integers(10, size=(n, n)) / 10
    (folder / "a.cor").write_text("\n".join(f"d{j}" for j in range(n)))
    np.savetxt(folder / "a.txt", scores, fmt="%.1f")
    files = {"sentences": str(folder / "a.cor"), "similarities": str(folder / "a.txt")}
    return scores, files


def test_documents_are_drawn_and_make_no_pair_with_themselves(tmp_path, monkeypatch):
    monkeypatch.setattr(intervals, "RESAMPLES", 60)
    n = 9
    scores, files = write_documents(tmp_path, n)
    rows = unit_rows(0, n, 5)
    results = results_of(vectors={f"d{j}": row for j, row in enumerate(rows)}, **files)
    rng, drawn = np.random.default_rng(0), []
    for _ in range(60):
        draw = rng.integers(n, size=n)
        pairs = [(draw[a], draw[b]) for b in range(n) for a in range(b) if draw[a] != draw[b]]
        given = [rows[j] @ rows[k] for j, k in pairs]
        of_people = [scores[min(pair), max(pair)] for pair in pairs]
        drawn.append(scipy.stats.spearmanr(of_people, given).statistic)
    expected = np.percentile(drawn, [2.5, 97.5])
    found = [results["spearman_ci_low"], results["spearman_ci_high"]]
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    assert results["pairs"] == 36 and results["sentences"] == n


def test_pairs_are_drawn_where_few_share_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(intervals, "RESAMPLES", 60)
    scores, cosines = np.arange(12), np.random.default_rng(3).uniform(size=12)
    results = results_of(write_table(tmp_path / "a.csv", scores), vectors_of(cosines))
    rng, drawn = np.random.default_rng(0), []
    for _ in range(60):
        draw = rng.integers(12, size=12)
        drawn.append(scipy.stats.spearmanr(scores[draw], cosines[draw]).statistic)
    found = [results["spearman_ci_low"], results["spearman_ci_high"]]
    np.testing.assert_allclose(found, np.percentile(drawn, [2.5, 97.5]), rtol=1e-9)


@pytest.mark.parametrize("kind", ["table", "folder"])
def test_a_diverged_model_ends_no_run(tmp_path, kind):
    write_benchmark(tmp_path, [1, 2, 3])
    sentences = write_table(tmp_path / "a.csv", [1, 2, 3]) if kind == "table" else tmp_path
    vectors = vectors_of([0.1, 0.2, 0.3]) | {"b1": [np.nan, 0.0]}
    results = results_of(sentences, vectors)
    assert results.keys() == {"spearman", "text_uniformity"}
    assert np.isnan(list(results.values())).all()


def test_a_collapsed_model_orders_nothing(tmp_path):
    write_year(tmp_path, [(0, 1), (4, 5), (2, 3)])
    write_benchmark(tmp_path, [1, 4.0, 4.2, 5])
    same = dict.fromkeys(vectors_of([0.0] * 6), unit_rows(0, 1, 5)[0])
    results = results_of(tmp_path, same)
    assert results["spearman"] == results["sts13_spearman_wmean"] == 0
    assert results["spearman_ci_low"] == results["spearman_ci_high"] == 0
    assert results["text_uniformity"] == pytest.approx(0, abs=1e-12)
    assert results["text_alignment"] == 0


def test_settings_that_do_not_fit_the_data_are_refused(tmp_path):
    table = str(write_table(tmp_path / "a.csv", [1, 2]))
    for settings, sentence in (
        (
            {"sentences": f"{tmp_path}/none"},
            r"none does not exist; set config\.evals\.x\.sentences",
        ),
        ({"sentences": table, "split": "dev"}, r"a\.csv is one file and has no split 'dev'"),
        (
            {"sentences": str(tmp_path), "similarities": table},
            r"x\.similarities belongs to a file with a document a line, and .* is the folder",
        ),
    ):
        with pytest.raises(UserError, match=sentence):
            Sts("x", **settings).open()
