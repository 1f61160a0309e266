import numpy as np
import pytest

from cyclip_jax.evals.statistics.uniformity import gaussian_uniformity
from tests.conftest import unit_rows


def test_uniformity_is_its_double_sum_whatever_the_tiles():
    rows = unit_rows(0, 30, 6)
    terms = [np.exp(-2 * np.sum((rows[j] - rows[k]) ** 2)) for k in range(30) for j in range(k)]
    for tile_rows in (1, 7, 30, 256):
        found = gaussian_uniformity(rows, tile_rows)
        assert found == pytest.approx(np.log(np.mean(terms)), rel=1e-12), tile_rows


def test_uniformity_of_known_shapes():
    simplex = np.eye(5) - 1 / 5
    simplex /= np.linalg.norm(simplex, axis=1, keepdims=True)
    assert gaussian_uniformity(simplex) == pytest.approx(-5, rel=1e-12)  # −4N/(N−1)
    assert gaussian_uniformity(np.eye(7)) == -4
    assert gaussian_uniformity(np.repeat(np.eye(3)[:1], 9, axis=0)) == 0
    m = 6
    poles = np.repeat([[1.0, 0], [-1, 0]], m, axis=0)
    expected = np.log((m - 1 + m * np.exp(-8)) / (2 * m - 1))
    assert gaussian_uniformity(poles) == pytest.approx(expected, rel=1e-12)
