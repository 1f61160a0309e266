"""Neither padding, nor the batch size, nor the number of devices changes any result."""

import jax
import numpy as np
import pytest

from cyclip_jax import evals
from tests.evals.everything import OF_BATCHES, every_evaluation
from tests.processes.program import results_of


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    return every_evaluation(tmp_path_factory.mktemp("invariance"))


def results_on(devices, batch_size, settings):
    return results_of(settings, jax.devices()[:devices], batch_size=batch_size)


@pytest.fixture(scope="module")
def of_one_device(settings):
    with jax.enable_x64(True):
        return results_on(1, 5, settings)


@pytest.mark.parametrize("devices, batch_size", [(1, 25), (8, 16), (8, 40)])
def test_all_evaluators_give_what_one_device_gives(settings, of_one_device, devices, batch_size):
    with jax.enable_x64(True):
        results = results_on(devices, batch_size, settings)
    assert {name.partition("/")[0] for name in results} == settings.keys()
    assert results.keys() == of_one_device.keys()
    kept = [name for name in results if name not in OF_BATCHES]
    np.testing.assert_allclose(
        [results[name] for name in kept],
        [of_one_device[name] for name in kept],
        rtol=1e-7,
        atol=1e-10,
    )
    assert results["pairs/images"] == results["zeroshot/images"] == 24


def test_the_settings_name_every_evaluator(settings):
    assert {one["type"] for one in settings.values()} == evals.EVALUATORS.keys()
