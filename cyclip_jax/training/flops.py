"""Counts the floating point operations of a step, and their share of a device's peak."""

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import jax
from flax import nnx
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

from cyclip_jax.losses.terms import PAIRS, Row
from cyclip_jax.models.presets import abstract_model
from cyclip_jax.parallel import Devices, Tree
from cyclip_jax.training.step import embed_rows

# Dense bfloat16 peak of one device as JAX counts devices, in operations per second, by the
# beginning of its `device_kind`. NVIDIA's data sheets print twice as much: with sparsity.
PEAK_FLOPS_PER_SECOND: dict[str, float] = {
    "NVIDIA A100": 312e12,  # A100 data sheet, SXM and PCIe
    "NVIDIA H100 80GB HBM3": 989e12,  # H100 data sheet, SXM
    "NVIDIA H100 PCIe": 756e12,  # H100 data sheet, PCIe
    "NVIDIA H100 NVL": 835e12,  # H100 data sheet, NVL
    "NVIDIA H200": 989e12,  # H200 data sheet, SXM
    "NVIDIA H200 NVL": 835e12,  # H200 data sheet, NVL
    "NVIDIA B200": 2250e12,  # DGX B200 data sheet, an eighth
    "NVIDIA L4": 121e12,  # L4 data sheet
    "NVIDIA L40S": 362e12,  # L40S data sheet
    # cloud.google.com/tpu/docs, the page of each version. A v2, v3 or 7x chip is two devices.
    "TPU v2": 45e12 / 2,
    "TPU v3": 123e12 / 2,
    "TPU v4": 275e12,
    "TPU v4 lite": 137e12,  # jax.experimental.pallas's tpu_info, v4i
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "TPU7x": 2307e12 / 2,
}


def matmul_flops(function: Callable[..., object], *args: Tree) -> int:
    """Floating point operations of all matrix products and convolutions of `function(*args)`.

    A multiplication with its addition counts 2, so that [M, K] @ [K, N] is 2·M·K·N. They are
    counted on the jaxpr: nothing is computed or compiled, and the work of all devices together is
    counted once. All other operations are left out. So are products inside a custom call, such as
    cuDNN's attention, which the jaxpr does not show.

    A convolution counts its zero padding, but not the zeros between the dilated inputs of a strided
    convolution's gradient, which therefore costs as much as the forward convolution. Of a `cond`,
    the most expensive branch counts. In a `shard_map`, each device's work counts, and in a Pallas
    kernel that of every place of its grid.

    Args:
      function: function of arrays, or of trees of arrays.
      *args: arrays or jax.ShapeDtypeStructs.

    Returns:
      An int.

    Raises:
      ValueError: there are products in a `while` loop, where the jaxpr does not tell how often they
        run.
    """
    return _jaxpr_flops(jax.make_jaxpr(function)(*args))


def training_flops(forward: Callable[..., object], *args: Tree) -> int:
    """Floating point operations of a training step: 3 times the forward's.

    This is the convention of Chowdhery et al. 2022 (PaLM), appendix B: the gradient with respect to
    each of a product's two operands costs one forward. What rematerialisation computes again does
    not count, nor does what the optimiser does.

    Args:
      forward: as `function` in `matmul_flops`.
      *args: as in `matmul_flops`.

    Returns:
      An int.

    Raises:
      ValueError: as in `matmul_flops`.
    """
    return 3 * matmul_flops(forward, *args)


def model_flops(
    settings: Mapping[str, Any],
    batch: Mapping[str, Any],
    rows: Mapping[str, Row] = PAIRS,
    frozen: Collection[str] = (),
) -> int:
    """Floating point operations of a CLIP model's training on a batch; nothing is computed.

    Args:
      settings: arguments of `create_model`, e.g. config.model.
      batch: what the towers see, arrays or shapes: {"images": uint8 [N, H, W, 3], "tokens": int32
        [N, L]} and, where patches are dropped, "kept_patches" int32 [N, K].
      rows: which rows of the batch are embedded, as an objective says (see `embed_rows`). A
        sentence head, which is small, does not count.
      frozen: the towers that do not train, "visual" or "text", which cost a forward pass alone.

    Returns:
      An int (see `training_flops`). Losses do not count.
    """
    # Counted are matrix products, which a fused attention does not show.
    graphdef, _, variables = abstract_model({**settings, "attention": "xla"})

    def towers(rows):
        def embed(params, batch_stats, batch):
            model = nnx.merge(graphdef, params, batch_stats, copy=True)
            return embed_rows(model, batch, rows)

        return embed

    rows = {name: Row(*row) for name, row in rows.items()}
    parts = {name: "visual" if row.tower == "visual" else "text" for name, row in rows.items()}
    trained = {name: row for name, row in rows.items() if parts[name] not in frozen}
    fixed = {name: row for name, row in rows.items() if parts[name] in frozen}
    arguments = variables["params"], variables["batch_stats"], batch
    return training_flops(towers(trained), *arguments) + matmul_flops(towers(fixed), *arguments)


def peak_flops(device_kind: str) -> float | None:
    """Dense bfloat16 peak of a device in operations per second, or None for an unknown one.

    Args:
      device_kind: the attribute of a jax.Device, e.g. "NVIDIA A100-SXM4-80GB" or "TPU v5 lite".
    """
    if " MIG " in device_kind:  # a part of a GPU
        return None
    # Whole words: an L40 is no L4.
    known = [
        name
        for name in PEAK_FLOPS_PER_SECOND
        if device_kind == name or device_kind.startswith((f"{name} ", f"{name}-"))
    ]
    return PEAK_FLOPS_PER_SECOND[max(known, key=len)] if known else None


def utilisation(
    flops_per_step: float,
    seconds_per_step: float,
    devices: Devices,
) -> float | None:
    """Model FLOPs utilisation (MFU), the share of the devices' bfloat16 peak that is used, 0 … 1.

    See Chowdhery et al. 2022 (PaLM), appendix B.

    Args:
      flops_per_step: operations for the whole batch, as `training_flops` gives them.
      seconds_per_step: wall-clock time of a step.
      devices: the list of jax.Devices that share a step, all of one kind.

    Returns:
      A float, or None where the device's peak is not known.
    """
    peak = peak_flops(devices[0].device_kind)
    if peak is None:
        return None
    return flops_per_step / (seconds_per_step * len(devices) * peak)


def _jaxpr_flops(jaxpr: Jaxpr | ClosedJaxpr) -> int:
    return sum(_equation_flops(equation) for equation in jaxpr.eqns)


def _equation_flops(equation: JaxprEqn) -> int:
    params: Mapping[str, Any] = equation.params
    match equation.primitive.name:
        case "dot_general":
            return _dot_flops(equation)
        case "conv_general_dilated":
            return _convolution_flops(equation)
        case "cond":
            return max(_jaxpr_flops(branch) for branch in params["branches"])
    inner = sum(_jaxpr_flops(jaxpr) for jaxpr in _jaxprs(params))
    match equation.primitive.name:
        case "scan":
            return params["length"] * inner
        case "shard_map":
            # Those of this shard_map, not of one around it; jax 0.10.0 still had the shorter name.
            name = "newly_manual_axes" if "newly_manual_axes" in params else "manual_axes"
            return math.prod(params["mesh"].shape[axis] for axis in params[name]) * inner
        case "pallas_call":
            return math.prod(params["grid_mapping"].grid) * inner
        case "while" if inner:
            raise ValueError(
                "matrix products in a while, whose number of runs is not in the jaxpr, cannot be "
                "counted; count an equal function with lax.scan or plain products"
            )
    return inner


def _jaxprs(params: Mapping[str, Any]) -> Iterator[Jaxpr | ClosedJaxpr]:
    """The jaxprs, open or closed, among an equation's parameters, whatever their names."""
    for value in params.values():
        for item in value if isinstance(value, list | tuple) else (value,):
            if isinstance(item, Jaxpr | ClosedJaxpr):
                yield item


def _aval(variable: Any) -> jax.ShapeDtypeStruct:
    """Shape and type of an equation's variable."""
    return variable.aval


def _dot_flops(equation: JaxprEqn) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = _aval(equation.invars[0]).shape
    return 2 * _aval(equation.outvars[0]).size * math.prod(left[axis] for axis in contracted)


def _convolution_flops(equation: JaxprEqn) -> int:
    # Groups of either kind need no care: the kernel's second dimension is what one output sees.
    _, inputs, *spatial = equation.params["dimension_numbers"].rhs_spec
    kernel = _aval(equation.invars[1]).shape
    products_per_output = math.prod(kernel[axis] for axis in (inputs, *spatial))
    dilation = math.prod(equation.params["lhs_dilation"])
    return 2 * _aval(equation.outvars[0]).size * products_per_output // dilation
