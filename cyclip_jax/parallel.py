"""The mesh, what is split over it, and how host arrays become global ones.

No model code names an axis.
"""

import contextlib
import dataclasses
import functools
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from cyclip_jax.errors import UserError

# The batch is split over both axes, parameters and the optimiser's state over the second: devices
# along `fsdp` share one copy of them (fully sharded data parallelism).
DATA_AXIS, FSDP_AXIS = "data", "fsdp"


# The first rule found in a parameter's path, names joined by "/", says which dimension is split.
_LAST_OF_2, _LAST_OF_4 = PartitionSpec(None, FSDP_AXIS), PartitionSpec(None, None, None, FSDP_AXIS)


PARTITION_RULES = (
    (r"conv\w*/kernel$", _LAST_OF_4),  # [height, width, in, out]
    (r"/kernel$", _LAST_OF_2),  # [in, out]
    (r"text/token_embedding$", _LAST_OF_2),  # [vocabulary, width]
    (r"(visual/proj|text/text_projection)$", _LAST_OF_2),  # [width, embedding]
    (r"/(positional_embedding|class_embedding|pos_embed)$", PartitionSpec()),
    (r"/(query|latent|head_scale|in_proj_bias)$", PartitionSpec()),
    (r"/(bias|scale)$", PartitionSpec()),
    (r"^logit_(scale|bias)$", PartitionSpec()),
)
# What models multiply by, and cast to their own type before.
_WEIGHTS = ("kernel", "proj", "text_projection")


# A pytree: nested dicts, or dataclasses as a train state, whose leaves are arrays or what stands
# for them, shapes or shardings. Checkers know no type for it, and take jaxtyping's for Any, too.
Tree: TypeAlias = Any
# To type checkers jax.Device is a variable: jaxlib, which has its class, has no stubs.
Devices: TypeAlias = Sequence[jax.Device]  # pyright: ignore[reportInvalidTypeForm]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshSettings:
    """config.mesh.

    Attributes:
      fsdp: how many devices share one copy of the parameters and the optimiser's state.
      fsdp_min_size: parameters of fewer numbers than this stay whole.
      gradient_dtype: type in which the devices' gradients are added up, "float32" or "bfloat16".

    Raises:
      UserError: fsdp is less than 1, or there is no such type.
    """

    fsdp: int
    fsdp_min_size: int
    gradient_dtype: str

    def __post_init__(self) -> None:
        if self.fsdp < 1:
            raise UserError(f"config.mesh.fsdp {self.fsdp} must be at least 1")
        if self.gradient_dtype not in ("float32", "bfloat16"):
            raise UserError(
                f"config.mesh.gradient_dtype {self.gradient_dtype!r} must be 'float32' or "
                "'bfloat16'"
            )

    def create(self, devices: Devices | None = None) -> Mesh:
        """The mesh over devices, see `create_mesh`."""
        return create_mesh(devices, fsdp=self.fsdp)


def create_mesh(devices: Devices | None = None, *, fsdp: int = 1) -> Mesh:
    """A mesh over `devices`, by default all of them, process by process.

    Args:
      devices: sequence of jax.Device.
      fsdp: how many devices, neighbours in `devices`, share one copy of the parameters.

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


def rows_over(mesh: Mesh | None) -> contextlib.AbstractContextManager[Any]:
    """While a function is traced in it, each device of the mesh runs kernels on its own rows."""
    if mesh is None:
        return contextlib.nullcontext()
    return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def on_own_rows(function: Callable[..., Any], params: Tree, *rows: Any) -> Any:
    """function(params, *rows), in which each device of `rows_over(mesh)` takes its own rows.

    No row of the result may depend on other rows. The devices' gradients of the parameters are
    added up in the parameters' own type. XLA by itself would add them up in the type that the
    function casts the parameters to.

    Args:
      function: of a tree of parameters and arrays [n, ...]; it gives an array [n, ...].
      params: tree of arrays, none of them split.
      *rows: trees of arrays [N, ...], or None.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.size <= 1 or mesh.manual_axes:  # one device, or inside such a function
        return function(params, *rows)
    splits = jax.tree.map(functools.partial(_splits, mesh=mesh), params)
    given = jax.tree.map(
        lambda array, split: _copies(array, mesh) if split else array, params, splits
    )

    def on_device(given, *rows):
        own = jax.tree.map(lambda array, split: array[0] if split else array, given, splits)
        return function(own, *rows)

    own, whole = PartitionSpec(mesh.axis_names), PartitionSpec()
    specs = jax.tree.map(lambda split: own if split else whole, splits)
    in_specs = (specs, *[own] * len(rows))
    # It sends nothing that could be forgotten, and pallas_call does not say what varies.
    return jax.shard_map(on_device, mesh=mesh, in_specs=in_specs, out_specs=own, check_vma=False)(
        given, *rows
    )


def _splits(array, mesh):
    """Whether a parameter's gradient comes back split, as PARTITION_RULES split matrices."""
    fsdp = mesh.shape[FSDP_AXIS]
    return array.ndim > 1 and fsdp > 1 and array.shape[-1] % fsdp == 0


@functools.partial(jax.custom_vjp, nondiff_argnames=("mesh",))
def _copies(array, mesh):
    """One for each device, [devices, ...]. Their gradient's sum is split, as XLA would not do."""
    return jnp.broadcast_to(array, (mesh.size, *array.shape))


def _copies_forward(array, mesh):
    return _copies(array, mesh), None


def _copies_backward(mesh, _, gradients):
    last = gradients.ndim - 2

    def add(gradients):
        (gradient,) = gradients
        gradient = jax.lax.psum_scatter(gradient, FSDP_AXIS, scatter_dimension=last, tiled=True)
        return jax.lax.psum(gradient, DATA_AXIS)

    split = PartitionSpec(*[None] * last, FSDP_AXIS)
    total = jax.shard_map(add, mesh=mesh, in_specs=PartitionSpec(mesh.axis_names), out_specs=split)
    return (total(gradients),)


_copies.defvjp(_copies_forward, _copies_backward)


def parameter_sharding(params: Tree, mesh: Mesh, *, min_size: int) -> Tree:
    """The shardings of parameters by PARTITION_RULES.

    Args:
      params: nested dict of arrays or shapes.
      mesh: as `create_mesh` makes it.
      min_size: arrays of fewer elements than this stay whole, as splitting them saves little and
        costs a collective. Arrays whose dimension the axis does not divide stay whole too.

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


def gathered(params: Tree, sharding: Tree | None, gradient_dtype: str = "float32") -> Tree:
    """The whole parameters, which every device needs to compute with.

    Without this, XLA may split activations by channel to suit the parameters. The gradient comes
    back summed over the devices and split as the parameters are.

    Args:
      params: nested dict of arrays.
      sharding: the same tree of NamedSharding; None where nothing is split.
      gradient_dtype: with "bfloat16" the weights are that, and so are their gradients and the sums
        of these. No number changes that a bfloat16 model computes of them, as it casts them anyway.

    Returns:
      The same tree of arrays, none of them split.
    """

    def gather(path, array, split):
        if gradient_dtype == "bfloat16" and path[-1].key in _WEIGHTS:
            array = array.astype(jnp.bfloat16)
        if split is None or split.is_fully_replicated:
            return array
        # XLA would split by channel what is added up into an embedding's rows.
        return _whole(array, split, path[-1].key == "token_embedding")

    if sharding is None:
        sharding = jax.tree.map(lambda _: None, params)
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


def check_batch_size(
    batch_size: int, mesh: Mesh, *, micro_batches: int = 1, name: str = "config.batch_size"
) -> None:
    """Raises UserError unless every device gets the same number of rows in each micro-batch.

    Args:
      batch_size: rows of the global batch.
      mesh: the mesh that they are split over.
      micro_batches: parts in which each device takes its rows.
      name: of the setting, for the message.
    """
    if micro_batches < 1:
        raise UserError(f"config.micro_batches {micro_batches} must be at least 1")
    rows = mesh.size * micro_batches
    if batch_size < 1 or batch_size % rows:
        parts = f"{mesh.size} devices"
        if micro_batches > 1:
            parts += f" and {micro_batches} micro-batches"
        raise UserError(
            f"{name} {batch_size} does not split evenly over {parts}; "
            f"set it to a positive multiple of {rows}"
        )


def to_global(batch: Tree, mesh: Mesh) -> Tree:
    """Makes global arrays of the rows that each process holds.

    Args:
      batch: tree of host arrays with this process's rows, [n, ...].
      mesh: the mesh that the rows are split over.

    Returns:
      The same tree of global arrays [N, ...], sharded over rows.
    """
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda rows: jax.make_array_from_process_local_data(sharding, rows), batch)


def place(tree: Tree, abstract: Tree) -> Tree:
    """Makes global arrays of host arrays that are the same on every process.

    Args:
      tree: tree of host arrays.
      abstract: the same tree of what has a sharding, such as jax.ShapeDtypeStruct.

    Returns:
      The same tree of global arrays with the shardings of `abstract`.
    """
    return jax.tree.map(
        lambda array, like: jax.make_array_from_callback(
            array.shape, like.sharding, lambda index: array[index]
        ),
        tree,
        abstract,
    )
