"""Writes the README.md of an export: what the model is, how it was trained, how it is loaded."""

import json
import math

import yaml
from etils import epath

from cyclip_jax import __version__
from cyclip_jax.evals.output import read_abouts
from cyclip_jax.files import HUB
from cyclip_jax.interop.card_results import model_index
from cyclip_jax.interop.checkpoint import Checkpoint
from cyclip_jax.interop.privacy import without_folders
from cyclip_jax.workdir.layout import EVALS
from cyclip_jax.workdir.metrics import read_reports
from cyclip_jax.workdir.table import final_table

_OPEN_CLIP = """```python
import open_clip

model, _, preprocess = open_clip.create_model_and_transforms("{schema}{place}")
tokenizer = open_clip.get_tokenizer("{schema}{place}")
model.eval()
```

CLIP_benchmark takes `--model {schema}{place}`; add `--no_amp` to compare numbers.
If there is a file `openai.pt`, it holds the same weights as a state dict under OpenAI's names."""

_CYCLIP = """The official CyCLIP code reads `cyclip.pt`: `--checkpoint {folder}/cyclip.pt`."""

_TRANSFORMERS = """```python
from transformers import CLIPModel, CLIPProcessor

model = CLIPModel.from_pretrained("{place}")
processor = CLIPProcessor.from_pretrained("{place}")
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
_FILES_ALONE = ("cyclip", "onnx")  # the formats whose programs know no hub
_DOWNLOAD = "`hf download {place} --local-dir {folder}` fetches the files.\n"
_LIBRARIES = ("open_clip", "transformers", "onnx")  # the formats that hubs know as libraries

_OURS = """cyclip_jax loads it as well:

```python
import cyclip_jax

model, preprocess, tokenize = cyclip_jax.load("{ours}")
image_embeds, text_embeds, scale = model(preprocess("cat.jpg"), tokenize("a cat"))
```
"""


def model_card(
    checkpoint: Checkpoint,
    *,
    name: str,
    export_format: str,
    dtype: str,
    license_name: str,
    repository: str | None = None,
    pictures: str = "",
) -> str:
    """Returns the text of a model card, which begins with the metadata that model hubs read.

    Args:
      checkpoint: a completed Checkpoint.
      name: the name of the folder.
      export_format: a format of export.py.
      dtype: the dtype of the weights.
      license_name: the license as hubs write it, e.g. "apache-2.0" or "unknown".
      repository: the repository on the Hub to which the export goes, from which the model is then
        loaded; None is the folder.
      pictures: a section of its own, see pictures.py.
    """
    title = name if repository is None else repository.rpartition("/")[2]
    values = {
        "folder": title,
        "place": repository or name,
        "schema": "local-dir:" if repository is None else HUB,
        "ours": name if repository is None else f"{HUB}{repository}",
        "scale": math.exp(checkpoint.weights["logit_scale"]),
        **checkpoint.model,
    }
    step = checkpoint.step
    origin = "a file of weights" if step is None else f"step {step} of a run"
    parts = [
        "---",
        yaml.safe_dump(
            _metadata(checkpoint, title, export_format, license_name),
            sort_keys=False,
            allow_unicode=True,
        ).rstrip(),
        "---",
        "",
        f"# {title}",
        "",
        f"This is {_objective(checkpoint.config)}. cyclip_jax {__version__} exported it from "
        f"{origin}, with weights in {dtype}.",
        "",
        "## How to load it",
        "",
        *([_DOWNLOAD.format(**values)] if export_format in _FILES_ALONE and repository else []),
        _HOW_TO_LOAD[export_format].format(**values),
        "",
    ]
    # Of the Hub nothing but safetensors is fetched.
    if export_format != "onnx" and not (export_format in _FILES_ALONE and repository):
        parts.append(_OURS.format(**values))
    parts += ["## Model", "", _table(checkpoint.model)]
    if checkpoint.config is not None:
        parts += ["## Training", "", _training(checkpoint)]
    return "\n".join([*parts, *([pictures] if pictures else [])])


def _metadata(checkpoint, name, export_format, license_name):
    """What stands in front of a card, as hubs read it."""
    metadata = {
        "license": license_name,
        **({"library_name": export_format} if export_format in _LIBRARIES else {}),
        "pipeline_tag": "zero-shot-image-classification",
        "tags": ["clip", "cyclip", "contrastive", "image-text"],
    }
    if checkpoint.config is not None and checkpoint.metrics:
        index = model_index(
            name,
            checkpoint.metrics,
            read_abouts(epath.Path(checkpoint.source) / EVALS),
            evaluations=checkpoint.config.evals.to_dict(),
        )
        metadata |= {"model-index": index} if index else {}
    return metadata


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
        "training data": without_folders(config.classes.train or config.data.train),
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
    told = config.to_dict()
    told.pop("wandb", None)  # it names an account
    settings = json.dumps(without_folders(told), indent=2)
    parts += ["<details><summary>The whole configuration</summary>", "", "```json", settings]
    parts += ["```", "", "</details>", ""]
    return "\n".join(parts)
