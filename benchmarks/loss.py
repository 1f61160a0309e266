"""Time and memory of the losses in tiles, beside their definitions and PyTorch.

    python -m benchmarks.loss [--rows=4096,8192] [--devices=1,8] [--memory-only --topology=v5e:2x4]

Measured are the value and the gradient by both embeddings and the scale: of the contrastive term
alone, and of the whole loss with both cyclic terms. In a round each form runs once, so that what
else the machine does slows all of them; ratios are medians over the rounds.

"dense" is the definition, left to XLA: over several devices its rows are split like ours. "PyTorch"
is open_clip's ClipLoss, with the cyclic terms from their definition, on one device. Of a CPU that
is made to look like several devices the memory is right, but times mean little.
"""

import argparse
import dataclasses
import functools
import os
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from benchmarks.pytorch import cyclic_terms, has_pytorch
from benchmarks.report import local_devices, numbers, table, write_json
from cyclip_jax import parallel
from cyclip_jax.costs.aot import slice_devices
from cyclip_jax.errors import UserError
from cyclip_jax.losses import contrastive_loss, cyclip_loss
from cyclip_jax.losses.contrastive import CHUNK_SIZE, contrastive_loss_dense
from cyclip_jax.losses.cyclic import cyclic_consistency_dense

LOSSES = ("contrastive", "whole")
INMODAL_WEIGHT, CROSSMODAL_WEIGHT = 0.25, 0.25
LOGIT_SCALE = 1 / 0.07
# Largest relative difference between two forms, of the loss or of one of its gradients, which have
# the embeddings' type.
TOLERANCES = {"float32": 1e-4, "bfloat16": 1e-2}

COLUMNS = {
    "N": ("rows", "d"),
    "devices": ("devices", "d"),
    "loss": ("loss", ""),
    "form": ("form", ""),
    "ms": ("milliseconds", ".1f"),
    "time / dense": ("time_to_dense", ".2f"),
    "time / PyTorch": ("time_to_pytorch", ".2f"),
    "temporaries, MiB": ("temporary_mebibytes", ".1f"),
    "memory / dense": ("memory_to_dense", ".3f"),
    "difference": ("difference", ".0e"),
}


@dataclasses.dataclass(frozen=True)
class Form:
    """A way to compute a loss and its gradients.

    Attributes:
      run: function without arguments that returns them when they are computed.
      fetch: function from what `run` returns to NumPy arrays (loss, three gradients).
      temporary_bytes: on each device, besides embeddings and gradients; None if not known.
    """

    run: object
    fetch: object
    temporary_bytes: int | None = None


def ours(loss, mesh, chunk_size):
    """The function (image_embeds, text_embeds, logit_scale) -> loss, as a train step has it."""
    if loss == "whole":
        return lambda *args: cyclip_loss(
            *args,
            inmodal_weight=INMODAL_WEIGHT,
            crossmodal_weight=CROSSMODAL_WEIGHT,
            chunk_size=chunk_size,
            mesh=mesh,
        )[0]
    if mesh.size == 1:
        return lambda *args: contrastive_loss(*args, chunk_size=chunk_size)[0]
    rows = parallel.batch_sharding(mesh).spec
    return jax.shard_map(
        lambda *args: contrastive_loss(*args, chunk_size=chunk_size, axis_names=mesh.axis_names)[0],
        mesh=mesh,
        in_specs=(rows, rows, PartitionSpec()),
        out_specs=PartitionSpec(),
    )


def dense(loss):
    """The same function from the definitions."""

    def function(image_embeds, text_embeds, logit_scale):
        value, _ = contrastive_loss_dense(image_embeds, text_embeds, logit_scale)
        if loss == "contrastive":
            return value
        inmodal, crossmodal = cyclic_consistency_dense(image_embeds, text_embeds)
        return value + INMODAL_WEIGHT * inmodal + CROSSMODAL_WEIGHT * crossmodal

    return function


def compiled_form(function, embeds, mesh):
    """The Form of a function of ours.

    Args:
      function: as `ours` returns it.
      embeds: [image embeddings, text embeddings], arrays; or shapes, for a form that cannot run.
      mesh: the mesh that their rows are split over.
    """
    rows, whole = parallel.batch_sharding(mesh), parallel.replicated(mesh)
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows) for x in embeds]
    shapes.append(jax.ShapeDtypeStruct((), jnp.float32, sharding=whole))
    compiled = (
        jax.jit(jax.value_and_grad(function, (0, 1, 2)), out_shardings=(whole, (rows, rows, whole)))
        .trace(*shapes)
        .lower(lowering_platforms=(mesh.devices.flat[0].platform,))
        .compile()
    )

    @functools.cache
    def inputs():
        return jax.device_put((*embeds, np.float32(LOGIT_SCALE)), (rows, rows, whole))

    return Form(
        run=lambda: jax.block_until_ready(compiled(*inputs())),
        fetch=jax.device_get,
        temporary_bytes=compiled.memory_analysis().temp_size_in_bytes,
    )


def pytorch_form(loss, embeds, platform):
    """The Form that a user of open_clip would write, computed in float32 like the others."""
    from tests.pytorch import open_clip, torch

    device = "cuda" if platform == "gpu" else "cpu"
    dtype = getattr(torch, embeds[0].dtype.name)
    inputs = [torch.tensor(np.float32(x), dtype=dtype, device=device) for x in embeds]
    inputs.append(torch.tensor(LOGIT_SCALE, device=device))
    for tensor in inputs:
        tensor.requires_grad_()
    clip_loss = open_clip.ClipLoss()

    def run():
        images, texts, logit_scale = (tensor.float() for tensor in inputs)
        value = clip_loss(images, texts, logit_scale)
        if loss == "whole":
            inmodal, crossmodal = cyclic_terms(images, texts)
            value = value + INMODAL_WEIGHT * inmodal + CROSSMODAL_WEIGHT * crossmodal
        gradients = torch.autograd.grad(value, inputs)
        if device == "cuda":
            torch.cuda.synchronize()
        return value, gradients

    return Form(run, lambda out: jax.tree.map(lambda x: x.detach().float().cpu().numpy(), out))


def draw_embeddings(rows, width, dtype):
    """Unit-norm [image embeddings, text embeddings] of alike pairs, both [rows, width]."""
    rng = np.random.default_rng(0)
    images = rng.standard_normal((rows, width), np.float32)
    texts = images + 2 * rng.standard_normal((rows, width), np.float32)
    return [
        (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(jnp.dtype(dtype))
        for x in (images, texts)
    ]


def difference(actual, expected):
    """Largest norm of a difference by the norm, of the loss and its gradients."""
    pairs = zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True)
    pairs = ((np.asarray(a, np.float64), np.asarray(e, np.float64)) for a, e in pairs)
    return float(max(np.linalg.norm(a - e) / np.linalg.norm(e) for a, e in pairs))


def differences(forms, *, tolerance):
    """{name: difference from the first form}, each run once.

    Raises:
      ValueError: one exceeds the tolerance.
    """
    first, found = None, {}
    for name, form in forms.items():
        result = form.fetch(form.run())
        first = result if first is None else first
        found[name] = difference(result, first)
        if not found[name] <= tolerance:
            raise ValueError(f"{name} differs by {found[name]:.1e} from {next(iter(forms))}")
    return found


def seconds_in_turn(forms, repeats):
    """{name: seconds in each round}."""
    seconds = {name: [] for name in forms}
    for _ in range(repeats):
        for name, form in forms.items():
            start = time.perf_counter()
            form.run()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def measure(forms, *, repeats, tolerance):
    """A row of the table for each of {name: Form}; without repeats, of what needs no run."""
    found = differences(forms, tolerance=tolerance) if repeats else {}
    seconds = seconds_in_turn(forms, repeats)

    def ratio(name, other):
        if other not in forms or name == other or not repeats:
            return None
        rounds = zip(seconds[name], seconds[other], strict=True)
        return statistics.median(a / b for a, b in rounds)

    for name, form in forms.items():
        row = {"form": name, "difference": found.get(name)}
        if repeats:
            row["milliseconds"] = 1e3 * statistics.median(seconds[name])
        row |= {"time_to_dense": ratio(name, "dense"), "time_to_pytorch": ratio(name, "PyTorch")}
        if form.temporary_bytes is not None:
            row["temporary_mebibytes"] = form.temporary_bytes / 2**20
            if name != "dense" and "dense" in forms:
                row["memory_to_dense"] = form.temporary_bytes / forms["dense"].temporary_bytes
        yield row


def rows_and_notes(args, devices, side_by_side):
    """(rows of the table, what was left out) for each N on these devices.

    Args:
      args: what `main` has parsed.
      devices: list of jax.Device.
      side_by_side: whether PyTorch is measured as well.
    """
    mesh = parallel.create_mesh(devices)
    rows, notes = [], []
    for n in args.rows:
        parallel.check_batch_size(n, mesh)
        embeds = [jax.ShapeDtypeStruct((n, args.dim), jnp.dtype(args.dtype))] * 2
        if not args.memory_only:
            embeds = draw_embeddings(n, args.dim, args.dtype)
        matrix = 4 * n * n / len(devices) / 2**30
        fits = matrix <= args.dense_limit
        if not fits:
            notes.append(f"N = {n} on {len(devices)}: an N×N matrix is {matrix:.1f} GiB per device")
        for loss in LOSSES:
            forms = {"ours": compiled_form(ours(loss, mesh, args.chunk_size), embeds, mesh)}
            if fits:
                forms["dense"] = compiled_form(dense(loss), embeds, mesh)
            if fits and side_by_side and len(devices) == 1:
                forms["PyTorch"] = pytorch_form(loss, embeds, devices[0].platform)
            measured = measure(
                forms,
                repeats=0 if args.memory_only else args.repeats,
                tolerance=TOLERANCES[args.dtype],
            )
            rows += [{"rows": n, "devices": len(devices), "loss": loss, **row} for row in measured]
    return rows, notes


def main(argv=None):
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=numbers, default=[1024, 4096, 16384], help="N, list")
    parser.add_argument("--dim", type=int, default=512, help="width of the embeddings")
    parser.add_argument("--devices", type=numbers, default=[1], help="how many, list")
    parser.add_argument("--dtype", choices=TOLERANCES, default="float32", help="of the embeddings")
    parser.add_argument("--chunk-size", type=int, default=CHUNK_SIZE, help="as config.loss has it")
    parser.add_argument("--repeats", type=int, default=5, help="rounds")
    parser.add_argument(
        "--dense-limit",
        type=float,
        default=1.0,
        help="leave out dense and PyTorch, which hold several N×N matrices, where one has more "
        "than so many GiB on a device",
    )
    parser.add_argument(
        "--side-by-side",
        action=argparse.BooleanOptionalAction,
        default=has_pytorch(),
        help="measure PyTorch as well; default where it and open_clip are installed",
    )
    parser.add_argument("--memory-only", action="store_true", help="compile, do not run")
    parser.add_argument("--topology", help="with --memory-only: a TPU slice, e.g. v5e:2x4")
    parser.add_argument("--json", help="file to write the table's rows to")
    args = parser.parse_args(argv)
    if args.topology and not args.memory_only:
        parser.error("--topology needs --memory-only")
    if args.side_by_side and not has_pytorch():
        parser.error("--side-by-side needs PyTorch; pip install torch open_clip_torch")
    # JAX would take most of a GPU's memory, and PyTorch's idle threads would keep the CPU busy.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        if args.topology:
            meshes = [slice_devices(args.topology)]
        else:
            devices = local_devices(max(args.devices))
            meshes = [devices[:count] for count in args.devices]
        rows, notes = [], []
        for devices in meshes:
            new_rows, new_notes = rows_and_notes(args, devices, args.side_by_side)
            rows, notes = rows + new_rows, notes + new_notes
    except UserError as error:
        parser.error(str(error))
    print(
        f"{meshes[0][0].device_kind}, {args.dtype}, D = {args.dim}, chunk size {args.chunk_size}\n"
    )
    print(table(rows, COLUMNS))
    for note in notes:
        print(f"No dense form of {note}.")
    if args.json:
        write_json(args.json, rows)


if __name__ == "__main__":
    main()
