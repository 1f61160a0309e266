"""Measures how far embeddings, gradients, statistics and twenty steps are from PyTorch's.

    python -m benchmarks.parity [--quick]

It prints Markdown tables. Both sides get the same uint8 pictures, token ids and weights. The
weights are drawn, with the names and shapes of open_clip's state dict.
"""

import argparse
import dataclasses
import functools
import math
from importlib.metadata import version

import jax
import numpy as np
import optax
from flax import nnx

from cyclip_jax import defaults
from cyclip_jax.interop.checkpoint import OUR_PREPROCESS, Checkpoint
from cyclip_jax.interop.formats import transformers_config
from cyclip_jax.interop.names import COUNT, to_transformers
from cyclip_jax.interop.open_clip_config import open_clip_config
from cyclip_jax.interop.weights import fit, fixed_weights, weights_of
from cyclip_jax.models import presets
from cyclip_jax.models.clip import normalise_images
from cyclip_jax.models.presets import resolve_sizes
from cyclip_jax.models.transformer import SWITCHES
from cyclip_jax.training.objective import Objective
from cyclip_jax.training.optimizer import create_optimizer
from cyclip_jax.training.step import create_state, make_train_step
from tests.pytorch import open_clip, torch

SMALL_TEXT = {
    "context_length": 16,
    "vocab_size": 512,
    "text_width": 64,
    "text_layers": 2,
    "text_heads": 2,
}
# These vision towers have the published depth and width, but see small pictures.
SMALL = {
    "RN50": {"image_size": 64, **SMALL_TEXT},
    "RN101": {"image_size": 64, **SMALL_TEXT},
    "RN50x4": {"image_size": 64, **SMALL_TEXT},
    "ViT-B/32": {"image_size": 64, **SMALL_TEXT},
    "ViT-B/16": {"image_size": 32, **SMALL_TEXT},
}
# The others, which take longer, and SigLIP's, whose image towers timm builds for one size.
SLOW = {
    "RN50x16": {"image_size": 64, **SMALL_TEXT},
    "RN50x64": {"image_size": 64, **SMALL_TEXT},
    "ViT-S/32": {"image_size": 64, **SMALL_TEXT},
    "ViT-S/16": {"image_size": 32, **SMALL_TEXT},
    "ViT-L/14": {"image_size": 28, **SMALL_TEXT},
    "ViT-L/14-336": {"image_size": 42, **SMALL_TEXT},
    "ViT-B/16-SigLIP": SMALL_TEXT,
    "ViT-L/16-SigLIP-256": SMALL_TEXT,
}
PICTURES = 4
# If all embeddings were alike, they would agree whatever the towers compute.
MAX_MEAN_COSINE = 0.9

INITIAL_LOGIT_SCALE = math.log(1 / 0.07)
# The models to train: (preset, its sizes, the first logit scale). With N = 16, one embedding is
# narrower and one is wider than the batch, so that the cyclic terms are computed once in closed
# form and once from their definition. The second logit scale is out of bounds, so that the clamp
# acts.
TRAINED = {
    "ResNet": (
        "RN-tiny",
        {
            "image_size": 32,
            "vision_layers": (1, 2, 1, 1),
            "vision_width": 8,
            "vision_heads": 4,
            "embed_dim": 12,
            "text_width": 128,
            "text_layers": 1,
        },
        INITIAL_LOGIT_SCALE,
    ),
    "ViT": (
        "ViT-tiny",
        {
            "image_size": 16,
            "vision_width": 128,
            "embed_dim": 24,
            "text_width": 128,
            "text_layers": 1,
            "context_length": 8,
        },
        4.7,
    ),
}
_TINY = {**TRAINED["ViT"][1], "vision_layers": 2}
# In what ours may differ from OpenAI's models, in the same form.
VARIANTS = {
    "ViT with all switches, means, full attention": (
        "ViT-tiny",
        {
            **_TINY,
            "vision_block": SWITCHES,
            "pool": "mean",
            "text_block": SWITCHES,
            "text_attention": "full",
            "text_pool": "eos",
            "text_projection_bias": True,
            "text_epsilon": 1e-6,
        },
        INITIAL_LOGIT_SCALE,
    ),
    "ViT with an attention pool, sines and cosines, texts read at their start": (
        "ViT-tiny",
        {
            **_TINY,
            "pool": "attention",
            "vision_positions": "sin_cos",
            "text_attention": "full",
            "text_pool": "first",
        },
        INITIAL_LOGIT_SCALE,
    ),
    "ViT whose pool is as wide as it, NormFormer, texts read at their end": (
        "ViT-tiny",
        {
            **_TINY,
            "vision_width": 64,
            "embed_dim": 64,
            "pool": "attention",
            "vision_block": ("scale_heads", "scale_attn", "scale_fc"),
            "text_block": ("qk_norm",),
            "text_pool": "last",
        },
        INITIAL_LOGIT_SCALE,
    ),
}
BATCH_SIZE = 16
STEPS = 20
CYCLIC_WEIGHTS = (0.25, 0.25)  # λ1, in-modal, and λ2, cross-modal
RECIPE = {**defaults.get_config().optimizer, "warmup_steps": 4}
MAX_LOGIT_SCALE = math.log(100)  # open_clip has this value; the official code rounds it to 4.6052


def draw_weights(shapes, seed, logit_scale=INITIAL_LOGIT_SCALE):
    """Draws weights that hide no mistake: no norm layer and no residual block is the identity.

    Args:
      shapes: {OpenAI name: shape}.
      seed: the seed of the random numbers.
      logit_scale: the value for logit_scale, which is not drawn.

    Returns:
      {OpenAI name: float32 array}, the same for the same seed.
    """
    rng = np.random.default_rng(seed)
    weights = {name: _draw(rng, name, tuple(shape)) for name, shape in shapes.items()}
    return weights | {"logit_scale": np.asarray(logit_scale, np.float32)}


def _draw(rng, name, shape):
    kind = name.rsplit(".", 1)[-1]
    if kind == COUNT:
        return np.zeros((), np.int64)
    if kind == "running_var":
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    if kind == "weight" and len(shape) == 1:
        # The last norm of a residual block is small, so that dozens of blocks do not explode.
        low, high = (0.2, 0.6) if ".layer" in name and ".bn3." in name else (0.5, 1.5)
        return rng.uniform(low, high, shape).astype(np.float32)
    values = np.float32(_stddev(name, kind, shape)) * rng.standard_normal(shape, np.float32)
    if len(shape) == 4 or ".v_proj.weight" in name:
        # Behind a ReLU, all numbers are positive. Kernels that sum to zero do not see what all
        # pictures share there.
        values -= values.mean(axis=tuple(range(1, len(shape))), keepdims=True)
    return values


def _stddev(name, kind, shape):
    if name == "token_embedding.weight":
        return 0.02
    if name == "positional_embedding":
        return 0.01
    if kind in ("positional_embedding", "class_embedding"):
        return shape[-1] ** -0.5
    if len(shape) < 2:
        return 0.1  # biases, running means
    if len(shape) == 4:
        return math.sqrt(2 / math.prod(shape[1:]))
    fan_in = shape[0] if kind in ("proj", "text_projection") else shape[1]
    return fan_in**-0.5


def draw_images(n, size, seed):
    """Draws pictures of four squares in random colours with noise, uint8 [n, size, size, 3]."""
    rng = np.random.default_rng(seed)
    colours = rng.integers(0, 256, (n, 2, 2, 3))
    squares = np.kron(colours, np.ones((1, size // 2, size // 2, 1)))
    noise = rng.normal(0, 20, squares.shape)
    return np.clip(squares + noise, 0, 255).astype(np.uint8)


def draw_tokens(n, context_length, vocab_size, seed):
    """Draws token ids, int32 [n, context_length]: random texts, end-of-text, and then zeros."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, vocab_size - 1, (n, context_length)).astype(np.int32)
    for row, length in zip(tokens, rng.integers(3, context_length + 1, n), strict=True):
        row[length - 1], row[length:] = vocab_size - 1, 0
    return tokens


def draw_batch(sizes, n, seed):
    """Draws {"images": uint8 [n, H, W, 3], "tokens": int32 [n, L]} for a model of these sizes."""
    return {
        "images": draw_images(n, sizes["image_size"], seed),
        "tokens": draw_tokens(n, sizes["context_length"], sizes["vocab_size"], seed),
    }


def has_quick_gelu(sizes):
    """Says whether a model of these sizes has OpenAI's activation; SigLIP's cannot have it."""
    return sizes["vision_tower"] != "siglip"


def abstract_model(name, sizes, *, is_training=False, dtype="float32", quick_gelu=None):
    """Returns (graphdef, {"params": …, "batch_stats": …}) of our model, with shapes for arrays."""
    quick_gelu = has_quick_gelu(sizes) if quick_gelu is None else quick_gelu
    settings = {"name": name, "dtype": dtype, "quick_gelu": quick_gelu, **sizes}
    train_graphdef, graphdef, tree = presets.abstract_model(settings)
    tree = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), tree)
    return (train_graphdef if is_training else graphdef), tree


def our_encoder(name, sizes, *, quick_gelu=None, dtype="float32"):
    """Compiles (weights, batch) -> (image, text) embeddings, which are [N, D] of `dtype` each."""
    graphdef, abstract = abstract_model(name, sizes, quick_gelu=quick_gelu, dtype=dtype)

    @jax.jit
    def forward(tree, batch):
        model = nnx.merge(graphdef, tree["params"], tree["batch_stats"])
        images = normalise_images(batch["images"], np.dtype(dtype))
        return model.encode_image(images), model.encode_text(batch["tokens"])

    def encode(weights, batch):
        tree = fit(weights, abstract, source="what was drawn")
        return tuple(np.asarray(embeds) for embeds in forward(tree, batch))

    return encode


def open_clip_model(sizes):
    """Makes open_clip's model of these sizes, with its own initial weights."""
    config = open_clip_config(_checkpoint(sizes, {}), hf_tokenizer=False)
    return open_clip.model.CLIP(**config["model_cfg"]).eval()


def weight_shapes(model):
    """Returns {name: shape} of a torch model's state dict."""
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def load(model, weights):
    """Puts {name: array} into a torch model; every name and shape must be right."""
    model.load_state_dict({name: torch.tensor(array) for name, array in weights.items()})
    return model


def open_clip_embeddings(model, batch, dtype=None):
    """Computes open_clip's image and text embeddings, [N, D] each, by default in float32."""
    with torch.no_grad():
        images, texts = torch_images(batch, dtype), torch_tokens(batch)
        return model.encode_image(images).numpy(), model.encode_text(texts).numpy()


def transformers_embeddings(sizes, weights, batch):
    """Computes those of transformers' CLIPModel with the same weights; it has only ViTs."""
    from transformers import CLIPConfig, CLIPModel

    config = transformers_config(_checkpoint(sizes, weights), "float32")
    model = load(CLIPModel(CLIPConfig(**config)).eval(), to_transformers(weights))
    with torch.no_grad():
        images = model.vision_model(pixel_values=torch_images(batch)).pooler_output
        texts = model.text_model(input_ids=torch_tokens(batch)).pooler_output
        return model.visual_projection(images).numpy(), model.text_projection(texts).numpy()


def torch_images(batch, dtype=None):
    """Normalises a batch's images, uint8 [N, H, W, 3], to [N, 3, H, W]."""
    images = torch.tensor(batch["images"]).permute(0, 3, 1, 2).to(dtype or torch.float32)
    mean, std = (
        torch.tensor(values, dtype=images.dtype).reshape(3, 1, 1)
        for values in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    )
    return (images / 255 - mean) / std


def torch_tokens(batch):
    """Returns a batch's token ids as int64 [N, L]."""
    return torch.tensor(batch["tokens"], dtype=torch.int64)


def _checkpoint(sizes, weights):
    return Checkpoint(
        source="what was drawn",
        weights=weights,
        model={**sizes, "quick_gelu": has_quick_gelu(sizes)},
        tokenizer=None,
        preprocess=OUR_PREPROCESS,
    )


@dataclasses.dataclass(frozen=True)
class Case:
    """A model's sizes, drawn weights and inputs, and what open_clip computes from them.

    Attributes:
      name: the name of a preset.
      sizes: the sizes of the model, as `resolve_sizes` gives them.
      weights: {OpenAI name: float32 array}.
      batch: {"images": uint8 [N, H, W, 3], "tokens": int32 [N, L]}.
      expected: open_clip's image and text embeddings, float32 [N, D] each.
    """

    name: str
    sizes: dict
    weights: dict
    batch: dict
    expected: tuple


def draw_case(name, **overrides):
    """Draws a Case of a preset, in which `overrides` replace some sizes.

    Raises:
      ValueError: the embeddings of different pictures or of different texts are nearly the same.
    """
    sizes = resolve_sizes(name, **overrides)
    model = open_clip_model(sizes)
    weights = draw_weights(weight_shapes(model), seed=0)
    batch = draw_batch(sizes, PICTURES, seed=0)
    expected = open_clip_embeddings(load(model, weights), batch)
    for modality, embeds in zip(("image", "text"), expected, strict=True):
        if mean_cosine(embeds) >= MAX_MEAN_COSINE:
            raise ValueError(
                f"the mean cosine between {modality} embeddings of different inputs of {name} is "
                f"{mean_cosine(embeds):.3f}, so that agreement would show little; draw another case"
            )
    return Case(name, sizes, weights, batch, expected)


def others(case):
    """Returns {library and version: its (image, text) embeddings}; transformers has only ViTs."""
    result = {f"open_clip {version('open_clip_torch')}": case.expected}
    if case.sizes["vision_tower"] == "vit":
        embeds = transformers_embeddings(case.sizes, case.weights, case.batch)
        result[f"transformers {version('transformers')}"] = embeds
    return result


def mean_cosine(embeds):
    """Returns the mean cosine between different rows of [N, D]."""
    unit = embeds / np.linalg.norm(embeds, axis=1, keepdims=True)
    n = len(unit)
    return float((np.sum(unit @ unit.T) - n) / (n * (n - 1)))


def embedding_differences(actual, expected):
    """Compares embeddings.

    Args:
      actual, expected: pairs of image and text embeddings [N, D].

    Returns:
      (image, text), in each the largest absolute difference of a number, divided by the norm of its
      embedding.
    """
    return tuple(
        float(np.max(np.abs(a - e) / np.linalg.norm(e, axis=1, keepdims=True)))
        for a, e in zip(actual, expected, strict=True)
    )


def reference_objective(image_embeds, text_embeds, scale, inmodal_weight, crossmodal_weight):
    """Computes the CyCLIP objective in PyTorch from its formula (Goel et al. 2022, section 2).

    Args:
      image_embeds, text_embeds: un-normalised embeddings [N, D].
      scale: exp(logit_scale).
    """
    images, texts = (x / x.norm(dim=1, keepdim=True) for x in (image_embeds, text_embeds))
    n = len(images)
    pairs = torch.arange(n)
    logits = scale * images @ texts.T  # [N, N]
    cross_entropy = torch.nn.functional.cross_entropy
    contrastive = (cross_entropy(logits, pairs) + cross_entropy(logits.T, pairs)) / 2
    inmodal = ((images @ images.T - texts @ texts.T) ** 2).sum() / n
    crossmodal = ((images @ texts.T - texts @ images.T) ** 2).sum() / n
    return contrastive + inmodal_weight * inmodal + crossmodal_weight * crossmodal


def reference_learning_rate(step):
    """Computes base·(t+1)/w in the warm-up, and then base·½(1 + cos(π(t−w)/(S−w)))."""
    base, warmup = RECIPE["learning_rate"], RECIPE["warmup_steps"]
    if step < warmup:
        return base * (step + 1) / warmup
    return base * (1 + math.cos(math.pi * (step - warmup) / (STEPS - warmup))) / 2


@dataclasses.dataclass(frozen=True)
class Training:
    """What a training run computed; names are OpenAI's.

    Attributes:
      losses: the loss of each step, before its update.
      logit_scales: the logit scale after each step.
      gradients: the gradients of the first step, {name: array}.
      statistics: BatchNorm's running statistics after the first step, {name: array}.
      weights: the weights after the last step, {name: array}.
    """

    losses: list
    logit_scales: list
    gradients: dict
    statistics: dict
    weights: dict


@dataclasses.dataclass(frozen=True)
class TrainingCase:
    """A tiny model, its first weights (float32), and the two batches that alternate."""

    name: str
    sizes: dict
    weights: dict
    batches: tuple


def draw_training_case(model):
    """Draws a TrainingCase for a model of TRAINED."""
    name, overrides, logit_scale = (TRAINED | VARIANTS)[model]
    sizes = resolve_sizes(name, **overrides)
    weights = draw_weights(weight_shapes(open_clip_model(sizes)), 0, logit_scale)
    weights |= fixed_weights(sizes)
    batches = tuple(draw_batch(sizes, BATCH_SIZE, seed) for seed in (1, 2))
    return TrainingCase(name, sizes, weights, batches)


def train_in_torch(case, dtype, *, steps=STEPS, cyclic_weights=CYCLIC_WEIGHTS):
    """Trains open_clip's model with torch.optim.AdamW, and returns a Training."""
    dtype = getattr(torch, dtype)
    model = load(open_clip_model(case.sizes), case.weights).to(dtype).train()
    decayed, others = [], []
    for name, parameter in model.named_parameters():
        is_matrix = parameter.ndim == 2 and not name.endswith(("positional_embedding", "query"))
        is_matrix |= parameter.ndim == 4
        (decayed if is_matrix else others).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": RECIPE["weight_decay"]},
        {"params": others, "weight_decay": 0.0},
    ]
    betas = (RECIPE["beta1"], RECIPE["beta2"])
    optimizer = torch.optim.AdamW(groups, lr=1.0, betas=betas, eps=RECIPE["eps"])
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, reference_learning_rate)
    losses, logit_scales, first = [], [], None
    for step in range(steps):
        batch = case.batches[step % len(case.batches)]
        optimizer.zero_grad()
        images = model.encode_image(torch_images(batch, dtype))
        texts = model.encode_text(torch_tokens(batch))
        loss = reference_objective(images, texts, model.logit_scale.exp(), *cyclic_weights)
        loss.backward()
        first = first or (_gradients(model), statistics_of(_state(model)))
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, MAX_LOGIT_SCALE)
        losses.append(loss.item())
        logit_scales.append(model.logit_scale.item())
    return Training(losses, logit_scales, *first, _state(model))


def _gradients(model):
    return {
        name: parameter.grad.numpy().copy()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def _state(model):
    return {name: tensor.numpy().copy() for name, tensor in model.state_dict().items()}


def statistics_of(weights):
    """Picks BatchNorm's running means and variances from {OpenAI name: array}."""
    return {name: array for name, array in weights.items() if ".running_" in name}


def our_trainer(case, dtype):
    """Returns a function (steps, cyclic_weights) -> Training that trains our model.

    The train step is that of a run, and is compiled once. The optimiser keeps the gradient as it
    was before AdamW.
    """
    graphdef, abstract = abstract_model(case.name, case.sizes, is_training=True, dtype=dtype)
    adamw, schedule = create_optimizer(
        **RECIPE, total_steps=STEPS, steps_per_epoch=len(case.batches)
    )
    optimizer = optax.chain(keep_gradient(), adamw)
    normalise = functools.partial(normalise_images, dtype=np.dtype(dtype))

    @jax.jit
    def train_step(state, batch, inmodal_weight, crossmodal_weight):
        objective = Objective(inmodal_weight=inmodal_weight, crossmodal_weight=crossmodal_weight)
        step = make_train_step(
            graphdef, optimizer, schedule, objective=objective, normalise=normalise
        )
        return step(state, batch)

    def train(steps=STEPS, cyclic_weights=CYCLIC_WEIGHTS):
        tree = fit(case.weights, abstract, source="what was drawn")
        state = create_state(
            lambda: nnx.merge(graphdef, tree["params"], tree["batch_stats"]), optimizer, seed=0
        )
        losses, logit_scales, first = [], [], None
        for step in range(steps):
            batch = case.batches[step % len(case.batches)]
            state, metrics = train_step(state, batch, *cyclic_weights)
            losses.append(float(metrics["loss"]))
            logit_scales.append(float(state.params["logit_scale"]))
            first = first or (
                weights_of({"params": state.opt_state[0]}),
                statistics_of(weights_of({"batch_stats": state.batch_stats})),
            )
        weights = weights_of({"params": state.params, "batch_stats": state.batch_stats})
        weights |= fixed_weights(case.sizes)
        return Training(losses, logit_scales, *first, weights)

    def train_in_dtype(**arguments):
        with jax.enable_x64(dtype == "float64"):
            return train(**arguments)

    return train_in_dtype


def keep_gradient():
    """Makes an optimiser that changes nothing and whose state is the gradient."""
    return optax.GradientTransformation(
        lambda params: jax.tree.map(np.zeros_like, params),
        lambda updates, state, params=None: (updates, updates),
    )


def tensor_errors(actual, expected):
    """Computes the relative error of each tensor, and the absolute error of key biases.

    Softmax does not see a key's bias, nor that of a key's norm: its gradient is zero by nature, and
    what is computed is only rounding. So its error is absolute.

    Args:
      actual, expected: {OpenAI name: array} with the same names.

    Returns:
      ({name: norm of the difference, divided by the norm}, {name of a key's bias: norm of the
      difference}).

    Raises:
      ValueError: the names or the shapes differ.
    """
    actual, expected = split_biases(actual), split_biases(expected)
    if {n: a.shape for n, a in actual.items()} != {n: e.shape for n, e in expected.items()}:
        raise ValueError("the two sides have different tensors")
    relative, absolute = {}, {}
    for name, e in expected.items():
        error = float(np.linalg.norm(np.ravel(actual[name] - e)))
        if is_key_bias(name):
            absolute[name] = error
        elif error:
            relative[name] = error / float(np.linalg.norm(np.ravel(e)))
        else:
            relative[name] = 0.0
    return relative, absolute


def is_key_bias(name):
    """Says whether a name, as `split_biases` gives it, is that of a key's bias."""
    return name.endswith((".k_proj.bias", ".in_proj_bias[key]", ".attn.ln_k.bias"))


def split_biases(weights):
    """Leaves out BatchNorm's counts, and separates the biases of query, key and value."""
    result = {}
    for name, array in weights.items():
        if name.endswith(".in_proj_bias"):
            parts = np.split(array, 3)
            for part, values in zip(("query", "key", "value"), parts, strict=True):
                result[f"{name}[{part}]"] = values
        elif not name.endswith(COUNT):
            result[name] = array
    return result


def worst(errors):
    """Returns (name, error) of the largest error of a dict, or ("none", 0) if it is empty."""
    return max(errors.items(), key=lambda item: item[1], default=("none", 0.0))


def loss_errors(actual, expected):
    """Returns the relative difference between the losses of two Trainings in each step."""
    return [abs(a - e) / abs(e) for a, e in zip(actual.losses, expected.losses, strict=True)]


def measured_embeddings(overrides):
    """Yields rows that compare embeddings with those of open_clip, and for ViTs of transformers.

    Args:
      overrides: {preset: sizes that differ from the preset's own}.
    """
    for name, sizes in overrides.items():
        case = draw_case(name, **sizes)
        ours = our_encoder(name, case.sizes)(case.weights, case.batch)
        for library, embeds in others(case).items():
            image, text = embedding_differences(ours, embeds)
            model = f"{name}, {case.sizes['image_size']} px"
            yield model, library, f"{image:.1e}", f"{text:.1e}"


def measured_training():
    """Returns (rows of the first step, rows of all steps) of each model of TRAINED and dtype."""
    first, trajectory = [], []
    for model in (*TRAINED, *VARIANTS):
        case = draw_training_case(model)
        for dtype in ("float64", "float32"):
            ours, theirs = our_trainer(case, dtype)(), train_in_torch(case, dtype)
            losses = loss_errors(ours, theirs)
            gradients, keys = tensor_errors(ours.gradients, theirs.gradients)
            statistics, _ = tensor_errors(ours.statistics, theirs.statistics)
            weights, _ = tensor_errors(ours.weights, theirs.weights)
            first.append(
                (
                    f"{model}, {dtype}",
                    f"{losses[0]:.1e}",
                    f"{worst(gradients)[1]:.1e} of {len(gradients)} ({worst(gradients)[0]})",
                    f"{worst(keys)[1]:.1e}",
                    f"{worst(statistics)[1]:.1e} of {len(statistics)}" if statistics else "none",
                )
            )
            trajectory.append(
                (
                    f"{model}, {dtype}",
                    f"{theirs.losses[0]:.3f} → {theirs.losses[-1]:.3f}",
                    f"{max(losses):.1e}",
                    f"{worst(weights)[1]:.1e} of {len(weights)} ({worst(weights)[0]})",
                )
            )
    return first, trajectory


def table(columns, rows):
    """Writes a Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main():
    """Measures everything and prints it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="use small pictures and text towers; all presets"
    )
    is_quick = parser.parse_args().quick
    overrides = SMALL | SLOW if is_quick else {name: {} for name in SMALL}
    # Other devices than a CPU may round the factors of a float32 product.
    jax.config.update("jax_default_matmul_precision", "highest")
    print(f"jax {jax.__version__}, torch {torch.__version__}, {jax.devices()[0].device_kind}\n")
    print("Embeddings in float32. The figures are the largest difference of a number, divided by")
    print("the norm of its embedding.\n")
    columns = ("model", "compared with", "image embeddings", "text embeddings")
    print(table(columns, measured_embeddings(overrides)), flush=True)
    first, trajectory = measured_training()
    print("\nThe first training step. The figures are the largest relative difference of a tensor,")
    print("and for key biases, whose gradient is zero by nature, the largest absolute one.\n")
    columns = ("model", "loss", "gradients", "of key biases", "running statistics")
    print(table(columns, first))
    print(f"\n{STEPS} steps of AdamW. The figures are the largest relative difference of a step's")
    print("loss, and of a tensor at the end (without key biases).\n")
    print(
        table(("model", "loss", "difference of the loss", "of weights and statistics"), trajectory)
    )


if __name__ == "__main__":
    main()
