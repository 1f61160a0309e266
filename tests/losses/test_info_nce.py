"""The contrastive primitive: any directions, further keys, their weights, label smoothing."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from cyclip_jax import parallel
from cyclip_jax.costs import hlo
from cyclip_jax.losses.contrastive import BOTH, FORWARD, info_nce, info_nce_dense
from cyclip_jax.training.flops import matmul_flops
from tests.conftest import unit_rows

BACKWARD = (0.0, 1.0)


def slowly(queries, keys, scale, further, directions, own_weight, smoothing):
    """The formula, query by query and key by key."""
    (a, b), n = directions, len(queries)
    total = 0.0
    for i in range(n):
        among = [(scale * queries[i] @ key, 1.0) for key in keys]
        for e, key in enumerate(further):
            weight = own_weight if e == i and len(further) == n else 1.0
            among.append((scale * queries[i] @ key, weight))
        total += a / n * math.log(sum(weight * math.exp(logit) for logit, weight in among))
        own = among[i][0]
        total -= a / n * ((1 - smoothing) * own + smoothing * np.mean([x for x, _ in among]))
        back = [scale * queries[j] @ keys[i] for j in range(n)]
        total += b / n * math.log(sum(map(math.exp, back)))
        total -= b / n * ((1 - smoothing) * own + smoothing * np.mean(back))
    return total


def arrays(n, e, d=5):
    further = unit_rows(3, e, d) if e else np.zeros((0, d))
    return unit_rows(1, n, d), unit_rows(2, n, d), further


CASES = [
    (0, BOTH, 1.0, 0.0),
    (0, FORWARD, 1.0, 0.0),
    (0, BACKWARD, 1.0, 0.1),
    (1, FORWARD, 1.0, 0.0),
    (1, FORWARD, 0.5, 0.1),
    (1, (0.3, 0.7), 2.0, 0.2),
    (2, BOTH, 2.0, 0.1),
]


@pytest.mark.parametrize("times, directions, own_weight, smoothing", CASES)
def test_the_definition_is_the_formula(x64, times, directions, own_weight, smoothing):
    queries, keys, further = arrays(6, 6 * times)
    expected = slowly(queries, keys, 7.0, further, directions, own_weight, smoothing)
    loss, accuracies = info_nce_dense(
        *(queries, keys, 7.0, further if times else None),
        directions=directions,
        own_further_weight=own_weight,
        label_smoothing=smoothing,
    )
    assert float(loss) == pytest.approx(expected, rel=1e-13)
    assert len(accuracies) == sum(weight != 0 for weight in directions)


def over(devices, function, mask=None, **settings):
    """`function` on rows that are split over so many devices; `mask` is that of the pairs."""
    mesh = parallel.create_mesh(jax.devices()[:devices])
    rows, whole = PartitionSpec(mesh.axis_names), PartitionSpec()

    def of(queries, keys, further, scale):
        def on_device(queries, keys, further, scale, mask):
            given = (queries, keys, scale, further if further.size else None, None, mask)
            names = mesh.axis_names if devices > 1 else ()
            return function(*given, axis_names=names, **settings)

        if devices == 1:
            return on_device(queries, keys, further, scale, mask)
        specs = (rows, rows, rows, whole, rows)
        return jax.shard_map(on_device, mesh=mesh, in_specs=specs, out_specs=whole)(
            queries, keys, further, scale, mask
        )

    return of


def gradients(function, *given):
    return jax.jit(jax.value_and_grad(function, (0, 1, 2, 3), has_aux=True))(*given)


@pytest.mark.parametrize("times, directions, own_weight, smoothing", CASES)
@pytest.mark.parametrize("devices, chunk_size", [(1, 5), (1, 256), (8, 2), (8, 256)])
def test_tiles_have_the_value_and_the_gradient_of_the_definition(
    x64, times, directions, own_weight, smoothing, devices, chunk_size
):
    given = (*arrays(24, 24 * times), 7.0)
    settings = {
        "directions": directions,
        "own_further_weight": own_weight,
        "label_smoothing": smoothing,
    }

    def definition(queries, keys, further, scale):
        return info_nce_dense(queries, keys, scale, further if times else None, **settings)

    expected = gradients(definition, *given)
    tiled = gradients(over(devices, info_nce, chunk_size=chunk_size, **settings), *given)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-12), tiled, expected)


@pytest.mark.parametrize(
    "times, directions, smoothing, devices, chunk_size, share",
    [
        (0, BOTH, 0.1, 8, 2, 0.6),
        (1, (0.3, 0.7), 0.2, 1, 5, 0.6),
        (1, (0.3, 0.7), 0.2, 8, 2, 0.6),
        (1, BOTH, 0.2, 8, 2, 0.0),
    ],
)
def test_a_pair_that_is_not_there_is_as_if_it_were_not(
    x64, times, directions, smoothing, devices, chunk_size, share
):
    """Whatever stands in its rows; but N divides the sums all the same."""
    n = 24
    queries, keys, further = arrays(n, n * times)
    there = np.random.default_rng(4).random(n) < share
    queries[~there], keys[~there] = 3.0, -2.0
    settings = {"directions": directions, "label_smoothing": smoothing}

    def of(function):
        def measured(queries, keys, further, scale):
            return function(queries, keys, further, scale)

        return gradients(measured, queries, keys, further, 7.0)

    def definition(queries, keys, further, scale):
        left = (queries[there], keys[there], scale, further if times else None)
        if not there.any():
            return 0 * scale, tuple(jnp.zeros(()) for weight in directions if weight)
        loss, accuracies = info_nce_dense(*left, **settings)
        return loss * there.mean(), tuple(share * there.mean() for share in accuracies)

    def dense(queries, keys, further, scale):
        given = (queries, keys, scale, further if times else None, None, there)
        return info_nce_dense(*given, **settings)

    expected = of(definition)
    tiled = over(devices, info_nce, mask=there, chunk_size=chunk_size, **settings)
    for found in (of(dense), of(tiled)):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-12), found, expected
        )


@pytest.mark.parametrize("e, own_weight", [(0, 1.0), (6, 1.0), (6, 0.5), (12, 1.0)])
def test_equal_embeddings_cost_the_log_of_what_is_chosen_among(x64, e, own_weight):
    same = np.full((6, 4), 0.5)
    further = np.full((e, 4), 0.5) if e else None
    for scale in (1.0, 50.0):
        loss, accuracies = info_nce(
            same, same, scale, further, directions=FORWARD, own_further_weight=own_weight
        )
        assert float(loss) == pytest.approx(math.log(6 + e - (1 - own_weight) * (e == 6)))
        assert list(map(float, accuracies)) == [0.0]  # ties are misses


def test_orthonormal_embeddings_have_their_closed_forms(x64):
    basis = np.eye(8)
    four, others = basis[:4], basis[4:]
    symmetric, _ = info_nce(four, four, 1 / 0.07)
    assert float(symmetric) == pytest.approx(1.874623e-6, rel=1e-6)
    same, _ = info_nce(four, four, 20.0, four, directions=FORWARD)
    assert float(same) == pytest.approx(0.6931471867, rel=1e-9)
    apart, _ = info_nce(four, four, 20.0, others, directions=FORWARD)
    assert float(apart) == pytest.approx(1.4428e-8, rel=1e-4)


def test_one_direction_is_not_the_other(x64):
    queries, keys, _ = arrays(12, 0)
    forward, exchanged = (
        float(info_nce(*given, 7.0, directions=FORWARD)[0])
        for given in ((queries, keys), (keys, queries))
    )
    assert abs(forward - exchanged) > 1e-3
    assert float(info_nce(queries, keys, 7.0, directions=BACKWARD)[0]) == exchanged


def test_nothing_depends_on_where_a_further_key_lies(x64):
    queries, keys, further = arrays(8, 16)
    order = np.random.default_rng(0).permutation(16)
    losses = [
        over(8, info_nce, directions=FORWARD)(queries, keys, rows, 7.0)[0]
        for rows in (further, further[order])
    ]
    assert float(losses[0]) == pytest.approx(float(losses[1]), rel=1e-14)


@pytest.mark.parametrize("devices", [1, 8])
def test_a_further_key_that_equals_the_own_makes_a_miss(devices):
    queries, keys = (unit_rows(seed, 64, 48, np.float32) for seed in (1, 2))
    further = np.where(np.arange(64)[:, None] % 2, keys, -queries)
    queries = keys + 0.1 * queries  # its own key is the nearest
    accuracy = over(devices, info_nce, directions=FORWARD, chunk_size=5)
    assert float(accuracy(queries, keys, further, 20.0)[1][0]) == 0.5


def test_further_keys_that_nobody_chooses_among_are_an_error():
    queries, keys, further = arrays(4, 4)
    with pytest.raises(ValueError, match="whose direction is 0"):
        info_nce(queries, keys, 1.0, further, directions=BACKWARD)


def test_a_direction_of_weight_zero_sends_and_multiplies_nothing():
    """Sent are the keys, the shares of their gradient, and sums of a few numbers."""
    n, d = 64, 16
    rows = jax.ShapeDtypeStruct((n, d), jnp.float32)
    nothing = jax.ShapeDtypeStruct((0, d), jnp.float32)
    scale = jax.ShapeDtypeStruct((), jnp.float32)

    def program(directions):
        function = functools.partial(gradients, over(8, info_nce, directions=directions))
        return jax.jit(function).lower(rows, rows, nothing, scale).compile().as_text()

    sent = {
        directions: sum(
            each.executions * each.bytes for each in hlo.collectives(program(directions))
        )
        for directions in (BOTH, FORWARD)
    }
    of_key_sums = 3 * n * 4  # maxima twice, and sums, of each key
    assert sent[BOTH] - sent[FORWARD] >= of_key_sums
    assert sent[FORWARD] <= 2 * n * d * 4 + 64
    flops = matmul_flops(over(8, info_nce, directions=FORWARD), rows, rows, nothing, scale)
    assert flops == 2 * n * n * d


MASK = np.arange(24) % 3 != 1


@pytest.mark.parametrize("devices, chunk_size", [(1, 5), (8, 2)])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_further_keys_that_are_not_there_change_nothing(x64, devices, chunk_size, smoothing):
    """The definition without them, although each is the query itself, and its logit the largest."""
    queries, keys, further = arrays(24, 24)
    absent = np.where(MASK[:, None], further, queries)
    settings = {"directions": BOTH, "label_smoothing": smoothing}

    def masked(queries, keys, further, scale, function, mask, **options):
        return function(queries, keys, scale, further, mask, **settings, **options)

    def definition(queries, keys, further, scale):
        return info_nce_dense(queries, keys, scale, further[MASK], **settings)

    mesh = parallel.create_mesh(jax.devices()[:devices])
    rows, whole = PartitionSpec(mesh.axis_names), PartitionSpec()
    options = {"chunk_size": chunk_size, "axis_names": mesh.axis_names}
    tiled = jax.shard_map(
        lambda q, k, f, s, m: masked(q, k, f, s, info_nce, m, **options),
        mesh=mesh,
        in_specs=(rows, rows, rows, whole, rows),
        out_specs=whole,
    )
    given = (queries, keys, absent, 90.0)
    expected = gradients(definition, *given)
    dense = gradients(lambda *of: masked(*of, function=info_nce_dense, mask=MASK), *given)
    ours = gradients(lambda *of: tiled(*of, MASK), *given)
    (_, (_, _, of_absent, _)) = ours
    assert not np.any(np.asarray(of_absent)[~MASK])
    for found in (dense, ours):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12), found, expected
        )
