import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cyclip_jax.losses.rank import embedding_rank, smallest_rank
from tests.conftest import unit_rows
from tests.losses.test_sharded import create_mesh


def rank_by_eigenvalues(rows):
    values = np.linalg.eigvalsh(rows.T @ rows / len(rows))
    return values.sum() ** 2 / (values**2).sum()


# More rows than columns, fewer of them, and a cone of rows around one direction.
EMBEDS = {
    "tall": unit_rows(0, 48, 12),
    "wide": unit_rows(1, 16, 40),
    "cone": unit_rows(2, 24, 8) * 0.1 + np.eye(8)[0],
}


@pytest.mark.parametrize("name", EMBEDS)
def test_the_rank_is_that_of_the_eigenvalues_on_one_device_and_on_eight(x64, name):
    rows = EMBEDS[name]
    expected = rank_by_eigenvalues(rows)
    assert float(embedding_rank(rows)) == pytest.approx(expected, rel=1e-10)
    for mesh in (None, create_mesh(1), create_mesh(8), create_mesh(8, fsdp=4)):
        found = jax.jit(lambda rows, mesh=mesh: smallest_rank({"images": rows}, mesh=mesh))(rows)
        assert float(found) == pytest.approx(expected, rel=1e-10)


def test_equal_embeddings_have_rank_one_and_orthogonal_ones_their_number():
    equal = np.tile(unit_rows(0, 1, 64, np.float32), (128, 1))
    assert float(embedding_rank(equal)) == pytest.approx(1, abs=1e-5)
    assert float(embedding_rank(np.eye(7, 12, dtype=np.float32))) == pytest.approx(7)
    assert embedding_rank(jnp.asarray(equal, jnp.bfloat16)).dtype == jnp.float32


def test_of_images_and_texts_the_smaller_rank_counts():
    embeds = {"images": np.eye(5, 8, dtype=np.float32), "texts": np.eye(3, 8, dtype=np.float32)}
    assert float(smallest_rank(embeds)) == pytest.approx(3)


def test_a_rank_has_no_gradient():
    gradient = jax.grad(lambda rows: smallest_rank({"images": rows}))(unit_rows(0, 4, 3))
    assert not np.any(gradient)
