import dataclasses
import json
import math

import pytest

from cyclip_jax import evals
from cyclip_jax.errors import UserError
from cyclip_jax.evals.flat import by_evaluation, flat_numbers, flattened, metrics_of
from cyclip_jax.evals.known_metrics import family_at_k, known_about
from cyclip_jax.evals.metric import About, Metric, Unit, count
from cyclip_jax.evals.output import Output, read_abouts
from tests.evals.fakes import fake_encoders
from tests.pictures import write_pairs

RESULTS = {
    "cifar": {
        "top1": Metric(0.5, (0.25, 0.75), 0.1, Unit.SHARE, "more"),
        "top5": Metric(0.75, (0.5, 1.0), 0.5, Unit.SHARE, "more", is_headline=False),
        "images": count(12),
    },
    "coco": {
        "image_to_text_median_rank": Metric(3.5, (2.0, 5.0), unit=Unit.RANK, better="less"),
        "modality_gap": Metric(0.25, (0.2, 0.3), unit=Unit.DISTANCE),
    },
}


def test_flat_names_are_the_values_their_intervals_and_chance():
    assert list(flattened(RESULTS).items()) == [
        ("cifar/top1", 0.5),
        ("cifar/top1_ci_low", 0.25),
        ("cifar/top1_ci_high", 0.75),
        ("cifar/chance_top1", 0.1),
        ("cifar/top5", 0.75),
        ("cifar/top5_ci_low", 0.5),
        ("cifar/top5_ci_high", 1.0),
        ("cifar/chance_top5", 0.5),
        ("cifar/images", 12.0),
        ("coco/image_to_text_median_rank", 3.5),
        ("coco/image_to_text_median_rank_ci_low", 2.0),
        ("coco/image_to_text_median_rank_ci_high", 5.0),
        ("coco/modality_gap", 0.25),
        ("coco/modality_gap_ci_low", 0.2),
        ("coco/modality_gap_ci_high", 0.3),
    ]


@pytest.mark.parametrize("is_said", [True, False])
def test_reading_is_the_inverse_of_flattening_whether_metrics_said_it_or_names_are_known(is_said):
    abouts = {e: {n: m.about for n, m in metrics.items()} for e, metrics in RESULTS.items()}
    assert by_evaluation(flattened(RESULTS), abouts if is_said else None) == RESULTS


def test_what_a_metric_says_counts_before_what_its_name_tells():
    new = {"top1": Metric(3.0, unit=Unit.COUNT), "never_seen": Metric(0.5, unit=Unit.SHARE)}
    abouts = {name: metric.about for name, metric in new.items()}
    assert metrics_of(flat_numbers(new), abouts) == new
    assert metrics_of(flat_numbers(new))["never_seen"].about == About()


def test_null_is_not_finite_and_has_no_bounds():
    numbers = {"top1": None, "top1_ci_low": None, "top1_ci_high": None, "chance_top1": None}
    (metric,) = metrics_of(numbers).values()
    assert not metric.is_finite and metric.bounds is None and metric.chance is None
    assert metric.text() == "not finite"
    assert math.isnan(flat_numbers({"top1": metric})["top1_ci_high"])


def test_of_a_single_unit_there_is_a_value_without_bounds():
    metric = Metric(0.5, (math.nan, math.nan), unit=Unit.SHARE)
    assert metric.bounds is None and metric.with_interval() == "50.0%"


@pytest.mark.parametrize(
    "metric, text",
    [
        (Metric(0.291, (0.2449, 0.339), 0.0028, Unit.SHARE), "29.1% [24.5, 33.9] (0.28%)"),
        (Metric(-0.012, unit=Unit.SHARE), "-1.2%"),
        (Metric(1.0, unit=Unit.COUNT), "1"),
        (Metric(3.0, (2.0, 5.5), unit=Unit.RANK), "3.000 [2, 5.5]"),
        (Metric(61.5), "61.50"),
    ],
)
def test_a_unit_tells_how_a_number_is_written(metric, text):
    assert metric.text() == text


def test_a_name_at_k_is_known_by_what_stands_before_and_is_a_headline_at_1():
    assert known_about("image_to_text_recall@1") == About(Unit.SHARE, "more")
    assert known_about("image_to_text_recall@50") == About(Unit.SHARE, "more", is_headline=False)
    assert known_about("top1@16") == About(Unit.SHARE, "more", is_headline=False)
    assert known_about("unknown@5") == About(is_headline=False)
    assert known_about("sketch_effective") == About(Unit.SHARE, "more")
    assert known_about("sketch_images").unit == Unit.COUNT


def test_families_over_k():
    assert family_at_k("consistency@10") == ("consistency@", 10)
    assert family_at_k("top5") == ("top", 5)
    for name in ("top", "zeroshot_top1", "@", "image_to_text_recall@1_as_published"):
        assert family_at_k(name) is None


def test_what_metrics_say_is_written_beside_the_numbers_and_read_again(tmp_path):
    for name, metrics in RESULTS.items():
        Output(tmp_path / name).about(metrics)
    assert json.loads((tmp_path / "cifar" / "metrics.json").read_text())["top5"] == {
        "unit": "share",
        "better": "more",
        "is_headline": False,
    }
    assert read_abouts(tmp_path) == {
        name: {n: metric.about for n, metric in metrics.items()}
        for name, metrics in RESULTS.items()
    }
    assert read_abouts(tmp_path / "nowhere") == {}


def test_an_evaluation_may_be_called_as_the_file_is(tmp_path):
    write_pairs(tmp_path)
    settings = {"metrics": {"type": "retrieval", "pairs": str(tmp_path / "train.csv")}}
    evaluators = evals.create_evaluators(settings)
    results = evals.evaluate(evaluators, fake_encoders(8), directory=tmp_path / "evals")
    assert read_abouts(tmp_path / "evals") == {
        "metrics": {name: metric.about for name, metric in results["metrics"].items()}
    }


@pytest.mark.parametrize("content", ["{", "[]", '{"top1": {"unit": "ell"}}', '{"top1": null}'])
def test_a_damaged_file_of_what_metrics_say_is_named(tmp_path, content):
    path = tmp_path / "val" / "metrics.json"
    path.parent.mkdir()
    path.write_text(content)
    with pytest.raises(UserError, match=rf"^{path} does not say what metrics mean"):
        read_abouts(tmp_path)


def test_a_metric_is_a_value_that_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        RESULTS["cifar"]["top1"].value = 1.0
