#!/usr/bin/env python3
"""Checks whether a train step fits a TPU slice or a number of GPUs; you need neither of them.

    python launch/aot_check.py --config=configs/cc12m.py --topology=v5e:16x16 \\
        [--batch=32768] [--mesh=data:64,fsdp:4] [--config.model.dtype=bfloat16 …]

This compiles the step of `python -m cyclip_jax.main` for these chips and prints what the step needs
of each: memory, collectives, FLOPs, and bounds of its time. It reads no data. A full-size model
takes minutes.

TPUs (v4, v5e, v5p, v6e) need `pip install libtpu`, in the version that jax[tpu] names. For GPUs
(a100-40gb, a100-80gb, h100, h200, b200, l4, l40s; h100:4x8 is four machines of eight), run `pip
install jax-cuda13-plugin`; CUDA is not needed. Without the plugin a CPU's compiler takes its place,
and its figures for temporaries say little.

With --compare=model.attention=xla,pallas the step is compiled with each of these values, and a
table has a row for each. --compare may be given several times; then every combination is compiled.

With --pairs=2862387, the size of the training data, it also says what the whole run takes at least,
and with --price=1.20, an hour of one chip, what it costs at least.

If the step does not fit, or with --suggest, a few more compilations look for the largest batch that
fits, and for settings with which the wanted batch fits. The exit code is 0 if the step fits, 1 if
it does not, and 2 if the check cannot be made.
"""

import argparse
import functools
import itertools
import json
import math
import os
import sys
import time

from absl import flags

from cyclip_jax.errors import UserError
from cyclip_jax.runtime import command, config_file

GIB, MIB = 2**30, 2**20
MICRO_BATCHES = (2, 4, 8, 16, 32, 64)
FSDP = 8
BOUNDS = {
    "compute": "matrix products at the bfloat16 peak",
    "memory": "memory traffic at full bandwidth",
    "links": "what arrives from other chips at full bandwidth",
}
COMPARED = (
    "moved",
    "bound by memory",
    "by products",
    "by links",
    "received",
    "temporaries",
    "memory of a chip",
)


def parse_arguments(argv):
    """Returns (arguments, locked config); exits with 2 if the command line is not understood."""
    parser = argparse.ArgumentParser(
        usage="%(prog)s --config=FILE --topology=CHIP:SHAPE [options] [--config.FIELD=VALUE …]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--topology", required=True, help="the chips, e.g. v5e:16x16, v4:2x2x4, h100:4x8"
    )
    parser.add_argument("--batch", type=int, help="value for config.batch_size")
    parser.add_argument("--pairs", type=int, help="size of the training data: bounds the whole run")
    parser.add_argument("--price", type=float, help="with --pairs: that of an hour of one chip")
    parser.add_argument("--mesh", help="the mesh, e.g. data:64,fsdp:4; it sets config.mesh.fsdp")
    parser.add_argument(
        "--suggest",
        action=argparse.BooleanOptionalAction,
        help="look for the largest batch that fits (default: only if the step does not fit)",
    )
    parser.add_argument(
        "--compare",
        type=compared,
        action="append",
        metavar="FIELD=VALUE,VALUE",
        help="compile the step with each of these values, and print a table",
    )
    parser.add_argument(
        "--json",
        metavar="FILE",
        type=os.path.expanduser,
        help="file to write all figures to",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print what would be compiled, and compile nothing"
    )
    args, rest = parser.parse_known_args(argv)
    if args.pairs is not None and args.compare:
        parser.error("--pairs bounds the run of one step, and --compare has several; leave out one")
    if args.price is not None and (args.pairs is None or not 0 <= args.price < math.inf):
        parser.error("--price is what a chip-hour of a whole run costs, and goes with --pairs=N")
    values, rest = flags.FlagValues(), [parser.prog, *rest]
    config_file.define_config(values, "the experiment's file", required=True, argv=rest)
    try:
        command.parse(values, rest)
    except UserError as error:
        parser.error(str(error))
    return args, values.config


def compared(text):
    """Turns "micro_batches=1,2" into [{"micro_batches": 1}, {"micro_batches": 2}], for argparse."""
    field, equals, values = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} has no values; write FIELD=VALUE,VALUE")
    return [{field: command.literal(value)} for value in values.split(",")]


def with_settings(config, settings):
    """Returns a locked copy of a config with {field: value}; fields are as in --config.FIELD."""
    copy = config.copy_and_resolve_references().lock()
    try:
        copy.update_from_flattened_dict(settings)
    except (AttributeError, KeyError) as error:
        raise UserError(f"{shown(settings)}: the config has no such field") from error
    except TypeError as error:
        raise UserError(f"{shown(settings)}: the field is of another type") from error
    return copy


def fsdp_of(mesh, chips):
    """Returns the fsdp of a mesh such as "data:64,fsdp:4".

    Raises:
      UserError: the text is not a mesh, or the mesh has another number of chips.
    """
    try:
        axes = {name: int(size) for name, size in (part.split(":") for part in mesh.split(","))}
    except ValueError as error:
        raise UserError(f"--mesh={mesh}: write it as data:64,fsdp:4") from error
    if not axes.keys() <= {"data", "fsdp"} or "data" not in axes or min(axes.values()) < 1:
        raise UserError(f"--mesh={mesh}: the axes are data and fsdp, as in data:64,fsdp:4")
    fsdp = axes.get("fsdp", 1)
    if axes["data"] * fsdp != chips:
        raise UserError(
            f"--mesh={mesh} is {axes['data']} × {fsdp} = {axes['data'] * fsdp} chips, and the "
            f"topology has {chips}; change one of the two"
        )
    return fsdp


def find_devices(chip, sides, topology):
    """Returns (devices to compile for, the kind of the compiler: "TPU", "GPU" or "CPU")."""
    from cyclip_jax.costs import aot

    if chip.is_tpu:
        return aot.slice_devices(topology), "TPU"
    devices = aot.gpu_devices(chip, sides)
    return (aot.stand_ins(math.prod(sides)), "CPU") if devices is None else (devices, "GPU")


class Check:
    """Examines a config's train step on the chips of a topology.

    Args:
      config: the config of the run.
      chip: a chips.Chip.
      devices: the devices to compile for.
      say: a function that shows a line of progress.
    """

    def __init__(self, config, chip, devices, say):
        self.config, self.chip, self.devices, self.say = config, chip, devices, say

    def mesh(self, config):
        """Makes the mesh of a config, and checks the batch and the loss against it.

        Raises:
          UserError: they do not fit each other.
        """
        from cyclip_jax import parallel
        from cyclip_jax.training.objective import configured_objective

        configured_objective(config)
        mesh = parallel.create_mesh(self.devices, fsdp=config.mesh.fsdp)
        parallel.check_batch_size(config.batch_size, mesh, micro_batches=config.micro_batches)
        return mesh

    def needs(self, settings):
        """Returns the bytes that a chip needs with other settings, in the run's largest phase."""
        config = with_settings(self.config, settings)
        self.say(f"compiling with {shown(settings)} …")
        needed = max(phase["needed"] for phase in self.examine(config, only_memory=True))
        self.say(f"  {needed / GIB:.2f} GiB: {'fits' if self.fits(needed) else 'does not fit'}")
        return needed

    def fits(self, needed):
        """Says whether a chip has so many bytes."""
        return needed <= self.chip.memory

    def examine(self, config, *, only_memory=False):
        """Returns a dict of figures for each phase of the run.

        The FLOPs are those of all chips, and everything else is that of one chip.
        """
        from cyclip_jax.costs import aot

        mesh = self.mesh(config)
        return [
            {"first_step": stage.first_step}
            | self._examine(
                config, aot.abstract_step(config, mesh, stage=stage), stage, only_memory
            )
            for stage in aot.stages(config)
        ]

    def _examine(self, config, step, stage, only_memory):
        from cyclip_jax.costs import aot

        start = time.perf_counter()
        try:
            compiled = step.compile()
        except aot.OutOfMemory as error:
            waiting = aot.WAITING_BATCHES * aot.bytes_per_device(step.batch)
            return {"fits": False, "needed": error.needed + waiting, "memory": None}
        seconds = time.perf_counter() - start
        memory = aot.memory_of(compiled, step)
        needed = sum(memory.values())
        figures = {"fits": self.fits(needed), "needed": needed, "memory": memory}
        if only_memory:
            return figures
        traffic, flops = aot.traffic_of(compiled), aot.work_of(config, step, stage)
        received = sum(kind["received"] for kind in traffic["collectives"].values())
        floors = aot.floors(
            self.chip,
            flops=flops["step"] / len(self.devices),
            memory_traffic=traffic["memory_bytes"],
            received=received,
        )
        return figures | traffic | {"flops": flops, "floors": floors, "compile_seconds": seconds}


def suggestions(check, needed):
    """Looks for settings that fit: the largest batch, and changes that make the wanted batch fit.

    Args:
      check: a Check.
      needed: the bytes that the configured step needs of a chip, or a lower bound of them.

    Returns:
      [{"settings": {field: value}, "needed": bytes}].
    """
    from cyclip_jax.costs import aot

    config, available = check.config, check.chip.memory
    multiple = len(check.devices) * config.micro_batches
    found = aot.largest_batch(
        lambda batch_size: check.needs({"batch_size": batch_size}),
        available,
        multiple=multiple,
        start=int(config.batch_size * min(1, available / needed) / 2),
    )
    fitting = [] if found is None else [{"settings": {"batch_size": found[0]}, "needed": found[1]}]
    if check.fits(needed):
        return fitting
    for remedy in remedies(config, len(check.devices), needed / available):
        for settings in remedy:
            needed = check.needs(settings)
            if check.fits(needed):
                fitting.append({"settings": settings, "needed": needed})
                break
    return fitting


def remedies(config, chips, excess):
    """Yields lists of settings that need less memory for the same batch; small changes come first.

    Args:
      config: the config of the run.
      chips: the number of chips.
      excess: the memory that is needed, divided by the memory that is there.
    """
    remat = {"model.vision_remat": "full", "model.text_remat": "full"}
    if any(config.model[field.removeprefix("model.")] != "full" for field in remat):
        yield [remat]
    parts = [
        config.micro_batches * factor
        for factor in MICRO_BATCHES
        if factor > excess and config.batch_size % (chips * config.micro_batches * factor) == 0
    ]
    yield [{"micro_batches": part} for part in parts[:3]]
    if config.mesh.fsdp == 1 and chips % FSDP == 0:
        yield [{"mesh.fsdp": FSDP}]


def shown(settings):
    """{"mesh.fsdp": 8} -> "--config.mesh.fsdp=8"."""
    return " ".join(f"--config.{field}={value}" for field, value in settings.items())


def headline(config, topology, mesh, compiler):
    """Writes which step is compiled for which chips, and what the figures leave out."""
    shape = " × ".join(f"{name} {size}" for name, size in mesh.shape.items())
    line = (
        f"{config.model.name} in {config.model.dtype}, {config.batch_size:,} pairs a step on "
        f"{topology}: {mesh.size} chips, mesh {shape}"
    )
    if compiler == "CPU":
        line += (
            "\nA CPU's compiler stands in for the GPU's; to get that, run pip install "
            "jax-cuda13-plugin. The figures for the\nstate, the batch and the FLOPs hold for GPUs; "
            "temporaries, collectives and memory traffic are those of a CPU."
        )
    elif compiler == "GPU":
        line += (
            "\nThe scratch memory of cuDNN's convolutions and of NCCL is not counted. Attention is "
            "compiled by XLA; in bfloat16\na GPU runs cuDNN's, which needs less memory. The links "
            "are NVLink's; between machines the network is slower."
        )
    return line


def lines_of(figures, check):
    """Yields the figures of one phase as lines of text."""
    chip, chips = check.chip, len(check.devices)
    verdict = "fits" if figures["fits"] else "does not fit"
    total = f"{figures['needed'] / GIB:.2f} of {chip.memory / GIB:.2f} GiB: {verdict}"
    if figures["memory"] is None:
        yield f"memory of a chip: at least {total} (the compiler refuses the step)"
        return
    yield "memory of a chip, GiB"
    for what, size in figures["memory"].items():
        yield f"  {what:<30}{size / GIB:>9.3f}"
    yield f"  {'sum':<30}{figures['needed'] / GIB:>9.3f}   {total}"
    yield ""
    yield "collectives of a step        executions   results, MiB   received by a chip, MiB"
    for kind, of_kind in figures["collectives"].items():
        yield (
            f"  {kind:<25}{of_kind['executions']:>12,}{of_kind['bytes'] / MIB:>15,.2f}"
            f"{of_kind['received'] / MIB:>26,.2f}"
        )
    yield ""
    yield "TFLOP of a step                    all chips     each"
    names = {"model": "model, 3 × forward", "step": "all matrix products"}
    for what, count in figures["flops"].items():
        yield f"  {names[what]:<27}{count / 1e12:>15,.4g}{count / chips / 1e12:>9,.4g}"
    yield ""
    yield "bounds of its time (estimated from data sheets; a real step is slower than each), ms"
    for what, seconds in figures["floors"].items():
        yield f"  {BOUNDS[what]:<55}{seconds * 1e3:>9,.4g}"
    slowest = max(figures["floors"].values())
    yield (
        f"  the slowest of them: {slowest * 1e3:,.4g} ms, {check.config.batch_size / slowest:,.0f} "
        f"images/s at most; compiled in {figures['compile_seconds']:.0f} s"
    )


def run(args, config):
    """Does what the command line asks for, and returns whether the step fits.

    Raises:
      UserError: the config, the mesh and the chips do not fit each other, or a package is missing.
    """
    from cyclip_jax.costs import aot
    from cyclip_jax.costs.whole_run import least_of_run, line_of_run
    from cyclip_jax.data.order import steps_per_epoch
    from cyclip_jax.runtime.loop import set_matmul_precision

    chip, sides = aot.parse_topology(args.topology)
    settings = {} if args.batch is None else {"batch_size": args.batch}
    if args.mesh is not None:
        settings["mesh.fsdp"] = fsdp_of(args.mesh, math.prod(sides))
    config = with_settings(config, settings)
    if args.pairs is not None and config.num_epochs is not None:
        steps = config.num_epochs * steps_per_epoch(args.pairs, config.batch_size)
        config = with_settings(config, {"num_epochs": None, "total_steps": steps})
    set_matmul_precision(config.matmul_precision)
    devices, compiler = find_devices(chip, sides, args.topology)
    check = Check(config, chip, devices, functools.partial(print, file=sys.stderr, flush=True))
    print(headline(config, args.topology, check.mesh(config), compiler), flush=True)
    if args.dry_run:
        print(f"\n{config}\nTrain steps that would be compiled: {len(aot.stages(config))}")
        return True
    if args.compare:
        rows = comparison(check, args.compare)
        if args.json:
            write_json(args, config, compiler, {"comparison": rows})
        return all(figures["fits"] for row in rows for figures in row["phases"])
    found = check.examine(config)
    for figures in found:
        if len(found) > 1:
            print(f"\nfrom step {figures['first_step']}")
        print("", *lines_of(figures, check), sep="\n", flush=True)
    fits = all(figures["fits"] for figures in found)
    whole = None
    if args.pairs is not None and fits:
        whole = least_of_run(found, steps=config.total_steps, chips=len(devices))
        print("", line_of_run(whole, args.price), sep="\n")
    instead = []
    if args.suggest or (args.suggest is None and not fits):
        instead = suggestions(check, max(figures["needed"] for figures in found))
        print("\nThese settings were compiled and fit:" if instead else "\nNo settings fit.")
        for each in instead:
            print(f"  {each['needed'] / GIB:6.2f} GiB with {shown(each['settings'])}")
    if args.json:
        write_json(args, config, compiler, {"phases": found, "suggestions": instead, "run": whole})
    return fits


def comparison(check, comparisons):
    """Compiles every combination of settings, and prints a table row as each is done.

    Args:
      check: a Check.
      comparisons: lists of {field: value}, of which each combination has one of each.

    Returns:
      [{"settings": {field: value}, "phases": what `Check.examine` returns}].
    """
    combinations = [
        {field: value for each in combination for field, value in each.items()}
        for combination in itertools.product(*comparisons)
    ]
    configs = [with_settings(check.config, settings) for settings in combinations]
    print("\n| step | " + " | ".join(COMPARED) + " |")
    print("|---" * (len(COMPARED) + 1) + "|", flush=True)
    found = []
    for settings, config in zip(combinations, configs, strict=True):
        check.say(f"compiling with {shown(settings)} …")
        phases = check.examine(config)
        found.append({"settings": settings, "phases": phases})
        for figures in phases:
            step = ", ".join(f"`{field}={value}`" for field, value in settings.items())
            if len(phases) > 1:
                step += f" from step {figures['first_step']:,}"
            print("|", " | ".join([step, *cells_of(figures)]), "|", flush=True)
    return found


def cells_of(figures):
    """The figures of one phase as texts, in the order of COMPARED."""
    fits = f"{figures['needed'] / GIB:.2f} GiB" + ("" if figures["fits"] else ", does not fit")
    if figures["memory"] is None:
        return ["–"] * (len(COMPARED) - 1) + [f"at least {fits}"]
    received = sum(kind["received"] for kind in figures["collectives"].values())
    bounds = [f"{figures['floors'][name] * 1e3:,.4g} ms" for name in ("memory", "compute", "links")]
    return [
        f"{figures['memory_bytes'] / 1e9:,.1f} GB",
        *bounds,
        f"{received / MIB:,.0f} MiB",
        f"{figures['memory']['activations and temporaries'] / MIB:,.0f} MiB",
        fits,
    ]


def write_json(args, config, compiler, figures):
    """Writes all figures as JSON, in bytes, seconds and FLOPs."""
    about = {"topology": args.topology, "compiler": compiler, "config": config.to_dict()}
    figures = about | figures
    with open(args.json, "w", encoding="utf-8") as file:
        json.dump(figures, file, indent=2)
        file.write("\n")


def main(argv=None):
    """Makes the check that a command line asks for, and returns the exit code."""
    # The step is compiled for other chips, so that this machine's are left alone.
    os.environ["JAX_PLATFORMS"] = "cpu"
    args, config = parse_arguments(argv)
    try:
        return 0 if run(args, config) else 1
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
