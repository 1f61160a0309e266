"""Shows how memory, work and traffic of a train step grow with the number of devices.

    python -m benchmarks.scaling [--devices=1,8,64,256] [--fsdp=8] [--topology=v5e:2x4,v5e:8x8]

The step is compiled for meshes of each size, with the same number of rows per device, and the
figures of the compiled program are printed. Nothing is run, and no parameter is ever held. On a CPU
that is made to look like many devices, each mesh takes half a minute if a transformer's blocks are
one loop. --topology asks the TPU's compiler instead, which takes minutes. All figures are those of
one device.

The bytes of collectives are those of their results (see hlo.py). With --fsdp, a CPU program has an
all-reduce and a slice; other programs may have the reduce-scatter of a split parameter's gradient.
"""

import argparse
import collections

import jax
import jax.numpy as jnp

from benchmarks.report import local_devices, numbers, table, write_json
from cyclip_jax import defaults, parallel
from cyclip_jax.costs import hlo
from cyclip_jax.costs.aot import abstract_step, bytes_per_device, slice_devices
from cyclip_jax.errors import UserError
from cyclip_jax.models.presets import sizes_in
from cyclip_jax.runtime import command
from cyclip_jax.training.flops import matmul_flops, model_flops
from cyclip_jax.training.objective import Objective
from cyclip_jax.training.stages import batch_shapes

MEBIBYTE, GIGA = 2**20, 1e9
COLUMNS = {
    "devices": ("devices", "d"),
    "N": ("rows", "d"),
    "towers, GFLOP": ("towers_gigaflop", ".1f"),
    "loss, GFLOP": ("loss_gigaflop", ".1f"),
    "state, MiB": ("state_mebibytes", ".1f"),
    "temporaries, MiB": ("temporary_mebibytes", ".1f"),
    **{kind: (kind, "") for kind in hlo.KINDS},
}
LIST_COLUMNS = {
    "collective": ("kind", ""),
    "result": ("shape", ""),
    "times": ("times", "d"),
    "MiB in all": ("mebibytes", ".2f"),
}


def configuration(args):
    """Returns the defaults of cyclip_jax/defaults.py with the changes of the command line."""
    config = defaults.get_config()
    config.model.name = args.model
    config.model.scan_blocks = True
    config.micro_batches = args.micro_batches
    config.mesh.fsdp = args.fsdp
    if args.cyclic == "off":
        config.loss.inmodal_weight = config.loss.crossmodal_weight = 0.0
    config.update_from_flattened_dict(dict(args.set))
    return config


def field(text):
    """Turns "model.vision_layers=2" into ("model.vision_layers", 2); it is a type for argparse."""
    name, value = text.split("=", 1)
    return name, command.literal(value)


def loss_flops(config, mesh, rows):
    """Counts the FLOPs of the loss and its gradient on all devices together."""
    embeds = jax.ShapeDtypeStruct((rows, sizes_in(config.model)["embed_dim"]), jnp.float32)
    scale = jax.ShapeDtypeStruct((), jnp.float32)

    objective = Objective(**config.loss)

    def loss(images, texts, scale):
        scalars = {"logit_scale": scale, "logit_bias": 0.0}
        return objective({"images": images, "texts": texts}, {}, scalars, mesh=mesh)[0]

    return matmul_flops(jax.value_and_grad(loss, (0, 1, 2)), embeds, embeds, scale)


def measure(config, devices, *, batch_per_device):
    """Compiles the step for `devices` and reads the figures of one of them.

    Returns:
      (row of the table, list of hlo.Collective).
    """
    mesh = parallel.create_mesh(devices, fsdp=min(config.mesh.fsdp, len(devices)))
    rows = batch_per_device * len(devices)
    parallel.check_batch_size(rows, mesh, micro_batches=config.micro_batches)
    config.batch_size = rows
    # Without metrics, terms that the loss leaves out are not computed at all.
    step = abstract_step(config, mesh, with_metrics=False)
    compiled = step.compile()
    text = compiled.as_text()
    row = {
        "devices": len(devices),
        "rows": rows,
        "loss_gigaflop": loss_flops(config, mesh, rows) / len(devices) / GIGA,
        "state_mebibytes": bytes_per_device(step.state) / MEBIBYTE,
        "temporary_mebibytes": compiled.memory_analysis().temp_size_in_bytes / MEBIBYTE,
        "collectives": {
            kind: {"executions": executions, "mebibytes": size / MEBIBYTE}
            for kind, (executions, size) in hlo.summary(text).items()
        },
    }
    return row, hlo.collectives(text)


def with_collectives(row):
    """Adds a cell for each kind of collective to a row: its executions, and its MiB in all."""
    cells = {
        kind: f"{of_kind['executions']} ×, {of_kind['mebibytes']:.2f} MiB"
        for kind, of_kind in row["collectives"].items()
    }
    return row | cells


def listed(collectives):
    """Returns the rows of a table of the different collectives; the largest come first."""
    times = collections.Counter()
    for each in collectives:
        times[each.kind, each.shape, each.bytes] += each.executions
    largest_first = sorted(times.items(), key=lambda item: -item[1] * item[0][2])
    return [
        {
            "kind": kind,
            "shape": shape if shape.count("[") < 4 else f"{shape.count('[')} arrays",
            "times": count,
            "mebibytes": count * size / MEBIBYTE,
        }
        for (kind, shape, size), count in largest_first
    ]


def main(argv=None):
    """Compiles the steps and prints their figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="ViT-B/32", help="a preset of the model")
    parser.add_argument(
        "--set",
        type=field,
        nargs="+",
        default=[],
        metavar="FIELD=VALUE",
        help="fields of cyclip_jax/defaults.py, e.g. model.vision_layers=2 loss.chunk_size=128; "
        "model.scan_blocks is True unless set",
    )
    parser.add_argument(
        "--devices", type=numbers, default=[1, 8, 64, 256], help="numbers of devices, e.g. 1,8,64"
    )
    parser.add_argument("--topology", help="TPU slices in place of --devices, e.g. v5e:2x4,v5e:8x8")
    parser.add_argument("--batch-per-device", type=int, default=64, help="rows on each device")
    parser.add_argument("--fsdp", type=int, default=1, help="config.mesh.fsdp, at most all devices")
    parser.add_argument("--micro-batches", type=int, default=1, help="config.micro_batches")
    parser.add_argument(
        "--cyclic",
        choices=("on", "off"),
        default="on",
        help="off gives the cyclic terms weights of 0, and does not measure them either, though "
        "the FLOPs of the loss still count them",
    )
    parser.add_argument("--list", action="store_true", help="print the different collectives too")
    parser.add_argument("--json", help="file to write the table's rows to")
    args = parser.parse_args(argv)
    config = configuration(args)
    flops = model_flops(
        config.model, batch_shapes(config, ("images", "tokens"), args.batch_per_device)
    )
    towers = {"towers_gigaflop": flops / GIGA}
    rows = []
    try:
        if args.topology:
            slices = [slice_devices(topology) for topology in args.topology.split(",")]
        else:
            devices = local_devices(max(args.devices))
            slices = [devices[:count] for count in args.devices]
        for devices in slices:
            row, collectives = measure(config, devices, batch_per_device=args.batch_per_device)
            rows.append(row | towers)
            if args.list:
                print(f"{len(devices)} devices\n")
                print(table(listed(collectives), LIST_COLUMNS), end="\n\n", flush=True)
    except UserError as error:
        parser.error(str(error))
    print(f"{config.model.name} on {slices[0][0].device_kind}, {args.batch_per_device} rows each\n")
    cells = [with_collectives(row) for row in rows]
    print(table(cells, COLUMNS))
    if args.json:
        write_json(args.json, rows)


if __name__ == "__main__":
    main()
