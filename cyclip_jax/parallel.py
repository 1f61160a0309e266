"""The mesh, and how host arrays become global ones; no model code names an axis."""

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from cyclip_jax.errors import UserError

DATA_AXIS = "data"


def create_mesh(devices=None):
    """A one-axis mesh over `devices`, by default all of them, process by process."""
    devices = jax.devices() if devices is None else devices
    return jax.sharding.Mesh(np.asarray(devices), (DATA_AXIS,), axis_types=(AxisType.Auto,))


def replicated(mesh):
    """The sharding of what every device holds whole: the train state."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh):
    """The sharding of a global batch: rows split over the devices."""
    return NamedSharding(mesh, PartitionSpec(DATA_AXIS))


def check_batch_size(batch_size, mesh, key="config.batch_size"):
    """Raises UserError unless every device gets the same number of rows."""
    if batch_size < 1 or batch_size % mesh.size:
        raise UserError(
            f"{key} {batch_size} does not split evenly over {mesh.size} devices; "
            f"set it to a positive multiple of {mesh.size}"
        )


def to_global(batch, mesh):
    """Host arrays with this process's rows -> global arrays [all rows, ...] sharded over rows."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda rows: jax.make_array_from_process_local_data(sharding, rows), batch)


def place(tree, abstract):
    """Host arrays, the same on every process -> global arrays with the shardings of `abstract`."""
    return jax.tree.map(
        lambda array, like: jax.make_array_from_callback(
            array.shape, like.sharding, lambda index: array[index]
        ),
        tree,
        abstract,
    )


def process_zero_first(make):
    """Calls `make` on process 0, then on all others: what it writes is written once.

    Raises:
      UserError: on the others, where process 0 failed: none is left waiting.
    """
    made = failure = None
    is_first = jax.process_index() == 0
    if is_first:
        try:
            made = make()
        except Exception as error:
            failure = error
    if jax.process_count() > 1:
        failed = multihost_utils.broadcast_one_to_all(np.asarray(failure is not None))
        if failed and not is_first:
            raise UserError("process 0 cannot go on, and says why")
    if failure is not None:
        raise failure
    return made if is_first else make()
