"""Small models whose every weight matters."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from cyclip_jax.interop import formats
from cyclip_jax.interop.checkpoint import OUR_PREPROCESS, Checkpoint
from cyclip_jax.interop.weights import fit, weights_of
from cyclip_jax.models.presets import abstract_model, sizes_in

TEXT = {
    "embed_dim": 12,
    "context_length": 9,
    "vocab_size": 40,
    "text_width": 16,
    "text_heads": 2,
    "text_layers": 2,
}
RESNET = {
    "name": "RN-tiny",
    "image_size": 64,
    "vision_layers": (2, 1, 1, 1),
    "vision_width": 8,
    "vision_heads": 4,
    **TEXT,
}
VIT = {
    "name": "ViT-tiny",
    "image_size": 32,
    "vision_layers": 2,
    "vision_width": 24,
    "vision_heads": 3,
    "patch_size": 8,
    **TEXT,
}
SMALL = {"resnet": RESNET, "vit": VIT}

_TOKENIZERS = {}  # {sum of a vocabulary: files for other programs}, which take a second to make
_made = formats.tokenizer_files


def write_tokenizers_once(monkeypatch):
    """Exports write the tokenizer of other programs as it was made for the first of them."""

    def files(tokenizer):
        if tokenizer.vocabulary_sum not in _TOKENIZERS:
            _TOKENIZERS[tokenizer.vocabulary_sum] = _made(tokenizer)
        return _TOKENIZERS[tokenizer.vocabulary_sum]

    monkeypatch.setattr(formats, "tokenizer_files", files)


def abstract(settings):
    """Shapes of {"params", "batch_stats"} of a model."""
    return abstract_model(settings)[2]


def drawn(tree, seed=0):
    """Trees with random weights: none is zero, variances and scales are positive."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name = path[-1].key
        if name in ("scale", "var"):
            return rng.uniform(0.5, 1.5, leaf.shape).astype(leaf.dtype)
        if len(leaf.shape) < 2:
            return rng.normal(0, 0.1, leaf.shape).astype(leaf.dtype)
        array = rng.normal(0, (3 / np.prod(leaf.shape[:-1])) ** 0.5, leaf.shape)
        # What all channels share, as they do behind a ReLU, would outweigh what differs.
        inputs = tuple(range(array.ndim - 1))
        return (array - array.mean(axis=inputs, keepdims=True)).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, tree)


def drawn_weights(settings, seed=0):
    """Random weights of a model under OpenAI's names."""
    weights = weights_of(drawn(abstract(settings), seed))
    weights["logit_scale"] = np.asarray(3.1, np.float32)
    return weights


def drawn_model(settings, seed=0):
    """A CLIP module in evaluation mode with those weights."""
    _, graphdef, shapes = abstract_model(settings)
    trees = jax.tree.map(jnp.asarray, fit(drawn_weights(settings, seed), shapes, source="x"))
    return nnx.merge(graphdef, trees["params"], trees["batch_stats"])


@nnx.jit
def embed(model, images, tokens):
    """(image_embeds, text_embeds, logit_scale) of a module, compiled as one."""
    return model(images, tokens)


def drawn_checkpoint(settings, tokenizer, seed=0):
    """A Checkpoint with those weights, and all that an export wants to know."""
    return Checkpoint(
        source="the test",
        weights=drawn_weights(settings, seed),
        model={"quick_gelu": True, "name": settings["name"], **sizes_in(settings)},
        tokenizer=tokenizer,
        preprocess=OUR_PREPROCESS,
        step=7,
    )


def some_inputs(settings, n=4, seed=1):
    """(normalised images [n, H, W, 3], token ids [n, L]) that differ."""
    rng = np.random.default_rng(seed)
    size, length = settings["image_size"], settings["context_length"]
    images = rng.normal(size=(n, size, size, 3)).astype(np.float32)
    tokens = rng.integers(1, settings["vocab_size"] - 2, (n, length), np.int32)
    ends = rng.integers(2, length, n)
    for row, end in zip(tokens, ends, strict=True):
        row[0], row[end], row[end + 1 :] = settings["vocab_size"] - 2, settings["vocab_size"] - 1, 0
    return images, tokens
