"""Modules that compute in a narrower type than their parameters have, over several devices."""

import operator
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import nnx

from cyclip_jax import parallel


def by_rows(module: Any, *rows: Any, call: Callable[..., Any] = operator.call) -> Any:
    """module(*rows), whose gradient is added up over the devices in the type of the parameters.

    Where a module casts its parameters to bfloat16, XLA by itself would add up in that (see
    `parallel.on_own_rows`). What computes in float32 is left to it, and so is what has statistics
    of the batch, in which rows depend on one another: its parts are called like this one by one.

    Args:
      module: has a `dtype`, in which it computes.
      *rows: trees of arrays [N, ...], or None.
      call: function (module, *rows) in place of module(*rows).
    """
    if jnp.finfo(module.dtype).bits >= 32:
        return call(module, *rows)
    graphdef, params, statistics = nnx.split(module, nnx.Param, nnx.BatchStat)
    if statistics:
        return call(module, *rows)
    return parallel.on_own_rows(
        lambda params, *rows: call(nnx.merge(graphdef, params), *rows), params, *rows
    )
