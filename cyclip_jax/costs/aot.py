"""Compiles train steps for devices that need not be there, and tells what they need of each."""

import dataclasses
import functools
import importlib.util
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import optax
from jax.sharding import Mesh

from cyclip_jax import parallel
from cyclip_jax.costs import hlo
from cyclip_jax.costs.chips import CHIPS, Chip
from cyclip_jax.errors import UserError
from cyclip_jax.models.presets import sizes_in
from cyclip_jax.parallel import Devices, Tree
from cyclip_jax.training.averaging import Average, with_average
from cyclip_jax.training.configured_model import abstract_trained, create_trained
from cyclip_jax.training.flops import matmul_flops, model_flops
from cyclip_jax.training.freezing import check_freeze, frozen_towers, trainable_by
from cyclip_jax.training.objective import configured_objective
from cyclip_jax.training.optimizer import create_optimizer
from cyclip_jax.training.sentences import Sentences
from cyclip_jax.training.stages import Stage, batch_shapes, seen_of, stages_of_run
from cyclip_jax.training.step import (
    Batch,
    TrainState,
    abstract_state,
    configured_step,
    jit_step,
)
from cyclip_jax.training.token_reduction import TokenReduction

# The loop sends batches ahead: besides a step's own, so many may be on the device (see Feed).
WAITING_BATCHES = 2
# The share of a device's memory at which a batch is large enough to stop looking.
_CLOSE = 0.95
# Of a v4 two cores make one device, as JAX has them on a real one; a v5p's do so anyway.
_CHIP_CONFIGS = {"v4": {"chip_config_name": "megacore"}}
_OPTIONS = {
    # What runs nowhere need not be good machine code; buffers and collectives are the same.
    "cpu": {"xla_backend_optimization_level": 0},
    # Without a GPU to try them out on, Triton's tiles are a guess that may not even compile.
    "gpu": {"xla_gpu_enable_triton_gemm": False},
}
GPU_PLUGINS = ("jax_plugins.xla_cuda13", "jax_plugins.xla_cuda12")
_OVERFLOWS = (
    re.compile(r"(?P<what>Used) (?P<needed>[\d.]+[KMGT]?) of (?P<available>[\d.]+[KMGT]?) hbm"),
    re.compile(
        r"required for (?P<what>[^(]*) \((?P<needed>[\d.]+[KMGT]?)\) exceeds available HBM "
        r"\((?P<available>[\d.]+[KMGT]?)\)"
    ),
)


class OutOfMemory(Exception):
    """The compiler refuses a program that needs more memory than a device has.

    Attributes:
      needed: bytes that the program needs at least.
      available: bytes that the device has.
    """

    def __init__(self, needed: float, available: float) -> None:
        super().__init__(f"needs {needed:.0f} of {available:.0f} bytes")
        self.needed: float = needed
        self.available: float = available


def parse_topology(topology: str) -> tuple[Chip, tuple[int, ...]]:
    """ "v5e:16x16" -> (Chip, (16, 16)); "h100:32" -> (Chip, (32,)).

    Raises:
      UserError: there is no such chip, or no such slice of it.
    """
    name, _, shape = topology.partition(":")
    if name not in CHIPS:
        raise UserError(
            f"--topology={topology} names no known chip; choose one of {', '.join(CHIPS)}"
        )
    chip = CHIPS[name]
    dimensions, largest = chip.slice_shape or (1, 0)
    example = {1: "4x8", 2: "4x8", 3: "2x2x4"}[dimensions]
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", shape):
        raise UserError(
            f"--topology={topology} does not say how many chips there are along each dimension; "
            f"write e.g. {name}:{example}"
        )
    sides = tuple(map(int, shape.split("x")))
    # The compiler would end the process, not raise.
    too_large = largest is not None and (
        math.prod(sides) > largest or (dimensions == 2 and max(sides) > math.isqrt(largest))
    )
    if chip.is_tpu and (len(sides) != dimensions or too_large):
        most = "16x16" if dimensions == 2 else f"{largest} chips"
        raise UserError(
            f"--topology={topology}: a slice of {name} has {dimensions} dimensions and at most "
            f"{most}, e.g. {name}:{example}"
        )
    return chip, sides


def slice_devices(topology: str) -> Devices:
    """The devices of a TPU slice, for which one can compile without having it.

    Call it before JAX is used.

    Args:
      topology: e.g. "v5e:2x4".

    Raises:
      UserError: there is no such slice, or no compiler for it.
    """
    parse_topology(topology)
    # The compiler would ask the machine it is on for its slice, and wait for the answer.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", topology.replace(":", "-"))
    # One process may have a machine's TPUs; any number may compile.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    jax.config.update("jax_platforms", "cpu")
    from jax.experimental import topologies

    options = _CHIP_CONFIGS.get(topology.partition(":")[0], {})
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=topology, **options)
    except (RuntimeError, ValueError) as error:
        hint = "; pip install libtpu" if "not installed" in str(error) else ""
        raise UserError(f"--topology={topology}: {error}{hint}") from error
    return found.devices


def gpu_devices(chip: Chip, sides: Sequence[int]) -> Devices | None:
    """The GPUs of some machines, for which one can compile; None without XLA's compiler for them.

    Call it before JAX is used.

    Args:
      chip: one of chips.CHIPS.
      sides: (GPUs,) for one machine, or (machines, GPUs of each).
    """
    if not any(_is_installed(plugin) for plugin in GPU_PLUGINS):
        return None
    jax.config.update("jax_platforms", "cpu")
    from jax.experimental import topologies

    *machines, per_machine = sides
    shape = f"1x{math.prod(machines)}x{per_machine}"
    target = _target_config(chip)
    return topologies.get_topology_desc(
        platform="cuda", topology=shape, target_config=target
    ).devices


def stand_ins(count: int) -> Devices:
    """Devices of this CPU for chips whose compiler is missing; call it before JAX is used."""
    # JAX gives its config these attributes when it is imported.
    if jax.config.jax_num_cpu_devices < count:  # pyright: ignore[reportAttributeAccessIssue]
        jax.config.update("jax_num_cpu_devices", count)
    return jax.devices("cpu")[:count]


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the package around it
        return False


def _target_config(chip: Chip) -> str:
    """A GPU as text of XLA's GpuTargetConfigProto."""
    about = chip.target or {}
    major, minor = about["capability"].split(".")
    shared = about["shared_kib"] * 1024
    return f"""
gpu_device_info {{
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  core_count: {about["cores"]}
  fpus_per_core: {about["fpus_per_core"]}
  clock_rate_ghz: {about["gigahertz"]}
  memory_bandwidth: {chip.memory_bandwidth:.0f}
  device_memory_size: {chip.memory:.0f}
  l2_cache_size: {about["l2_mib"] * 2**20}
  shared_memory_per_core: {shared}
  shared_memory_per_block_optin: {shared - 1024}
  shared_memory_per_block: 49152
  threads_per_block_limit: 1024
  threads_per_core_limit: {1536 if about["capability"] == "8.9" else 2048}
  threads_per_warp: 32
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 12 }}
runtime_version {{ major: 13 }}
device_description_str: "{chip.device_kind}"
"""


def stages(config: Any) -> Sequence[Stage]:
    """The stages of a run, whatever its data.

    A run whose length only its data tell, by num_epochs, is taken to have all its stages.
    """
    sentences = Sentences(**config.sentences)
    ends = max(sentences.only_steps, sentences.until_step or 0)
    return stages_of_run(
        *(configured_objective(config), sentences, TokenReduction(**config.tokens)),
        sizes=sizes_in(config.model),
        total_steps=config.total_steps or ends + config.tokens.full_steps + 1,
    )


@dataclasses.dataclass(frozen=True)
class AbstractStep:
    """The train step of a config on a mesh, and the shapes that it is compiled for.

    Attributes:
      function: (state, batch) -> (state, metrics), or (state, loss).
      state: a TrainState of jax.ShapeDtypeStruct with shardings.
      batch: {"images", "tokens", …} of jax.ShapeDtypeStruct with shardings.
      mesh: the mesh of the devices to compile for.
    """

    function: Callable[[TrainState, Batch], tuple[TrainState, Any]]
    state: TrainState
    batch: dict[str, jax.ShapeDtypeStruct]
    mesh: Mesh

    def lower(self) -> jax.stages.Lowered:
        """The jax.stages.Lowered that a run compiles."""
        sharding = jax.tree.map(lambda leaf: leaf.sharding, self.state)
        jitted = jit_step(self.function, mesh=self.mesh, state_sharding=sharding)
        platform = "cuda" if self._platform == "gpu" else self._platform
        return jitted.trace(self.state, self.batch).lower(lowering_platforms=(platform,))

    def compile(self) -> jax.stages.Compiled:
        """The step, compiled.

        Raises:
          OutOfMemory: a device has too little memory; only a TPU's compiler reports that.
        """
        try:
            return self.lower().compile(compiler_options=_OPTIONS.get(self._platform))
        except jax.errors.JaxRuntimeError as error:
            arguments = bytes_per_device((self.state, self.batch))
            refusal = read_overflow(str(error), arguments)
            if refusal is None:
                raise
            raise refusal from error

    @property
    def _platform(self) -> str:
        return self.mesh.devices.flat[0].platform


def abstract_step(
    config: Any, mesh: Mesh, *, stage: Stage | None = None, with_metrics: bool = True
) -> AbstractStep:
    """The AbstractStep of a config whose global batch is config.batch_size.

    Args:
      config: as defaults.py makes it.
      mesh: of the devices to compile for.
      stage: of the run; None is one with all terms that sees everything.
      with_metrics: False leaves out all metrics but the loss, and what only they need.
    """
    # The length of the schedule is one number in the program: without one, any will do.
    total_steps = config.total_steps or 10**9
    optimizer, schedule = create_optimizer(
        **config.optimizer, total_steps=total_steps, steps_per_epoch=1
    )
    stage = stage or Stage(first_step=0, objective=configured_objective(config))
    graphdef, params = abstract_trained(config)
    check_freeze(config.optimizer.freeze, params)
    state = state_shapes(config, optimizer, mesh)
    sharding = jax.tree.map(lambda leaf: leaf.sharding, state)
    average = Average(**config.average)
    step = configured_step(
        *(config, graphdef, optimizer, schedule),
        average_share=average.share(total_steps=total_steps),
        mesh=mesh,
        state_sharding=sharding,
        view=stage.view,
        objective=stage.objective,
        trainable=stage.trainable,
    )

    def step_and_loss(state, batch):
        state, metrics = step(state, batch)
        return state, metrics["loss"]

    sharding = parallel.batch_sharding(mesh)
    batch = batch_shapes(
        config, stage.objective.inputs, sharding=sharding, image_size=stage.image_size
    )
    return AbstractStep(step if with_metrics else step_and_loss, state, batch, mesh)


def read_overflow(message: str, arguments: float = 0) -> OutOfMemory | None:
    """The OutOfMemory that a TPU compiler's message tells of, or None for another message.

    Args:
      message: e.g. "… Used 21.95G of 15.48G hbm. …".
      arguments: bytes, which are not in the message if it is about temporaries alone.
    """
    for pattern in _OVERFLOWS:
        if found := pattern.search(message):
            needed = _bytes_of(found["needed"])
            if "temporaries" in found["what"]:
                needed += arguments
            return OutOfMemory(needed, _bytes_of(found["available"]))
    return None


def _bytes_of(text: str) -> float:
    """ "15.75G" -> bytes."""
    unit = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}.get(text[-1])
    return float(text[:-1]) * unit if unit else float(text)


def bytes_per_device(tree: Tree) -> int:
    """Bytes of the part of a sharded tree that one device holds."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def memory_of(compiled: jax.stages.Compiled, step: AbstractStep) -> dict[str, int]:
    """Bytes of a device's memory that a compiled AbstractStep takes, {what: bytes}.

    Their sum is what is needed: the step's arguments with what its compiler adds to them, what it
    makes on the way, itself, and the batches that the loop has sent ahead.
    """
    analysis = compiled.memory_analysis()
    if analysis is None:
        raise ValueError("the compiler does not tell how much memory its program takes")
    batch = bytes_per_device(step.batch)
    parts = {
        "parameters": bytes_per_device(step.state.params),
        "optimiser state": bytes_per_device(step.state.opt_state),
        "batch statistics": bytes_per_device(step.state.batch_stats),
        "batch": batch,
    }
    if step.state.average is not None:
        parts["average of the weights"] = bytes_per_device(step.state.average)
    return parts | {
        "counters, key, padding": analysis.argument_size_in_bytes - sum(parts.values()),
        "activations and temporaries": analysis.temp_size_in_bytes,
        "metrics": analysis.output_size_in_bytes - analysis.alias_size_in_bytes,
        "program": analysis.generated_code_size_in_bytes,
        f"{WAITING_BATCHES} batches in waiting": WAITING_BATCHES * batch,
    }


def work_of(config: Any, step: AbstractStep, stage: Stage) -> dict[str, int]:
    """Floating point operations of a step on all devices together, {what: number}.

    "model" is 3 times the forward's (see `model_flops`); "step" has the loss besides, what is
    computed twice to save memory, and all else that is a matrix product or a convolution.
    """
    key = jax.eval_shape(lambda: jax.random.key(0))
    seen = jax.eval_shape(functools.partial(seen_of, stage), key, step.batch)
    return {
        "model": model_flops(
            config.model,
            seen,
            stage.objective.rows,
            frozen_towers(config.optimizer.freeze, step.state.params),
        ),
        "step": matmul_flops(step.function, step.state, step.batch),
    }


def floors(chip: Chip, *, flops: float, memory_traffic: float, received: float) -> dict[str, float]:
    """Seconds that a step takes at each of a chip's peaks by itself; a real one takes longer.

    Products in more than bfloat16, as the loss has them, are slower than the peak used here.

    Args:
      chip: a Chip.
      flops: of one chip.
      memory_traffic: bytes that one chip moves to and from its memory.
      received: bytes that one chip receives from others.
    """
    return {
        "compute": flops / chip.peak_flops,
        "memory": memory_traffic / chip.memory_bandwidth,
        "links": received / chip.link_bandwidth,
    }


def traffic_of(compiled: jax.stages.Compiled) -> dict[str, Any]:
    """What the compiled program moves, of one device.

    Returns:
      {"collectives": {kind: {"executions", "bytes", "received"}}, "memory_bytes": int}; the bytes
      are those of the results, and "received" what comes from other devices.
    """
    text = compiled.as_text() or ""
    kinds = {}
    for each in hlo.collectives(text):
        of_kind = kinds.setdefault(each.kind, {"executions": 0, "bytes": 0, "received": 0.0})
        of_kind["executions"] += each.executions
        of_kind["bytes"] += each.executions * each.bytes
        of_kind["received"] += each.received
    return {"collectives": kinds, "memory_bytes": hlo.memory_traffic(text)}


def largest_batch(
    needs: Callable[[int], float],
    available: float,
    *,
    multiple: int,
    start: int,
    attempts: int = 3,
) -> tuple[int, float] | None:
    """The largest batch that fits, by straight lines through what was measured.

    Memory is nearly a straight line over batch sizes, but a compiler that runs short begins to
    compute things twice: what is returned was measured, and may not be the very largest.

    Args:
      needs: function of a batch size that gives the bytes a device then needs.
      available: bytes that a device has.
      multiple: batch sizes are multiples of this.
      start: batch size at which to begin looking, likely to fit.
      attempts: how often to measure where a line meets what is available.

    Returns:
      (batch size, bytes), or None if not even `multiple` fits.
    """
    measured = {}

    def fits(rows):
        if rows not in measured:
            measured[rows] = needs(rows * multiple)
        return measured[rows] <= available

    rows = max(start // multiple, 2)  # of each part of the batch
    while not fits(rows) and rows > 1:
        rows //= 2
    if not fits(rows):
        return None
    fits(max(rows // 2, 1))
    for _ in range(attempts):
        rows = _meeting(measured, available)
        is_close = any(_CLOSE * available <= needed <= available for needed in measured.values())
        if is_close or rows in measured:
            break
        fits(rows)
    best = max(rows for rows, needed in measured.items() if needed <= available)
    return best * multiple, measured[best]


def _meeting(measured: Mapping[int, float], available: float) -> int:
    """Where the line through two neighbours meets what is available, rounded down.

    The two are the largest that fits and the next above, or below where nothing is above.
    """
    fitting = [rows for rows, needed in measured.items() if needed <= available]
    low = max(fitting)
    others = [rows for rows in measured if rows > low] or [rows for rows in fitting if rows < low]
    if not others:
        return low
    other = min(others) if min(others) > low else max(others)
    slope = (measured[other] - measured[low]) / (other - low)
    if slope <= 0:
        return low
    rows = low + math.floor((available - measured[low]) / slope)
    # Memory is laid out by eight rows.
    return max(rows - rows % 8 if rows >= 64 else rows, low)


def state_shapes(config: Any, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """The state before the first step as a TrainState of jax.ShapeDtypeStruct with shardings."""
    state = abstract_state(
        functools.partial(create_trained, config),
        optimizer,
        mesh,
        seed=config.seed,
        min_size=config.mesh.fsdp_min_size,
    )
    if not Average(**config.average).is_on:
        return state
    return with_average(state, trainable_by(config.optimizer.freeze))
