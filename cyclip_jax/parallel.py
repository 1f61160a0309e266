"""The mesh, what is split over it, and how host arrays become global ones.

No model code names an axis.
"""

import functools
import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from cyclip_jax.errors import UserError

# The batch is split over both axes, parameters and the optimiser's state over the second: devices
# along `fsdp` share one copy of them (fully sharded data parallelism).
DATA_AXIS, FSDP_AXIS = "data", "fsdp"

# The first rule found in a parameter's path, names joined by "/", says which dimension is split.
_LAST_OF_2, _LAST_OF_4 = PartitionSpec(None, FSDP_AXIS), PartitionSpec(None, None, None, FSDP_AXIS)
PARTITION_RULES: tuple[tuple[str, PartitionSpec], ...] = (
    (r"conv\w*/kernel$", _LAST_OF_4),  # [height, width, in, out]
    (r"/kernel$", _LAST_OF_2),  # [in, out]
    (r"text/token_embedding$", _LAST_OF_2),  # [vocabulary, width]
    (r"(visual/proj|text/text_projection)$", _LAST_OF_2),  # [width, embedding]
    (r"/(positional_embedding|class_embedding)$", PartitionSpec()),
    (r"/(bias|scale)$", PartitionSpec()),
    (r"^logit_scale$", PartitionSpec()),
)


# A pytree: nested dicts, or dataclasses as a train state, whose leaves are arrays or what stands
# for them, shapes or shardings. Checkers know no type for it, and take jaxtyping's for Any, too.
Tree: TypeAlias = Any
# To type checkers jax.Device is a variable: jaxlib, which has its class, has no stubs.
Devices: TypeAlias = Sequence[jax.Device]  # pyright: ignore[reportInvalidTypeForm]
_Made = TypeVar("_Made")


def create_mesh(devices: Devices | None = None, *, fsdp: int = 1) -> Mesh:
    """A mesh over `devices`, by default all of them, process by process.

    Args:
      devices: sequence of jax.Device.
      fsdp: devices that share one copy of the parameters, neighbours in `devices`.

    Returns:
      A jax.sharding.Mesh of [devices / fsdp, fsdp].

    Raises:
      UserError: fsdp does not divide the number of devices.
    """
    all_devices = np.asarray(jax.devices() if devices is None else devices)
    count = all_devices.size
    if fsdp < 1 or count % fsdp:
        raise UserError(
            f"config.mesh.fsdp {fsdp} does not divide the {count} devices; set it to one of "
            f"{', '.join(str(n) for n in range(1, count + 1) if count % n == 0)}"
        )
    shape = (-1, fsdp)
    return jax.sharding.Mesh(
        all_devices.reshape(shape), (DATA_AXIS, FSDP_AXIS), axis_types=(AxisType.Auto,) * 2
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of what every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of a global batch: rows split over the devices."""
    return NamedSharding(mesh, PartitionSpec(mesh.axis_names))


def parameter_sharding(params: Tree, mesh: Mesh, *, min_size: int) -> Tree:
    """The shardings of parameters by PARTITION_RULES.

    Args:
      params: nested dict of arrays or shapes.
      mesh: as `create_mesh` makes it.
      min_size: arrays of fewer elements stay whole, as splitting them saves little and costs a
        collective; so do those whose dimension the axis does not divide.

    Returns:
      The same tree of NamedSharding.

    Raises:
      ValueError: no rule names a parameter.
    """

    def sharding(path, leaf):
        name = "/".join(str(part.key) for part in path)
        specs = [spec for pattern, spec in PARTITION_RULES if re.search(pattern, name)]
        if not specs:
            raise ValueError(f"no rule of parallel.PARTITION_RULES names the parameter {name}")
        spec = specs[0]
        split = [size for size, axis in zip(leaf.shape, spec, strict=False) if axis]
        divides = all(size % mesh.shape[FSDP_AXIS] == 0 for size in split)
        is_whole = math.prod(leaf.shape) < min_size or not divides
        return replicated(mesh) if is_whole else NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(sharding, params)


def gathered(params: Tree, sharding: Tree) -> Tree:
    """The parameters as every device needs them to compute with.

    Without it XLA may split activations by channel, to suit the parameters. The gradient comes back
    summed over the devices and split as the parameters are.

    Args:
      params: nested dict of arrays.
      sharding: the same tree of NamedSharding.
    """

    def gather(path, array, split):
        if split.is_fully_replicated:
            return array
        # XLA would split by channel what is added up into an embedding's rows.
        return _whole(array, split, path[-1].key == "token_embedding")

    return jax.tree_util.tree_map_with_path(gather, params, sharding)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _whole(array, sharding, sums_gradient_whole):
    del sums_gradient_whole
    return jax.lax.with_sharding_constraint(array, replicated(sharding.mesh))


def _whole_forward(array, sharding, sums_gradient_whole):
    return _whole(array, sharding, sums_gradient_whole), None


def _whole_backward(sharding, sums_gradient_whole, _, gradient):
    if sums_gradient_whole:
        gradient = jax.lax.with_sharding_constraint(gradient, replicated(sharding.mesh))
    return (jax.lax.with_sharding_constraint(gradient, sharding),)


_whole.defvjp(_whole_forward, _whole_backward)


def check_batch_size(batch_size: int, mesh: Mesh, *, micro_batches: int = 1) -> None:
    """Raises UserError unless every device gets the same number of rows in each micro-batch."""
    if micro_batches < 1:
        raise UserError(f"config.micro_batches {micro_batches} must be at least 1")
    rows = mesh.size * micro_batches
    if batch_size < 1 or batch_size % rows:
        parts = f"{mesh.size} devices"
        if micro_batches > 1:
            parts += f" and {micro_batches} micro-batches"
        raise UserError(
            f"config.batch_size {batch_size} does not split evenly over {parts}; "
            f"set it to a positive multiple of {rows}"
        )


def to_global(batch: Tree, mesh: Mesh) -> Tree:
    """Host arrays with this process's rows -> global arrays [all rows, ...] sharded over rows."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda rows: jax.make_array_from_process_local_data(sharding, rows), batch)


def place(tree: Tree, abstract: Tree) -> Tree:
    """Host arrays, the same on every process -> global arrays with the shardings of `abstract`."""
    return jax.tree.map(
        lambda array, like: jax.make_array_from_callback(
            array.shape, like.sharding, lambda index: array[index]
        ),
        tree,
        abstract,
    )


def process_zero_first(make: Callable[[], _Made]) -> _Made:
    """Calls `make` on process 0, then on all others: what it writes is written once.

    Raises:
      UserError: on the others, where process 0 failed: none is left waiting.
    """
    made: list[_Made] = []
    failure = None
    is_first = jax.process_index() == 0
    if is_first:
        try:
            made.append(make())
        except Exception as error:
            failure = error
    if jax.process_count() > 1:
        failed = multihost_utils.broadcast_one_to_all(np.asarray(failure is not None))
        if failed and not is_first:
            raise UserError("process 0 cannot go on, and says why")
    if failure is not None:
        raise failure
    return made[0] if is_first else make()


def wait_for_all_processes() -> None:
    """Returns once every process has come here, however long one takes to compile.

    Gloo, which CPUs use, gives up when the first collective of some devices finds not all of them
    there within 30 s; those that it knows may wait for each other for as long as they like.
    """
    if jax.process_count() > 1:
        multihost_utils.process_allgather(np.zeros(1))


def check_same_everywhere(settings: Mapping[str, Any]) -> None:
    """Raises UserError on all processes where one was started with other settings than process 0.

    Args:
      settings: {name: value} that JSON can write.
    """
    if jax.process_count() == 1:
        return
    text = np.frombuffer(json.dumps(settings, sort_keys=True).encode(), np.uint8)
    digests = multihost_utils.process_allgather(
        np.frombuffer(hashlib.sha256(text.tobytes()).digest(), np.uint8)
    )
    others = [index for index, digest in enumerate(digests) if (digest != digests[0]).any()]
    if not others:
        return
    sizes = multihost_utils.process_allgather(np.asarray(text.size))
    padded = np.zeros(sizes.max(), np.uint8)
    padded[: text.size] = text
    first = multihost_utils.broadcast_one_to_all(padded)[: sizes[0]]
    first = json.loads(np.asarray(first, np.uint8).tobytes())
    if jax.process_index() not in others:
        names = ", ".join(map(str, others))
        raise UserError(f"process {names} has another config than process 0, and says where")
    here = json.loads(text.tobytes())
    differing = [
        f"{name} is {here.get(name)!r} here and {first.get(name)!r} in process 0"
        for name in sorted(here.keys() | first.keys())
        if here.get(name) != first.get(name)
    ]
    raise UserError(f"{'; '.join(differing)}: start all processes with the same config")


def decided_by_process_zero(decide: Callable[[], int | None]) -> int | None:
    """An integer or None that `decide`, called on process 0 alone, gives; the same on all.

    Raises:
      UserError: on the others, where it failed on process 0.
    """
    none, failed = -1, -2
    if jax.process_count() == 1:
        return decide()
    decision = failed
    try:
        if jax.process_index() == 0:
            decision = decide()
    finally:
        told = none if decision is None else decision
        told = int(multihost_utils.broadcast_one_to_all(np.asarray(told)))
    if told == failed:
        raise UserError("process 0 cannot go on, and says why")
    return None if told == none else told
