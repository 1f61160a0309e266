"""Writes the README.md of an export: what the model is, how it was trained, how it is loaded."""

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from etils import epath

from cyclip_jax import __version__
from cyclip_jax.evals.output import read_abouts
from cyclip_jax.interop.checkpoint import Checkpoint
from cyclip_jax.workdir.layout import EVALS
from cyclip_jax.workdir.metrics import read_reports
from cyclip_jax.workdir.table import final_table

_OPEN_CLIP = """```python
import open_clip

model, _, preprocess = open_clip.create_model_and_transforms("local-dir:{folder}")
tokenizer = open_clip.get_tokenizer("local-dir:{folder}")
model.eval()
```

CLIP_benchmark takes `--model local-dir:{folder}`; add `--no_amp` to compare numbers.
If there is a file `openai.pt`, it holds the same weights as a state dict under OpenAI's names."""

_CYCLIP = """The official CyCLIP code reads `cyclip.pt`: `--checkpoint {folder}/cyclip.pt`."""

_TRANSFORMERS = """```python
from transformers import CLIPModel, CLIPProcessor

model = CLIPModel.from_pretrained("{folder}")
processor = CLIPProcessor.from_pretrained("{folder}")
inputs = processor(text=texts, images=images, padding=True, truncation=True, return_tensors="pt")
```"""

_ONNX = """`image.onnx` takes `images`, uint8 [batch, {image_size}, {image_size}, 3]. They are RGB
pixels: resize the shorter side to {image_size} (bicubic, antialiased), and cut out the centre. The
file normalises the pixels itself. `text.onnx` takes `tokens`, int64 [batch, {context_length}].
Both give embeddings of unit norm, and their metadata repeat all this.

```python
import onnxruntime

image_encoder = onnxruntime.InferenceSession("{folder}/image.onnx")
text_encoder = onnxruntime.InferenceSession("{folder}/text.onnx")
(image_embeds,) = image_encoder.run(None, {{"images": images}})
(text_embeds,) = text_encoder.run(None, {{"tokens": tokens}})
probabilities = {scale:.2f} * image_embeds @ text_embeds.T  # softmax over the texts
```"""

_HOW_TO_LOAD = {
    "open_clip": _OPEN_CLIP,
    "cyclip": _CYCLIP,
    "transformers": _TRANSFORMERS,
    "onnx": _ONNX,
}
_LIBRARIES = ("open_clip", "transformers", "onnx")  # the formats that hubs know as libraries

_OURS = """cyclip_jax loads it as well:

```python
import cyclip_jax

model, preprocess, tokenize = cyclip_jax.load("{folder}")
image_embeds, text_embeds, scale = model(preprocess("cat.jpg"), tokenize("a cat"))
```
"""


def model_card(
    checkpoint: Checkpoint, *, name: str, export_format: str, dtype: str, license_name: str
) -> str:
    """Returns the text of a model card, which begins with the metadata that model hubs read.

    Args:
      checkpoint: a completed Checkpoint.
      name: the name of the folder.
      export_format: a format of export.py.
      dtype: the dtype of the weights.
      license_name: the license as hubs write it, e.g. "apache-2.0" or "unknown".
    """
    values = {
        "folder": name,
        "scale": math.exp(checkpoint.weights["logit_scale"]),
        **checkpoint.model,
    }
    step = checkpoint.step
    origin = "a file of weights" if step is None else f"step {step} of a run"
    parts = [
        "---",
        f"license: {license_name}",
        *([f"library_name: {export_format}"] if export_format in _LIBRARIES else []),
        "pipeline_tag: zero-shot-image-classification",
        "tags: [clip, cyclip, contrastive, image-text]",
        "---",
        "",
        f"# {name}",
        "",
        f"This is {_objective(checkpoint.config)}. cyclip_jax {__version__} exported it from "
        f"{origin}, with weights in {dtype}.",
        "",
        "## How to load it",
        "",
        _HOW_TO_LOAD[export_format].format(**values),
        "",
    ]
    if export_format != "onnx":
        parts.append(_OURS.format(**values))
    parts += ["## Model", "", _table(checkpoint.model)]
    if checkpoint.config is not None:
        parts += ["## Training", "", _training(checkpoint)]
    return "\n".join(parts)


def _objective(config):
    if config is None:
        return "an image-text model"
    if config.classes.train is not None and config.classes.loss == "head":
        classes = config.model.num_classes
        return f"an image-text model whose image tower was fine-tuned to {classes} classes"
    weights = config.loss.inmodal_weight, config.loss.crossmodal_weight
    of_siglip = config.loss.contrastive == "sigmoid"
    if not any(weights):
        whose = "sigmoid objective of SigLIP" if of_siglip else "contrastive objective of CLIP"
        return f"an image-text model that was trained with the {whose}"
    return (
        "an image-text model that was trained with the "
        f"{'sigmoid objective of SigLIP and the terms' if of_siglip else 'objective'} of CyCLIP "
        "([Goel et al. 2022](https://arxiv.org/abs/2205.14459); in-modal weight "
        f"{weights[0]:g}, cross-modal weight {weights[1]:g})"
    )


def _table(rows):
    known = {key: value for key, value in rows.items() if value is not None}
    lines = ["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in known.items())]
    return "\n".join(lines) + "\n"


def _training(checkpoint):
    config = checkpoint.config
    rows = {
        "training data": _without_folders(config.classes.train or config.data.train),
        "pairs per step": config.batch_size,
        "steps": checkpoint.step,
        "seed": config.seed,
    }
    parts = [_table(rows)]
    if checkpoint.metrics:
        workdir = epath.Path(checkpoint.source)
        abouts, reports = read_abouts(workdir / EVALS), read_reports(workdir)
        parts += [
            "The run measured at that step:",
            "",
            "```",
            final_table(checkpoint.metrics, abouts, reports=reports),
            "```",
            "",
        ]
    settings = json.dumps(_without_folders(config.to_dict()), indent=2)
    parts += ["<details><summary>The whole configuration</summary>", "", "```json", settings]
    parts += ["```", "", "</details>", ""]
    return "\n".join(parts)


def _without_folders(value: Any) -> Any:
    """Settings in which paths are names alone: a card is published, with nobody's folders."""
    if isinstance(value, Mapping):
        return {name: _without_folders(inner) for name, inner in value.items()}
    return re.sub(r"(^|[:=])/(?!/)(?:[^/]*/)*", r"\1", value) if isinstance(value, str) else value
