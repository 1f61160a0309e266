"""Measures time and memory of the losses in tiles, beside their definitions and PyTorch.

    python -m benchmarks.loss [--rows=4096,8192] [--devices=1,8] [--memory-only --topology=v5e:2x4]

It computes the value, and the gradient by both embeddings and the scale, of two losses: the
contrastive term alone, and the whole loss with both cyclic terms. Each form runs once in a round,
so that all are slowed alike by what else the machine does. Ratios are medians over the rounds.

"dense" is the definition as XLA compiles it; over several devices its rows are split like ours.
"PyTorch" is open_clip's ClipLoss, with the cyclic terms from their definition, on one device. If a
CPU is made to look like several devices, the memory is right, but the times mean little.

With --siglip there is a third loss, SigLIP's sigmoid. Its "PyTorch" is open_clip's SigLipLoss,
which adds the texts of the devices chunk by chunk. On one device that is one chunk, so that it
holds N×N matrices, too; "chunked" does in turn what each of eight devices would do. "softmax" is
our contrastive term.
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
from cyclip_jax.losses.contrastive import contrastive_loss_dense
from cyclip_jax.losses.cyclic import cyclic_consistency_dense
from cyclip_jax.losses.sigmoid import sigmoid_loss, sigmoid_loss_dense
from cyclip_jax.losses.tiles import CHUNK_SIZE

LOSSES = ("contrastive", "whole")
SIGMOID = "sigmoid"
INMODAL_WEIGHT, CROSSMODAL_WEIGHT = 0.25, 0.25
LOGIT_SCALE = 1 / 0.07
SIGLIP_BIAS = -10.0  # at which SigLIP starts (Zhai et al. 2023)
SIGLIP_CHUNKS = 8  # of the texts, as on so many devices
COMPARED = ("dense", "PyTorch", "softmax")  # forms that the times of others are divided by
# The largest relative difference that two forms may have in the loss or in one of its gradients.
# The gradients have the type of the embeddings.
TOLERANCES = {"float32": 1e-4, "bfloat16": 1e-2}

COLUMNS = {
    "N": ("rows", "d"),
    "devices": ("devices", "d"),
    "loss": ("loss", ""),
    "form": ("form", ""),
    "ms": ("milliseconds", ".1f"),
    "time / dense": ("time_to_dense", ".2f"),
    "time / PyTorch": ("time_to_pytorch", ".2f"),
    "time / softmax": ("time_to_softmax", ".2f"),
    "temporaries, MiB": ("temporary_mebibytes", ".1f"),
    "memory / dense": ("memory_to_dense", ".3f"),
    "difference": ("difference", ".0e"),
}


@dataclasses.dataclass(frozen=True)
class Form:
    """A way to compute a loss and its gradients.

    Attributes:
      run: a function without arguments that computes them and returns them.
      fetch: a function that turns what `run` returns into NumPy arrays (loss, three gradients).
      temporary_bytes: memory on each device besides embeddings and gradients, or None if it is not
        known.
      is_same: False if the form computes another loss, which is not compared with the others.
    """

    run: object
    fetch: object
    temporary_bytes: int | None = None
    is_same: bool = True


def ours(loss, mesh, chunk_size):
    """Returns (image_embeds, text_embeds, logit_scale) -> loss as a train step computes it."""
    if loss == "whole":
        return lambda *args: cyclip_loss(
            *args,
            inmodal_weight=INMODAL_WEIGHT,
            crossmodal_weight=CROSSMODAL_WEIGHT,
            chunk_size=chunk_size,
            mesh=mesh,
        )[0]
    function = _sigmoid_loss if loss == SIGMOID else contrastive_loss
    if mesh.size == 1:
        return lambda *args: function(*args, chunk_size=chunk_size)[0]
    rows = parallel.batch_sharding(mesh).spec
    return jax.shard_map(
        lambda *args: function(*args, chunk_size=chunk_size, axis_names=mesh.axis_names)[0],
        mesh=mesh,
        in_specs=(rows, rows, PartitionSpec()),
        out_specs=PartitionSpec(),
    )


def _sigmoid_loss(image_embeds, text_embeds, logit_scale, **options):
    return sigmoid_loss(image_embeds, text_embeds, logit_scale, SIGLIP_BIAS, **options)


def dense(loss):
    """Returns the same function, computed from the definitions."""

    def function(image_embeds, text_embeds, logit_scale):
        if loss == SIGMOID:
            return sigmoid_loss_dense(image_embeds, text_embeds, logit_scale, SIGLIP_BIAS)[0]
        value, _ = contrastive_loss_dense(image_embeds, text_embeds, logit_scale)
        if loss == "contrastive":
            return value
        inmodal, crossmodal = cyclic_consistency_dense(image_embeds, text_embeds)
        return value + INMODAL_WEIGHT * inmodal + CROSSMODAL_WEIGHT * crossmodal

    return function


def compiled_form(function, embeds, mesh):
    """Compiles a function of JAX as a Form.

    Args:
      function: a function as `ours` returns it.
      embeds: [image embeddings, text embeddings], which are arrays, or shapes if the form will not
        run.
      mesh: the mesh over which their rows are split.
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
    """Makes the Form that a user of open_clip would write; like the others, it uses float32.

    Args:
      loss: one of LOSSES, SIGMOID, or "chunked".
      embeds: [image embeddings, text embeddings], arrays.
      platform: "cpu" or "gpu".
    """
    from tests.pytorch import open_clip, torch

    device = "cuda" if platform == "gpu" else "cpu"
    dtype = getattr(torch, embeds[0].dtype.name)
    inputs = [torch.tensor(np.float32(x), dtype=dtype, device=device) for x in embeds]
    inputs.append(torch.tensor(LOGIT_SCALE, device=device))
    for tensor in inputs:
        tensor.requires_grad_()
    clip_loss, siglip_loss = open_clip.ClipLoss(), open_clip.loss.SigLipLoss()

    def chunked(images, texts, *scalars):
        """What SIGLIP_CHUNKS devices do, each with its own pictures, one after the other."""
        parts = [
            siglip_loss._loss(own, chunk, *scalars, negative_only=i != j)
            for i, own in enumerate(images.chunk(SIGLIP_CHUNKS))
            for j, chunk in enumerate(texts.chunk(SIGLIP_CHUNKS))
        ]
        return sum(parts) / SIGLIP_CHUNKS

    def run():
        images, texts, logit_scale = (tensor.float() for tensor in inputs)
        if loss in (SIGMOID, "chunked"):
            of_pairs = siglip_loss if loss == SIGMOID else chunked
            value = of_pairs(images, texts, logit_scale, SIGLIP_BIAS)
        else:
            value = clip_loss(images, texts, logit_scale)
        if loss == "whole":
            inmodal, crossmodal = cyclic_terms(images, texts)
            value = value + INMODAL_WEIGHT * inmodal + CROSSMODAL_WEIGHT * crossmodal
        gradients = torch.autograd.grad(value, inputs)
        if device == "cuda":
            torch.cuda.synchronize()
        return value, gradients

    temporary_bytes = None
    if device == "cuda":
        run()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        gradients = sum(tensor.nbytes for tensor in inputs)
        temporary_bytes = torch.cuda.max_memory_allocated() - before - gradients
    return Form(
        run,
        lambda out: jax.tree.map(lambda x: x.detach().float().cpu().numpy(), out),
        temporary_bytes,
    )


def draw_embeddings(rows, width, dtype):
    """Draws unit-norm [image embeddings, text embeddings] of similar pairs, both [rows, width]."""
    rng = np.random.default_rng(0)
    images = rng.standard_normal((rows, width), np.float32)
    texts = images + 2 * rng.standard_normal((rows, width), np.float32)
    return [
        (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(jnp.dtype(dtype))
        for x in (images, texts)
    ]


def difference(actual, expected):
    """Returns the largest relative difference of the loss and its gradients, measured by norms."""
    pairs = zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True)
    pairs = ((np.asarray(a, np.float64), np.asarray(e, np.float64)) for a, e in pairs)
    return float(max(np.linalg.norm(a - e) / np.linalg.norm(e) for a, e in pairs))


def differences(forms, *, tolerance):
    """Runs each form once and returns {name: difference from the first form}.

    Raises:
      ValueError: a difference exceeds the tolerance.
    """
    first, found = None, {}
    for name, form in forms.items():
        result = form.fetch(form.run())
        first = result if first is None else first
        found[name] = difference(result, first)
        if not found[name] <= tolerance:
            first_name = next(iter(forms))
            raise ValueError(
                f"{name} differs by {found[name]:.1e} from {first_name}, more than {tolerance:g}"
            )
    return found


def seconds_in_turn(forms, repeats):
    """Lets the forms take turns and returns {name: seconds in each round}."""
    seconds = {name: [] for name in forms}
    for _ in range(repeats):
        for name, form in forms.items():
            start = time.perf_counter()
            form.run()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def measure(forms, *, repeats, tolerance):
    """Yields a row for each of {name: Form}; without repeats it has only what needs no run."""
    same = {name: form for name, form in forms.items() if form.is_same}
    found = differences(same, tolerance=tolerance) if repeats else {}
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
        row |= {f"time_to_{other.lower()}": ratio(name, other) for other in COMPARED}
        if form.temporary_bytes is not None:
            row["temporary_mebibytes"] = form.temporary_bytes / 2**20
            if name != "dense" and "dense" in forms:
                row["memory_to_dense"] = form.temporary_bytes / forms["dense"].temporary_bytes
        yield row


def rows_and_notes(args, devices, side_by_side, keep=lambda rows: None):
    """Returns (rows of the table, notes on what was left out) for each N on these devices.

    Args:
      args: the parsed arguments of the command line.
      devices: a list of jax.Device.
      side_by_side: whether PyTorch is measured as well.
      keep: a function that is called with the rows so far, whenever there are more.
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
            notes.append(
                f"N = {n} on {len(devices)} devices is measured, because an N×N matrix has "
                f"{matrix:.1f} GiB on each"
            )
        for loss in args.losses:
            forms = {"ours": compiled_form(ours(loss, mesh, args.chunk_size), embeds, mesh)}
            if fits:
                forms["dense"] = compiled_form(dense(loss), embeds, mesh)
            if fits and side_by_side and len(devices) == 1:
                forms["PyTorch"] = pytorch_form(loss, embeds, devices[0].platform)
            if loss == SIGMOID:
                if side_by_side and len(devices) == 1:
                    forms["chunked"] = pytorch_form("chunked", embeds, devices[0].platform)
                softmax = compiled_form(ours("contrastive", mesh, args.chunk_size), embeds, mesh)
                forms["softmax"] = dataclasses.replace(softmax, is_same=False)
            measured = measure(
                forms,
                repeats=0 if args.memory_only else args.repeats,
                tolerance=TOLERANCES[args.dtype],
            )
            rows += [{"rows": n, "devices": len(devices), "loss": loss, **row} for row in measured]
            keep(rows)
    return rows, notes


def parse_arguments(argv=None):
    """Returns (parser, arguments of the command line)."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--rows",
        type=numbers,
        default=[1024, 4096, 16384],
        help="numbers of pairs N, e.g. 4096,8192",
    )
    parser.add_argument("--dim", type=int, default=512, help="width of the embeddings")
    parser.add_argument("--devices", type=numbers, default=[1], help="numbers of devices, e.g. 1,8")
    parser.add_argument(
        "--dtype", choices=TOLERANCES, default="float32", help="dtype of the embeddings"
    )
    parser.add_argument("--chunk-size", type=int, default=CHUNK_SIZE, help="config.loss.chunk_size")
    parser.add_argument("--repeats", type=int, default=5, help="how many rounds are run")
    parser.add_argument(
        "--dense-limit",
        type=float,
        default=1.0,
        help="GiB; dense and PyTorch, which hold several N×N matrices, are left out if one matrix "
        "is larger than this on a device",
    )
    parser.add_argument(
        "--side-by-side",
        action=argparse.BooleanOptionalAction,
        default=has_pytorch(),
        help="measure PyTorch as well (default: if it and open_clip are installed)",
    )
    parser.add_argument(
        "--siglip", action="store_true", help="measure the sigmoid loss of SigLIP, too"
    )
    parser.add_argument(
        "--losses",
        type=lambda text: text.split(","),
        default=list(LOSSES),
        help=f"which are measured, of {', '.join((*LOSSES, SIGMOID))}",
    )
    parser.add_argument(
        "--memory-only", action="store_true", help="compile the losses, and do not run them"
    )
    parser.add_argument("--topology", help="a TPU slice for --memory-only, e.g. v5e:2x4")
    parser.add_argument("--json", help="file to write the table's rows to")
    args = parser.parse_args(argv)
    if args.siglip and SIGMOID not in args.losses:
        args.losses.append(SIGMOID)
    if not set(args.losses) <= {*LOSSES, SIGMOID}:
        parser.error(f"--losses names another one than {', '.join((*LOSSES, SIGMOID))}")
    if args.topology and not args.memory_only:
        parser.error("--topology needs --memory-only, because the chips are not here")
    if args.side_by_side and not has_pytorch():
        parser.error("--side-by-side needs PyTorch; run pip install torch open_clip_torch")
    return parser, args


def main(argv=None):
    """Measures the losses and prints the table."""
    parser, args = parse_arguments(argv)
    # Otherwise JAX takes most of a GPU's memory, and PyTorch's idle threads keep the CPU busy.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        if args.topology:
            meshes = [slice_devices(args.topology)]
        else:
            devices = local_devices(max(args.devices))
            meshes = [devices[:count] for count in args.devices]
        rows, notes = [], []

        def keep(new_rows):
            # What comes later may run out of memory or time.
            if args.json:
                write_json(args.json, rows + new_rows)

        for devices in meshes:
            new_rows, new_notes = rows_and_notes(args, devices, args.side_by_side, keep)
            rows, notes = rows + new_rows, notes + new_notes
    except UserError as error:
        parser.error(str(error))
    print(
        f"{meshes[0][0].device_kind}, {args.dtype}, D = {args.dim}, chunk size {args.chunk_size}\n"
    )
    print(table(rows, COLUMNS))
    for note in notes:
        print(f"No dense form of {note}.")


if __name__ == "__main__":
    main()
