"""What the whole loss costs at a large batch, by its program: nothing is computed."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from benchmarks import loss
from cyclip_jax import parallel
from cyclip_jax.training.flops import matmul_flops
from tests.launch.test_aot_check import has_libtpu
from tests.runs import ROOT

ROWS, WIDTH, DEVICES, MEBIBYTE = 32_768, 512, 8, 2**20
EMBEDS = [jax.ShapeDtypeStruct((ROWS, WIDTH), jnp.float32)] * 2


@pytest.fixture(scope="module")
def mesh():
    return parallel.create_mesh(jax.devices()[:DEVICES])


def test_it_is_four_products_of_all_pairs_and_seven_of_the_width(mesh):
    """One product for the value, which the gradient computes again, and two for the gradient."""
    function = jax.value_and_grad(loss.ours("whole", mesh, loss.CHUNK_SIZE), (0, 1, 2))
    flops = matmul_flops(function, *EMBEDS, jax.ShapeDtypeStruct((), jnp.float32))
    assert flops == 4 * 2 * ROWS**2 * WIDTH + 7 * 2 * ROWS * WIDTH**2
    assert round(flops / DEVICES / 1e12, 3) == 0.565


def test_its_temporaries_are_four_percent_of_one_matrix_of_all_pairs(mesh):
    form = loss.compiled_form(loss.ours("whole", mesh, loss.CHUNK_SIZE), EMBEDS, mesh)
    assert form.temporary_bytes <= 172 * MEBIBYTE
    assert form.temporary_bytes < 0.05 * 4 * ROWS**2


@has_libtpu
@pytest.mark.slow
def test_on_a_tpu_its_temporaries_are_less_still(tmp_path):
    path = tmp_path / "rows.json"
    command = [sys.executable, "-m", "benchmarks.loss", "--memory-only", "--topology=v5e:2x4"]
    command += [f"--rows={ROWS}", "--dense-limit=0", f"--json={path}"]
    subprocess.run(command, cwd=ROOT, check=True)
    temporary = {
        row["loss"]: row["temporary_mebibytes"] for row in json.loads(path.read_text())["rows"]
    }
    assert temporary["whole"] <= 66
