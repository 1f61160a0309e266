"""Measures whole training steps, ours and PyTorch's, which take turns.

    python -m benchmarks.step --model=ViT-B/32,RN50 --dtype=bfloat16 --cyclic=on,off
    python -m benchmarks.step --model=RN50 --batch-size=8 --towers
    python -m benchmarks.step --dtype=bfloat16 --attention=cudnn,xla
    python -m benchmarks.step --model=RN50 --batch-size=4096 --count

A step takes uint8 pictures and token ids that are on the device already. It normalises the
pictures, runs both towers forward and back, computes the loss, and updates the parameters with
AdamW. If an option lists several values, each combination of values gets a row. In every round each
row takes its turn, so that a slow change of the machine's speed affects all of them.

The machine must be idle otherwise: on two cores, beside another process, PyTorch's step became 4.5
times as slow and ours twice, so that their ratio turned round.

"PyTorch" is open_clip's model and loss with torch.optim.AdamW. If they are not installed, or with
--no-side-by-side, only our step is measured.
"""

import argparse
import dataclasses
import functools
import itertools
import os
import statistics
import sys
import time

# JAX shares the memory with PyTorch, so that it must take only what it needs.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.9")

import jax
import jax.numpy as jnp
from flax import nnx

from benchmarks.pytorch import cyclic_terms, has_pytorch
from benchmarks.report import numbers, table, write_json
from cyclip_jax import defaults, parallel
from cyclip_jax.errors import UserError
from cyclip_jax.losses import cyclic_consistency
from cyclip_jax.models.attention import ATTENTIONS
from cyclip_jax.models.clip import IMAGE_MEAN, IMAGE_STD, MAX_LOGIT_SCALE, normalise_images
from cyclip_jax.models.presets import PRESETS, abstract_model, create_model, resolve_sizes
from cyclip_jax.training.flops import matmul_flops, model_flops, utilisation
from cyclip_jax.training.objective import Objective
from cyclip_jax.training.optimizer import create_optimizer
from cyclip_jax.training.step import abstract_state, create_state, make_train_step
from cyclip_jax.training.token_reduction import TokenReduction, see_everything

RECIPE = dict(defaults.get_config().optimizer)
TOTAL_STEPS = 100_000
CYCLIC_WEIGHT = 0.25  # λ1 = λ2
CYCLIC_METRICS = (
    "inmodal_cyclic_loss",
    "crossmodal_cyclic_loss",
    "inmodal_consistency",
    "crossmodal_consistency",
)
FSDP_MIN_SIZE = 2**16
COLUMNS = {
    "model": ("model", ""),
    "step": ("step", ""),
    "batch": ("batch_size", ""),
    "images/s": ("images_per_second", ".2f"),
    "of the first": ("ratio_to_first", ".3f"),
    "of PyTorch": ("ratio_to_pytorch", ".3f"),
    "of bare towers": ("ratio_to_towers", ".3f"),
    "MFU": ("model_flops_utilisation", ".1%"),
    "model TFLOP/s": ("teraflops_per_second", ".3f"),
    "temporary MiB": ("temporary_mebibytes", ",.0f"),
    "memory MiB": ("memory_mebibytes", ",.0f"),
    "compile s": ("compile_seconds", ".1f"),
}
COUNT_COLUMNS = {
    "model": ("model", ""),
    "batch": ("batch_size", ""),
    "FLOPs of a step": ("step_flops", ".3e"),
    "of the cyclic terms": ("cyclic_flops", ".3e"),
    "which add": ("cyclic_share", ".3%"),
}


@dataclasses.dataclass(frozen=True)
class Variant:
    """How a step is computed.

    Attributes:
      cyclic: "on" for the whole loss, or "off" for the contrastive loss alone.
      dtype: the dtype of the towers.
      remat: the rematerialisation of both towers, one of rematerialisation.POLICIES.
      micro_batches: the number of micro-batches, as `make_train_step` takes it.
      kept_patches: the share of the patches that the model sees; they are drawn at random.
      attention: what computes the attention of transformers, one of ATTENTIONS.
    """

    cyclic: str = "on"
    dtype: str = "float32"
    remat: str = "none"
    micro_batches: int = 1
    kept_patches: float = 1.0
    attention: str = "auto"

    def __str__(self):
        parts = [self.dtype, f"cyclic {self.cyclic}"]
        parts += [f"remat {self.remat}"] if self.remat != "none" else []
        parts += [f"{self.micro_batches} micro-batches"] if self.micro_batches > 1 else []
        parts += [f"{self.kept_patches:g} of the patches"] if self.kept_patches < 1 else []
        parts += [f"attention {self.attention}"] if self.attention != "auto" else []
        return ", ".join(parts)


@dataclasses.dataclass(frozen=True)
class Contender:
    """What takes its turn in every round.

    Attributes:
      kind: "ours", "towers" or "pytorch".
      variant: how the step is computed.
      run: a function of a number of steps, which returns when the steps are done.
      row: {key of COLUMNS: value}, as far as it is known before anything is timed.
    """

    kind: str
    variant: Variant
    run: object
    row: dict


class Ours:
    """Our model in training: the state and a batch on the devices, and compiled steps for them."""

    def __init__(self, name, *, batch_size, fsdp=1, scan_blocks=False):
        self.name, self.batch_size, self.scan_blocks = name, batch_size, scan_blocks
        self.sizes = resolve_sizes(name)
        self.mesh = parallel.create_mesh(fsdp=fsdp)
        self.optimizer, self.schedule = create_optimizer(
            **RECIPE, total_steps=TOTAL_STEPS, steps_per_epoch=1
        )
        self._initial = lambda: create_model(name, rngs=nnx.Rngs(0))
        self.abstract_state = abstract_state(
            self._initial, self.optimizer, self.mesh, seed=0, min_size=FSDP_MIN_SIZE
        )
        self.shardings = jax.tree.map(lambda leaf: leaf.sharding, self.abstract_state)
        self.state = self.batch = None

    def place(self):
        """Puts the state and the batch on the devices."""
        self.state = create_state(self._initial, self.optimizer, seed=0, sharding=self.shardings)
        draw = functools.partial(draw_batch, self.sizes, self.batch_size)
        self.batch = jax.jit(draw, out_shardings=parallel.batch_sharding(self.mesh))()

    def abstract_batch(self):
        """Returns the shapes of the batch."""
        sharding = parallel.batch_sharding(self.mesh)
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            jax.eval_shape(functools.partial(draw_batch, self.sizes, self.batch_size)),
        )

    def train_step(self, variant):
        """Makes the step of a run; without cyclic terms it has no cyclic metrics either."""
        parallel.check_batch_size(self.batch_size, self.mesh, micro_batches=variant.micro_batches)
        weight = CYCLIC_WEIGHT if variant.cyclic == "on" else 0
        step = make_train_step(
            self._graphdef(variant),
            self.optimizer,
            self.schedule,
            normalise=_normalise(variant),
            view=self._view(variant),
            micro_batches=variant.micro_batches,
            mesh=self.mesh,
            param_sharding=self.shardings.params,
            objective=Objective(inmodal_weight=weight, crossmodal_weight=weight),
        )
        if variant.cyclic == "on":
            return step

        def without_metrics(state, batch):
            state, metrics = step(state, batch)
            return state, {name: metrics[name] for name in metrics if name not in CYCLIC_METRICS}

        return without_metrics

    def contender(self, variant):
        """Compiles the step and returns it as a Contender."""
        outputs = (self.shardings, parallel.replicated(self.mesh))
        step = jax.jit(self.train_step(variant), donate_argnums=0, out_shardings=outputs)
        start = time.perf_counter()
        step = step.lower(self.abstract_state, self.abstract_batch()).compile()
        seconds = time.perf_counter() - start

        def run(steps):
            for _ in range(steps):
                self.state, metrics = step(self.state, self.batch)
            jax.block_until_ready((self.state, metrics))

        row = self._row(str(variant), variant, step, seconds)
        return Contender("ours", variant, run, row)

    def bare_towers(self, variant):
        """Compiles both towers, forward and back from a fixed gradient of the embeddings.

        The loss, the optimiser and the check for numbers that are not finite are left out.
        """
        towers = self._towers(variant)

        def forward_and_back(params, batch_stats, batch, cotangents):
            def embed(params):
                *embeds, _, statistics = towers(params, batch_stats, batch)
                return tuple(embeds), statistics

            _, pull, statistics = jax.vjp(embed, params, has_aux=True)
            return pull(cotangents)[0], statistics

        parts = self.state.params, self.state.batch_stats
        shape = self.batch_size, self.sizes["embed_dim"]
        cotangents = tuple(jax.random.normal(jax.random.key(i), shape) for i in range(2))
        cotangents = jax.device_put(cotangents, parallel.batch_sharding(self.mesh))
        start = time.perf_counter()
        compiled = jax.jit(forward_and_back).lower(*parts, self.batch, cotangents).compile()
        seconds = time.perf_counter() - start

        def run(steps):
            for _ in range(steps):
                result = compiled(self.state.params, self.state.batch_stats, self.batch, cotangents)
            jax.block_until_ready(result)

        row = self._row(f"{variant}: bare towers", variant, compiled, seconds)
        return Contender("towers", variant, run, row)

    def model_flops(self, variant):
        """Counts the model's floating point operations in a step; recomputation does not count."""
        seen = jax.eval_shape(self._view(variant), jax.random.key(0), self.abstract_batch())
        return model_flops({"name": self.name}, seen)

    def _row(self, step, variant, compiled, seconds):
        memory = compiled.memory_analysis()
        return {
            "model": self.name,
            "step": step,
            "batch_size": self.batch_size,
            "flops": self.model_flops(variant),
            "temporary_mebibytes": memory.temp_size_in_bytes / 2**20 if memory else None,
            "memory_mebibytes": memory_of(memory) / 2**20 if memory else None,
            "compile_seconds": seconds,
        }

    def _towers(self, variant):
        graphdef, normalise = self._graphdef(variant), _normalise(variant)

        def towers(params, batch_stats, rows):
            model = nnx.merge(graphdef, params, batch_stats, copy=True)
            images = normalise(rows["images"])
            outputs = model(images, rows["tokens"], rows.get("kept_patches"))
            return *outputs, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))

        return towers

    def _graphdef(self, variant):
        execution = {"vision_remat": variant.remat, "text_remat": variant.remat}
        execution["attention"] = variant.attention
        settings = {"name": self.name, "dtype": variant.dtype, "scan_blocks": self.scan_blocks}
        return abstract_model(settings | execution)[0]

    def _view(self, variant):
        if variant.kept_patches == 1:
            return see_everything
        dropping = {"patch_dropping": "random", "kept_patches": variant.kept_patches}
        reduction = TokenReduction(**defaults.get_config().tokens.to_dict() | dropping)
        return reduction.reduced_view(self.sizes)


def memory_of(analysis):
    """Bytes that a compiled step takes of a device: what it gets, gives and makes on the way."""
    new = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    return analysis.argument_size_in_bytes + new + analysis.temp_size_in_bytes


def _normalise(variant):
    return functools.partial(normalise_images, dtype=jnp.dtype(variant.dtype))


def draw_batch(sizes, n):
    """Draws {"images": uint8 [n, H, W, 3], "tokens": int32 [n, L]} of noise and random texts."""
    size, length, end_of_text = (
        sizes["image_size"],
        sizes["context_length"],
        sizes["vocab_size"] - 1,
    )
    image_key, token_key, length_key = jax.random.split(jax.random.key(0), 3)
    tokens = jax.random.randint(token_key, (n, length), 1, end_of_text, jnp.int32)
    last = jax.random.randint(length_key, (n, 1), min(8, length - 1), length)
    place = jnp.arange(length)
    tokens = jnp.where(place < last, tokens, jnp.where(place == last, end_of_text, 0))
    images = jax.random.bits(image_key, (n, size, size, 3), jnp.uint8)
    return {"images": images, "tokens": tokens}


class PyTorch:
    """open_clip's model of the same architecture in training; it uses the GPU if there is one.

    Raises:
      UserError: open_clip does not know the architecture.
    """

    def __init__(self, name, batch):
        # The import stands here because our step is measured without PyTorch, too.
        from tests.pytorch import open_clip, torch

        self.torch, self.name = torch, name
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if self.device.type == "cuda":
            # TF32 is JAX's default, too.
            torch.set_float32_matmul_precision("high")
            torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = True
        else:
            torch.set_num_threads(len(os.sched_getaffinity(0)))
        architecture = f"{name.replace('/', '-')}-quickgelu"
        if architecture not in open_clip.list_models():
            raise UserError(f"open_clip has no model {architecture}; add --no-side-by-side")
        self.model = open_clip.create_model(architecture, device=self.device).train()
        self.model = self.model.to(memory_format=torch.channels_last)
        self.contrastive_loss = open_clip.ClipLoss()
        self.optimizer = torch.optim.AdamW(
            self._parameter_groups(),
            lr=RECIPE["learning_rate"] / RECIPE["warmup_steps"],
            betas=(RECIPE["beta1"], RECIPE["beta2"]),
            eps=RECIPE["eps"],
            fused=True,
        )
        images, tokens = (torch.tensor(jax.device_get(batch[key])) for key in ("images", "tokens"))
        # The view keeps rows, columns, channels in memory, which PyTorch calls channels last.
        self.images = images.to(self.device).permute(0, 3, 1, 2)
        self.tokens = tokens.long().to(self.device)
        self.mean, self.std = (
            torch.tensor(values, device=self.device).reshape(3, 1, 1)
            for values in (IMAGE_MEAN, IMAGE_STD)
        )

    def contender(self, variant, *, flops, compiled=False):
        """Returns the step as a Contender; `compiled` applies torch.compile to model and loss."""
        forward = functools.partial(self._loss, cyclic=variant.cyclic == "on")
        seconds = None
        if compiled:
            forward = self.torch.compile(forward)
            start = time.perf_counter()
            self._step(forward, variant.dtype)
            self._wait()
            seconds = time.perf_counter() - start

        def run(steps):
            for _ in range(steps):
                self._step(forward, variant.dtype)
            self._wait()

        library = "PyTorch, torch.compile" if compiled else "PyTorch"
        row = {
            "model": self.name,
            "step": f"{variant}: {library}",
            "batch_size": len(self.images),
            "flops": flops,
            "memory_mebibytes": self._peak(run),
            "compile_seconds": seconds,
        }
        return Contender("pytorch", variant, run, row)

    def _peak(self, run):
        """MiB that PyTorch takes of a GPU in a step; None on a CPU."""
        if self.device.type == "cpu":
            return None
        self.torch.cuda.reset_peak_memory_stats()
        run(1)
        return self.torch.cuda.max_memory_allocated() / 2**20

    def _parameter_groups(self):
        decayed, others = [], []
        for name, parameter in self.model.named_parameters():
            is_matrix = parameter.ndim >= 2 and not name.endswith("positional_embedding")
            (decayed if is_matrix else others).append(parameter)
        return [
            {"params": decayed, "weight_decay": RECIPE["weight_decay"]},
            {"params": others, "weight_decay": 0.0},
        ]

    def _step(self, forward, dtype):
        torch = self.torch
        self.optimizer.zero_grad(set_to_none=True)
        is_bfloat16 = dtype == "bfloat16"
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=is_bfloat16):
            loss = forward()
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, MAX_LOGIT_SCALE)

    def _loss(self, cyclic):
        pictures = self.images.float().div_(255).sub_(self.mean).div_(self.std)
        images, texts, scale = self.model(pictures, self.tokens)  # [N, D], [N, D], a scalar
        loss = self.contrastive_loss(images, texts, scale)
        if cyclic:
            loss = loss + CYCLIC_WEIGHT * sum(cyclic_terms(images, texts))
        return loss

    def _wait(self):
        if self.device.type == "cuda":
            self.torch.cuda.synchronize()


def measure(contenders, *, steps, rounds):
    """Lets every contender take its turn in every round, after one step that is not timed.

    Returns:
      [seconds of a step in each round], one list for each contender.
    """
    seconds = [[] for _ in contenders]
    for contender in contenders:
        contender.run(1)
    for _ in range(rounds):
        for contender, measured in zip(contenders, seconds, strict=True):
            start = time.perf_counter()
            contender.run(steps)
            measured.append((time.perf_counter() - start) / steps)
    return seconds


def rows_of(contenders, seconds, devices):
    """Yields the table's rows from what `measure` returned; the ratios are those of images/s."""
    for contender, measured in zip(contenders, seconds, strict=True):
        row, median = dict(contender.row), statistics.median(measured)
        row["images_per_second"] = row["batch_size"] / median
        row["ratio_to_first"] = speed(measured, seconds[0])
        if contender.kind == "ours":
            for kind in ("pytorch", "towers"):
                rivals = [
                    others
                    for rival, others in zip(contenders, seconds, strict=True)
                    if rival.kind == kind and rival.variant == reference(contender.variant, kind)
                ]
                if rivals:
                    fastest = min(rivals, key=statistics.median)
                    row[f"ratio_to_{kind}"] = speed(measured, fastest)
        if "flops" in row:
            row["teraflops_per_second"] = row["flops"] / median / 1e12
            row["model_flops_utilisation"] = utilisation(row["flops"], median, devices)
        row["seconds"] = measured
        yield row


def speed(seconds, reference):
    """Returns how many times as fast as the reference: the median of the rounds' ratios."""
    return statistics.median(r / s for s, r in zip(seconds, reference, strict=True))


def reference(variant, kind):
    """Returns what a variant is compared with: PyTorch's plain step, or its own bare towers."""
    if kind == "towers":
        return dataclasses.replace(variant, cyclic="on", micro_batches=1)
    # PyTorch's model sees all patches, so that a variant that sees fewer has no counterpart.
    return dataclasses.replace(variant, remat="none", micro_batches=1, attention="auto")


def distinct(variants, kind):
    """Returns the variants that `reference` asks for, each of them once."""
    references = dict.fromkeys(reference(variant, kind) for variant in variants)
    return [variant for variant in references if kind == "towers" or variant.kept_patches == 1]


def pytorch_contenders(ours, variants, *, try_compile):
    """Yields PyTorch's contenders for all variants, with torch.compile as well if it works.

    Args:
      ours: an Ours, whose model and batch they get.
      variants: those that are measured of ours.
      try_compile: whether to try torch.compile.
    """
    theirs = PyTorch(ours.name, ours.batch)
    for variant in distinct(variants, "pytorch"):
        flops = ours.model_flops(variant)
        yield theirs.contender(variant, flops=flops)
        if try_compile:
            try:
                yield theirs.contender(variant, flops=flops, compiled=True)
            except Exception as error:  # whatever it is, the plain step can still be measured
                reason = str(error).strip().splitlines()[0]
                say(f"torch.compile fails and is left out: {reason}")


def variants_of(args, sizes):
    """Combines the arguments' lists in all ways; a ResNet has no patches to leave out."""
    kept_patches = [1.0] if sizes["patch_size"] is None else args.patches
    lists = args.cyclic, args.dtype, args.remat, args.micro_batches, kept_patches, args.attention
    return [Variant(*values) for values in itertools.product(*lists)]


def measured_rows(name, args):
    """Measures one model and returns its rows."""
    ours = Ours(name, batch_size=args.batch_size, fsdp=args.fsdp, scan_blocks=args.scan_blocks)
    variants = variants_of(args, ours.sizes)
    ours.place()
    contenders = [ours.contender(variant) for variant in variants]
    if args.towers:
        contenders += [ours.bare_towers(variant) for variant in distinct(variants, "towers")]
    if args.side_by_side:
        contenders += pytorch_contenders(ours, variants, try_compile=args.torch_compile)
    seconds = measure(contenders, steps=args.steps, rounds=args.rounds)
    return list(rows_of(contenders, seconds, ours.mesh.devices.flat))


def count_cyclic_share(name, batch_size):
    """Counts the operations of a step, and how much the cyclic terms add to the others.

    Matrix products and convolutions count, in the value and in the gradients. Nothing is computed.

    Returns:
      A row for COUNT_COLUMNS.
    """
    ours = Ours(name, batch_size=batch_size)
    step = ours.train_step(Variant())
    embeds = jax.ShapeDtypeStruct((batch_size, ours.sizes["embed_dim"]), jnp.float32)
    terms = jax.value_and_grad(lambda *embeds: sum(cyclic_consistency(*embeds)), argnums=(0, 1))
    flops = matmul_flops(step, ours.abstract_state, ours.abstract_batch())
    cyclic_flops = matmul_flops(terms, embeds, embeds)
    return {
        "model": name,
        "batch_size": batch_size,
        "step_flops": flops,
        "cyclic_flops": cyclic_flops,
        "cyclic_share": cyclic_flops / (flops - cyclic_flops),
    }


def largest_batch(name, variant, *, micro_batch, fsdp):
    """Doubles the number of micro-batches until memory ends, and yields a row for each that ran.

    Args:
      name: a preset.
      variant: how the step is computed.
      micro_batch: the number of images in a micro-batch, on all devices together.
      fsdp: how many devices share one copy of the parameters.

    Raises:
      UserError: the device is a CPU, on which the end of memory is the end of the process.
    """
    if jax.default_backend() == "cpu":
        raise UserError("--largest-batch needs a GPU or a TPU, as a CPU's memory has no clear end")
    for doublings in itertools.count():
        micro_batches = 2**doublings
        try:
            ours = Ours(name, batch_size=micro_batches * micro_batch, fsdp=fsdp)
            ours.place()
            step = ours.contender(dataclasses.replace(variant, micro_batches=micro_batches))
            start = time.perf_counter()
            step.run(1)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            return
        seconds = time.perf_counter() - start
        yield step.row | {"images_per_second": ours.batch_size / seconds}
        del ours, step  # the next state and batch take their place


def shown_columns(rows):
    """Returns COLUMNS with model FLOP/s, or with their share of the peak if that is known."""
    has_share = any(row.get("model_flops_utilisation") is not None for row in rows)
    left_out = "model TFLOP/s" if has_share else "MFU"
    return {heading: column for heading, column in COLUMNS.items() if heading != left_out}


def say(text):
    """Prints without delay."""
    print(text, flush=True)


def choices(allowed):
    """Makes a type for argparse: values of `allowed`, joined by commas."""

    def parse(text):
        values = text.split(",")
        for value in values:
            if value not in allowed:
                raise argparse.ArgumentTypeError(
                    f"{value!r} is unknown; choose from {', '.join(allowed)}"
                )
        return values

    return parse


def shares(text):
    """Turns "1.0,0.5" into [1.0, 0.5]; it is a type for argparse."""
    return [float(number) for number in text.split(",")]


def parse_arguments(arguments=None):
    """Parses the command line's arguments."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = functools.partial(parser.add_argument, metavar="…")
    add(
        "--model",
        type=choices(PRESETS),
        default=["ViT-B/32"],
        help=f"presets: {', '.join(PRESETS)}",
    )
    add(
        "--cyclic",
        type=choices(("on", "off")),
        default=["on"],
        help="whether the loss has the cyclic terms",
    )
    add(
        "--dtype",
        type=choices(("float32", "bfloat16")),
        default=["float32"],
        help="dtype of the towers",
    )
    add(
        "--remat",
        type=choices(("none", "dots", "full")),
        default=["none"],
        help="what both towers rematerialise",
    )
    add(
        "--attention",
        type=choices(ATTENTIONS),
        default=["auto"],
        help="what computes a transformer's attention",
    )
    add("--micro-batches", type=numbers, default=[1], help="parts of the batch, e.g. 1,4")
    add("--patches", type=shares, default=[1.0], help="share of patches that a ViT sees")
    add("--batch-size", type=int, default=32, help="pairs, over all devices")
    add("--fsdp", type=int, default=1, help="devices that share one copy of the parameters")
    add("--steps", type=int, default=5, help="steps of each row in a round")
    add("--rounds", type=int, default=5, help="how often each row takes its turn")
    add("--json", help="file to write all rows to, with the seconds of each round")
    flag = functools.partial(parser.add_argument, action="store_true")
    flag("--scan-blocks", help="compiles a transformer's blocks as one loop")
    flag("--towers", help="also measures the two towers alone, forward and back")
    flag("--torch-compile", help="also measures PyTorch's step with torch.compile")
    flag("--count", help="counts the FLOPs that the cyclic terms add, and times nothing")
    flag("--largest-batch", help="adds micro-batches of --batch-size until memory ends")
    parser.add_argument(
        "--side-by-side",
        action=argparse.BooleanOptionalAction,
        default=has_pytorch(),
        help="measures PyTorch as well (default: if it is installed)",
    )
    return parser.parse_args(arguments)


def main():
    """Measures what the command line asks for and prints it."""
    args = parse_arguments()
    if args.side_by_side and not has_pytorch():
        raise UserError("--side-by-side needs PyTorch; run pip install open_clip_torch")
    device = jax.devices()[0].device_kind
    say(f"jax {jax.__version__}, {jax.device_count()} × {device}\n")
    rows, columns = [], COLUMNS
    for name in args.model:
        if args.count:
            rows.append(count_cyclic_share(name, args.batch_size))
            columns = COUNT_COLUMNS
        elif args.largest_batch:
            variant = variants_of(args, resolve_sizes(name))[0]
            for row in largest_batch(name, variant, micro_batch=args.batch_size, fsdp=args.fsdp):
                say(f"{name}: a step of {row['batch_size']} pairs ran")
                rows.append(row)
                if args.json:
                    write_json(args.json, rows)
        else:
            rows += measured_rows(name, args)
            columns = shown_columns(rows)
    say(table(rows, columns))
    if (memory := jax.devices()[0].memory_stats()) is not None:
        peak = memory["peak_bytes_in_use"] / 2**20
        say(f"\nJAX took {peak:,.0f} MiB of the device at most, over all rows.")
    if args.json:
        write_json(args.json, rows)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
