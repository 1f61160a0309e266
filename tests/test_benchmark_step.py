"""What the step's benchmark compares with what, and what it counts; nothing is timed."""

import dataclasses

import jax
import numpy as np
import pytest

from benchmarks.step import (
    CYCLIC_METRICS,
    Contender,
    Ours,
    Variant,
    count_cyclic_share,
    distinct,
    draw_batch,
    largest_batch,
    memory_of,
    parse_arguments,
    rows_of,
    shown_columns,
    speed,
    variants_of,
)
from cyclip_jax.errors import UserError
from cyclip_jax.models.presets import resolve_sizes


def contender(kind, variant=None, **row):
    row = {"step": kind, "batch_size": 8, **row}
    return Contender(kind, variant or Variant(), run=None, row=row)


def test_ratio_is_that_of_rounds_not_of_medians():
    # The second round is slow for both: something else was running.
    assert speed([1.0, 9.0, 2.0], [2.0, 18.0, 1.0]) == 2.0


def test_ours_is_compared_with_the_fastest_of_pytorch_and_with_its_towers():
    few = Variant(kept_patches=0.5)
    contenders = [
        contender("ours"),
        contender("ours", few),
        contender("towers"),
        contender("pytorch"),
        contender("pytorch"),
        contender("pytorch", Variant(dtype="bfloat16")),
    ]
    seconds = [[2.0], [1.0], [1.5], [8.0], [4.0], [0.1]]
    first, fewer, towers, *_ = rows_of(contenders, seconds, jax.devices())
    assert first["images_per_second"] == 4.0
    assert first["ratio_to_first"] == 1.0
    assert first["ratio_to_pytorch"] == 2.0
    assert first["ratio_to_towers"] == 0.75
    assert fewer["ratio_to_first"] == 2.0
    assert "ratio_to_pytorch" not in fewer and "ratio_to_towers" not in fewer
    assert "ratio_to_towers" not in towers


def test_rematerialised_and_split_steps_share_pytorchs_plain_one():
    variants = [Variant(), Variant(remat="full"), Variant(micro_batches=4), Variant(cyclic="off")]
    assert distinct(variants, "pytorch") == [Variant(), Variant(cyclic="off")]
    assert distinct(variants, "towers") == [Variant(), Variant(remat="full")]
    assert distinct([Variant(kept_patches=0.5)], "pytorch") == []


def test_attentions_are_rows_of_one_model_that_pytorch_is_measured_once_for():
    args = parse_arguments(["--attention=cudnn,xla", "--dtype=bfloat16"])
    variants = variants_of(args, resolve_sizes("ViT-tiny"))
    assert [str(variant) for variant in variants] == [
        f"bfloat16, cyclic on, attention {name}" for name in ("cudnn", "xla")
    ]
    assert distinct(variants, "pytorch") == [Variant(dtype="bfloat16")]
    steps = Ours("ViT-tiny", batch_size=8)
    xla, pallas = (steps._graphdef(Variant(attention=name)) for name in ("xla", "pallas"))
    assert xla != pallas


def test_memory_is_what_a_step_gets_makes_and_gives_but_what_it_reuses_counts_once():
    def step(state, batch):
        return state + batch.sum(), batch @ batch.T

    shapes = [jax.ShapeDtypeStruct(shape, np.float32) for shape in ((1000,), (100, 10))]
    compiled = jax.jit(step, donate_argnums=0).lower(*shapes).compile()
    analysis = compiled.memory_analysis()
    outputs = 4 * 100 * 100
    assert 4 * 2000 + outputs <= memory_of(analysis) - analysis.temp_size_in_bytes
    assert memory_of(analysis) - analysis.temp_size_in_bytes < 4 * 2500 + outputs


def test_flops_per_second_stand_in_for_an_unknown_devices_share_of_its_peak():
    (row,) = rows_of([contender("ours", flops=4e12)], [[2.0]], jax.devices())
    assert row["teraflops_per_second"] == 2.0
    assert "model TFLOP/s" in shown_columns([row])
    assert "MFU" not in shown_columns([row])
    known = row | {"model_flops_utilisation": 0.4}
    assert "MFU" in shown_columns([row, known])
    assert "model TFLOP/s" not in shown_columns([row, known])


def test_lists_of_values_make_every_combination():
    args = parse_arguments(["--cyclic=on,off", "--remat=none,full", "--patches=1.0,0.5"])
    assert len(set(variants_of(args, resolve_sizes("ViT-tiny")))) == 8
    resnet = variants_of(args, resolve_sizes("RN-tiny"))
    assert len(resnet) == 4 and all(variant.kept_patches == 1 for variant in resnet)


def test_unknown_value_of_a_list_is_refused(capsys):
    with pytest.raises(SystemExit):
        parse_arguments(["--dtype=float32,float8"])
    assert "'float8' is unknown; choose from float32, bfloat16" in capsys.readouterr().err


def test_texts_end_once_and_in_zeros():
    sizes = resolve_sizes("ViT-tiny")
    batch = jax.device_get(draw_batch(sizes, 64))
    end_of_text = sizes["vocab_size"] - 1
    ends = np.argmax(batch["tokens"], axis=1)
    assert batch["images"].shape == (64, 32, 32, 3) and batch["images"].dtype == np.uint8
    assert np.all(np.sum(batch["tokens"] == end_of_text, axis=1) == 1)
    assert all((row[:end] > 0).all() for row, end in zip(batch["tokens"], ends, strict=True))
    assert all((row[end + 1 :] == 0).all() for row, end in zip(batch["tokens"], ends, strict=True))
    assert len(set(ends)) > 1


def test_cyclic_terms_cost_three_products_forward_and_four_back():
    row = count_cyclic_share("ViT-tiny", 128)
    width = resolve_sizes("ViT-tiny")["embed_dim"]
    assert row["cyclic_flops"] == 7 * 2 * 128 * width**2
    rest = row["step_flops"] - row["cyclic_flops"]
    assert row["cyclic_share"] == row["cyclic_flops"] / rest < 0.05


@pytest.mark.parametrize("cyclic", ["on", "off"])
def test_cyclic_metrics_go_with_the_cyclic_terms(cyclic):
    ours = Ours("ViT-tiny", batch_size=8)
    step = ours.train_step(Variant(cyclic=cyclic))
    state, metrics = jax.eval_shape(step, ours.abstract_state, ours.abstract_batch())
    assert jax.tree.structure(state) == jax.tree.structure(ours.abstract_state)
    assert {name in metrics for name in CYCLIC_METRICS} == {cyclic == "on"}
    assert "contrastive_loss" in metrics


def test_row_counts_only_the_patches_that_are_seen():
    ours = Ours("ViT-tiny", batch_size=8)
    flops = [ours.model_flops(Variant(kept_patches=kept)) for kept in (1.0, 0.5)]
    same = ours.model_flops(dataclasses.replace(Variant(), micro_batches=1, cyclic="off"))
    assert flops[1] < flops[0] == same


def test_largest_batch_is_not_looked_for_on_a_cpu():
    with pytest.raises(UserError, match="needs a GPU or a TPU"):
        next(largest_batch("ViT-tiny", Variant(), micro_batch=8, fsdp=1))
