"""Collectives and buffers of programs compiled here, and of lines from TPU and GPU programs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from cyclip_jax.costs.hlo import Collective, collectives, largest_buffer, memory_traffic, summary

ROWS, WHOLE = PartitionSpec("data"), PartitionSpec()
RING = [(device, (device + 1) % 8) for device in range(8)]


@pytest.fixture(scope="module")
def mesh():
    return Mesh(np.asarray(jax.devices()), ("data",), axis_types=(AxisType.Auto,))


def compiled_text(mesh, function, *args):
    """Of a function of float32 arrays, each given as (shape, PartitionSpec)."""
    args = [
        jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec))
        for shape, spec in args
    ]
    return jax.jit(function).lower(*args).compile().as_text()


def over_rows(mesh, function, out_specs=ROWS):
    return jax.shard_map(function, mesh=mesh, in_specs=ROWS, out_specs=out_specs)


@pytest.mark.parametrize(
    ("function", "out_specs", "expected"),
    (
        (
            lambda x: lax.all_gather(x, "data", tiled=True),
            ROWS,
            Collective("all-gather", "f32[64,16]", 64 * 16 * 4, 1, 8),
        ),
        (
            lambda x: lax.psum(x, "data"),
            WHOLE,
            Collective("all-reduce", "f32[8,16]", 8 * 16 * 4, 1, 8),
        ),
        (
            lambda x: lax.psum_scatter(x, "data", tiled=True),
            ROWS,
            Collective("reduce-scatter", "f32[1,16]", 16 * 4, 1, 8),
        ),
        (
            lambda x: lax.ppermute(x, "data", RING),
            ROWS,
            Collective("collective-permute", "f32[8,16]", 8 * 16 * 4, 1, 8),
        ),
    ),
)
def test_a_collective_on_8_rows_per_device(mesh, function, out_specs, expected):
    text = compiled_text(mesh, over_rows(mesh, function, out_specs), ((64, 16), ROWS))
    assert collectives(text) == [expected]


def test_an_all_to_all_is_one_whatever_its_parts(mesh):
    def exchange(x):
        return lax.all_to_all(x, "data", 0, 0, tiled=True)

    text = compiled_text(mesh, over_rows(mesh, exchange), ((64, 16), ROWS))
    assert summary(text) == {"all-to-all": (1, 8 * 16 * 4)}


def test_loops_multiply_what_they_run(mesh):
    def inner(x, _):
        return jnp.sin(lax.ppermute(x, "data", RING)), None

    def outer(x, _):
        x, _ = lax.scan(inner, x, length=3)
        return x * lax.psum(jnp.sum(x), "data"), None

    def function(x):
        return lax.scan(outer, lax.ppermute(x, "data", RING), length=5)[0]

    text = compiled_text(mesh, over_rows(mesh, function), ((64, 16), ROWS))
    assert summary(text) == {"collective-permute": (1 + 5 * 3, 16 * 512), "all-reduce": (5, 5 * 4)}


def test_a_loop_of_unknown_length_counts_only_without_collectives(mesh):
    def repeated(body, count, x):
        return lax.fori_loop(0, count, lambda _, x: body(x), x)

    def text(body):
        function = jax.shard_map(
            functools.partial(repeated, body), mesh=mesh, in_specs=(WHOLE, ROWS), out_specs=ROWS
        )
        return compiled_text(
            mesh, lambda n, x: function(n.astype(int), x), ((), WHOLE), ((64, 16), ROWS)
        )

    assert collectives(text(jnp.sin)) == []
    with pytest.raises(ValueError, match="runs collective-permute an unknown number of times"):
        collectives(text(lambda x: lax.ppermute(x, "data", RING)))


def test_the_gradient_of_a_replicated_weight_is_one_all_reduce(mesh):
    def gradient(w, x):
        return jax.grad(lambda w: jnp.sum(jnp.sin(x @ w)))(w)

    text = compiled_text(mesh, gradient, ((16, 24), WHOLE), ((64, 16), ROWS))
    assert summary(text) == {"all-reduce": (1, 16 * 24 * 4)}


def test_a_matrix_of_all_pairs_is_found_and_its_absence_too(mesh):
    def all_pairs(x):
        return jnp.sum(jnp.exp(x @ x.T))

    def block_by_block(x):
        blocks = x.reshape(32, 8, 4)
        return lax.map(lambda block: jnp.sum(jnp.exp(x @ block.T)), blocks).sum()

    for function, elements in ((all_pairs, 256 * 256), (block_by_block, 256 * 8)):
        text = compiled_text(mesh, function, ((256, 4), WHOLE))
        assert largest_buffer(text)[0] == elements


def test_the_largest_buffer_may_stand_in_a_tuple_or_in_a_fusion():
    text = """
%fused_computation (param_0.1: f32[8]) -> f32[] {
  %param_0.1 = f32[8]{0} parameter(0)
  %broadcast.1 = f32[8,9]{1,0} broadcast(%param_0.1), dimensions={0}
  ROOT %reduce.1 = f32[] reduce(%broadcast.1, %constant.1), dimensions={0,1}, to_apply=%add
}

ENTRY %main (x.1: f32[8]) -> f32[] {
  %x.1 = f32[8]{0:T(256)} parameter(0)
  %while.1 = (s32[]{:T(128)}, bf16[3,25]{1,0:T(8,128)(2,1)S(1)}) while(%tuple.1), body=%b
  ROOT %fusion.1 = f32[] fusion(%x.1), kind=kLoop, calls=%fused_computation
}
"""
    assert largest_buffer(text) == (75, "bf16[3,25]")
    assert largest_buffer(text.replace("bf16[3,25]", "bf16[3,4]")) == (72, "f32[8,9]")


@pytest.mark.parametrize(
    ("shape", "size"),
    (
        ("f64[3]{0}", 24),
        ("bf16[2,3]{1,0:T(8,128)(2,1)S(1)}", 12),
        ("pred[5]{0}", 5),
        ("u8[]", 1),
        ("c64[2]{0}", 16),
        ("f8e4m3fn[7]{0}", 7),
        ("s4[6]{0}", 3),
        ("(f32[2]{0:T(128)}, s32[], /*index=2*/(f16[4]{0}, f16[4]{0}))", 28),
    ),
)
def test_bytes_of_a_result(shape, size):
    (found,) = collectives(entry(f"%all-reduce.1 = {shape} all-reduce(%x.1), to_apply=%add.clone"))
    assert found.bytes == size


def entry(*lines):
    """A program whose entry has these lines."""
    body = "\n".join(f"  {line}" for line in lines)
    return f"""HloModule jit_f, is_scheduled=true, num_partitions=8

%add.clone (x: f32[], y: f32[]) -> f32[] {{
  %x = f32[]{{:T(128)}} parameter(0)
  %y = f32[]{{:T(128)}} parameter(1)
  ROOT %add.24 = f32[]{{:T(128)}} add(%x, %y)
}}

ENTRY %main.8_spmd (x.1: f32[128,256]) -> f32[128,256] {{
  %x.1 = f32[128,256]{{1,0:T(8,128)}} parameter(0), metadata={{op_name="all-reduce(x)"}}
{body}
}}
"""


@pytest.mark.parametrize(
    ("groups", "size"),
    (
        ("{{0,1,2,3},{4,5,6,7}}", 4),
        ("[4,2]<=[8]", 2),
        ("[2,4]<=[4,2]T(1,0)", 4),
        ("mesh['a'=2,'b'=4] {'b'}", 4),
        ("mesh['a'=1,'b'=2,'c'=4], device_ids=([4,2]T(1,0)) {'b','c'}", 8),
        ("mesh['a'=8] {'a':(2)4}", 4),
        ("{}", 8),
    ),
    ids=("lists", "iota", "transposed", "mesh", "reordered-mesh", "part-of-an-axis", "all"),
)
def test_groups_of_devices_in_all_their_notations(groups, size):
    line = f"%r = f32[4]{{0}} all-reduce(%x.1), replica_groups={groups}, to_apply=%add.clone"
    (found,) = collectives(entry(line))
    assert found.group == size


@pytest.mark.parametrize(
    ("kind", "received"),
    (
        ("all-gather", 3 / 4 * 800),
        ("all-to-all", 3 / 4 * 800),
        ("all-reduce", 2 * 3 / 4 * 800),
        ("reduce-scatter", 3 * 800),
        ("collective-permute", 800),
    ),
)
def test_what_a_device_receives_of_others_in_two_executions(kind, received):
    assert Collective(kind, "f32[100]", 400, executions=2, group=4).received == received


def test_pairs_of_start_and_done_count_once_and_by_their_result():
    text = entry(
        "%ags = (f32[128,256]{1,0}, f32[1024,256]{1,0}) all-gather-start(%x.1), channel_id=1, "
        "replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={0}, use_global_device_ids=true",
        "%ars = f32[128,256]{1,0} all-reduce-start(%x.1), replica_groups=[1,8]<=[8], "
        "to_apply=%add.clone",
        "%rss = ((f32[128,256]{1,0}, f32[8]{0}), (f32[16,256]{1,0}, f32[1]{0})) "
        "reduce-scatter-start(%x.1, %y.1), dimensions={0}, to_apply=%add.clone",
        "%cps = (f32[128,256]{1,0:T(8,128)S(1)}, f32[128,256]{1,0:T(8,128)S(1)}, u32[]{:S(2)}, "
        "u32[]{:S(2)}) collective-permute-start(%x.1), source_target_pairs={{0,1},{1,0}}",
        "%rsu = ((f32[128,256]{1,0}, f32[8]{0}), (f32[16,256]{1,0}, f32[1]{0})) "
        "reduce-scatter-update(%rss)",
        "%rsd = (f32[16,256]{1,0}, f32[1]{0}) reduce-scatter-done(%rsu)",
        "%ard = f32[128,256]{1,0} all-reduce-done(%ars)",
        "%agd = f32[1024,256]{1,0} all-gather-done(%ags)",
        "ROOT %cpd = f32[128,256]{1,0:T(8,128)S(1)} collective-permute-done(%cps)",
    )
    assert collectives(text) == [
        Collective("all-gather", "f32[1024,256]", 1024 * 256 * 4, 1, 8),
        Collective("all-reduce", "f32[128,256]", 128 * 256 * 4, 1, 8),
        Collective("reduce-scatter", "(f32[16,256], f32[1])", (16 * 256 + 1) * 4, 1, 8),
        Collective("collective-permute", "f32[128,256]", 128 * 256 * 4, 1, 8),
    ]


def test_wrapped_pairs_count_once():
    text = """
%async_computation (param_0: f32[8]) -> f32[64] {
  %param_0 = f32[8]{0} parameter(0)
  ROOT %all-gather.3 = f32[64]{0} all-gather(%param_0), dimensions={0}
}

ENTRY %main (x: f32[8]) -> f32[64] {
  %x = f32[8]{0} parameter(0)
  %start = ((f32[8]{0}), f32[64]{0}, s32[]) async-start(%x), calls=%async_computation
  ROOT %done = f32[64]{0} async-done(%start), calls=%async_computation
}
"""
    assert summary(text) == {"all-gather": (1, 256)}


def test_a_tpu_all_gather_in_three_fusions_counts_once():
    part = (
        'all-gather(%p), channel_id=4, dimensions={0}, frontend_attributes={chain_id="0"}, '
        'backend_config={"async_collective_fusion_config":{"flag_start":"2","flag_end":"8"}}'
    )
    text = f"""
%fused_computation.8 (p: bf16[128]) -> u32[] {{
  %p = bf16[128]{{0}} parameter(0)
  %all-gather.11 = bf16[1024]{{0}} {part}
  ROOT %c = u32[] custom-call(%all-gather.11), custom_call_target="AsyncCollectiveStart"
}}

%fused_computation.9 (p: bf16[128]) -> (f32[8], bf16[1024]) {{
  %p = bf16[128]{{0}} parameter(0)
  %all-gather.13 = bf16[1024]{{0}} {part}
  ROOT %t = (f32[8]{{0}}, bf16[1024]{{0}}) tuple(%other_work, %all-gather.13)
}}

%fused_computation.10 (p: bf16[128]) -> bf16[1024] {{
  %p = bf16[128]{{0}} parameter(0)
  %all-gather.15 = bf16[1024]{{0}} {part}
  ROOT %c = bf16[1024]{{0}} custom-call(%all-gather.15), custom_call_target="AsyncCollectiveDone"
}}

ENTRY %main (x: bf16[128]) -> bf16[1024] {{
  %x = bf16[128]{{0}} parameter(0)
  %start = u32[] fusion(%x), kind=kCustom, calls=%fused_computation.8
  %step = (f32[8]{{0}}, bf16[1024]{{0}}) fusion(%start), kind=kOutput, calls=%fused_computation.9
  ROOT %done = bf16[1024]{{0}} fusion(%step), kind=kCustom, calls=%fused_computation.10
}}
"""
    assert collectives(text) == [Collective("all-gather", "bf16[1024]", 2048, 1, 1)]


def test_a_tpu_reduce_scatter_is_known_in_its_fusion():
    text = """
%all-reduce-scatter.1 (input.1: bf16[1024,16]) -> bf16[128,16] {
  %input.1 = bf16[1024,16]{1,0} parameter(0)
  %all-reduce.6 = bf16[1024,16]{1,0} all-reduce(%input.1), channel_id=13, to_apply=%add.3.clone
  %offset = u32[] multiply(%partition-id.8, %constant.163)
  ROOT %dynamic-slice.10 = bf16[128,16]{1,0} dynamic-slice(%all-reduce.6, %offset, %constant.164)
}

ENTRY %main (x: bf16[1024,16]) -> bf16[128,16] {
  %x = bf16[1024,16]{1,0} parameter(0)
  ROOT %fusion.1 = bf16[128,16]{1,0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1
}
"""
    assert collectives(text) == [Collective("reduce-scatter", "bf16[128,16]", 4096, 1, 1)]


def tpu_loop(*, start, bound, step, backend_config=""):
    """A loop as TPU programs have it: it hands its constants on, and copies its counter."""
    return f"""
%body (state.1: (s32[], f32[8], s32[])) -> (s32[], f32[8], s32[]) {{
  %state.1 = (s32[]{{:T(128)}}, f32[8]{{0:T(128)}}, s32[]{{:T(128)}}) parameter(0)
  %i.1 = s32[]{{:T(128)}} get-tuple-element(%state.1), index=0
  %i.2 = s32[]{{:T(128)S(6)}} copy(%i.1)
  %x.1 = f32[8]{{0:T(128)}} get-tuple-element(%state.1), index=1
  %one = s32[]{{:T(128)}} get-tuple-element(%state.1), index=2
  %x.2 = f32[8]{{0:T(128)}} all-reduce(%x.1), to_apply=%add
  %i.3 = s32[]{{:T(128)}} add(%one, %i.2)
  ROOT %t.1 = (s32[], f32[8], s32[]) tuple(%i.3, %x.2, %one)
}}

%condition (state.2: (s32[], f32[8], s32[])) -> pred[] {{
  %n = s32[]{{:T(128)}} constant({bound})
  %state.2 = (s32[]{{:T(128)}}, f32[8]{{0:T(128)}}, s32[]{{:T(128)}}) parameter(0)
  %i.4 = s32[]{{:T(128)}} get-tuple-element(%state.2), index=0
  ROOT %lt.3 = pred[]{{:T(512)}} compare(%i.4, %n), direction=LT
}}

ENTRY %main (x: f32[8]) -> f32[8] {{
  %x = f32[8]{{0:T(128)}} parameter(0)
  %zero = s32[]{{:T(128)}} constant({start})
  %copy.18 = s32[]{{:T(128)}} copy(%zero)
  %step = s32[]{{:T(128)}} constant({step})
  %t.2 = (s32[], f32[8], s32[]) tuple(%copy.18, %x, %step)
  %while.1 = (s32[], f32[8], s32[]) while(%t.2), condition=%condition, body=%body{backend_config}
  ROOT %out = f32[8]{{0:T(128)}} get-tuple-element(%while.1), index=1
}}
"""


@pytest.mark.parametrize(
    ("start", "bound", "step", "trips"), ((0, 5, 1, 5), (2, 9, 3, 3), (4, 4, 1, 0))
)
def test_trips_of_a_tpu_loop_follow_from_its_counter(start, bound, step, trips):
    text = tpu_loop(start=start, bound=bound, step=step)
    assert collectives(text) == [Collective("all-reduce", "f32[8]", 32, trips, 1)]


def test_a_stated_trip_count_goes_before():
    stated = ', backend_config={"known_trip_count":{"n":"11"},"known_init_step":{"init":"0"}}'
    text = tpu_loop(start=0, bound=5, step=1, backend_config=stated)
    assert summary(text) == {"all-reduce": (11, 11 * 32)}


def test_a_counter_that_does_not_count_up_is_unknown():
    with pytest.raises(ValueError, match=r"%while\.1 runs all-reduce an unknown number of times"):
        collectives(tpu_loop(start=0, bound=5, step=0))


def test_a_text_that_is_no_program_is_refused():
    with pytest.raises(ValueError, match="no ENTRY computation"):
        summary("module @jit_f { }")


def test_memory_traffic_is_that_of_operands_and_results(mesh):
    def function(x, y):
        return jnp.sin(x @ y)

    text = compiled_text(mesh, function, ((64, 32), WHOLE), ((32, 16), WHOLE))
    product, result = (64 * 32 + 32 * 16 + 64 * 16) * 4, 2 * 64 * 16 * 4
    assert memory_traffic(text) in (product, product + result)  # the sine fused, or by itself


def test_memory_traffic_of_a_loop_counts_as_often_as_it_runs(mesh):
    def function(x):
        return lax.scan(lambda x, _: (jnp.sin(x) @ x, None), x, length=7)[0]

    def once(x):
        return jnp.sin(x) @ x

    of_loop, of_body = (
        memory_traffic(compiled_text(mesh, f, ((32, 32), WHOLE))) for f in (function, once)
    )
    assert 7 * of_body <= of_loop < 14 * of_body  # it may copy what it hands on


def test_memory_traffic_of_a_conditional_is_that_of_its_cheapest_branch(mesh):
    def function(x):
        return jax.lax.cond(x[0, 0] > 0, lambda x: x @ x @ x, lambda x: x @ x, x)

    def twice(x):
        return x @ x

    here, once = (
        memory_traffic(compiled_text(mesh, f, ((32, 32), WHOLE))) for f in (function, twice)
    )
    assert once <= here < once + 32 * 32 * 4


def test_memory_traffic_of_a_slice_is_the_slice(mesh):
    def function(x):
        return lax.map(jnp.sum, x)

    text = compiled_text(mesh, function, ((1000, 256), WHOLE))
    whole = 1000 * 256 * 4
    assert whole < memory_traffic(text) < 4 * whole  # a row may be cut out before it is summed


def test_what_lies_on_a_tpu_chip_is_no_memory_traffic():
    lines = (
        "%s = (f32[128,256]{1,0:T(8,128)S(1)}, f32[128,256]{1,0}, u32[]{:S(2)}) copy-start(%x.1)",
        "%d = f32[128,256]{1,0:T(8,128)S(1)} copy-done(%s)",
        "%n = f32[128,256]{1,0:T(8,128)S(1)} negate(%d)",
        "ROOT %e = f32[128,256]{1,0:T(8,128)} exponential(%n)",
    )
    assert memory_traffic(entry(*lines)) == 2 * 128 * 256 * 4
