"""Small vocabularies, checkpoints, workdirs and config files, whole or damaged."""

import functools
import gzip
import io
import json
import math
import pathlib
import random
import tarfile
import tempfile
import zipfile

import numpy as np

from benchmarks.fuzz.damage import (
    DIGITS,
    NUMBERS,
    TEXTS,
    VALUES,
    Case,
    as_json,
    changed_file,
    changed_tree,
    damaged,
    encoded,
)
from benchmarks.fuzz.data import EXAMPLES, caption

_OLD_RUN = pathlib.Path(__file__).parents[2] / "tests" / "workdir" / "made_before.tar.xz"
_MERGES = "\n".join(["#version", "k 0", "a b</w>", "k0 1</w>", "t e</w>", "i te</w>", ""]).encode()
CLIP_IDS = 519  # 256 bytes twice, five merges, two special tokens
MODEL = {
    **{"name": "ViT-tiny", "image_size": 32, "vision_layers": 1, "vision_width": 8},
    **{"vision_heads": 2, "patch_size": 16, "embed_dim": 8, "context_length": 9},
    **{"vocab_size": CLIP_IDS, "text_width": 8, "text_heads": 2, "text_layers": 1},
}
# What other programs and our exports write beside the weights of this model.
_OPEN_CLIP = (
    '{"model_cfg": {"embed_dim": 8, "quick_gelu": true, "vision_cfg": {"image_size": 32, '
    '"layers": 1, "width": 8, "head_width": 4, "patch_size": 16}, "text_cfg": {"width": 8, '
    '"context_length": 9, "vocab_size": 519, "heads": 2, "layers": 1}}, "preprocess_cfg": {'
    '"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "interpolation": "bicubic", '
    '"resize_mode": "shortest"}}'
)
_TOWER = '{"hidden_act": "quick_gelu", "num_attention_heads": 2, "vocab_size": 519}'
_TRANSFORMERS = f'{{"model_type": "clip", "vision_config": {_TOWER}, "text_config": {_TOWER}}}'
_PREPROCESSOR = (
    '{"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "crop_size": 32, '
    '"size": {"shortest_edge": 32}, "resample": 3, "do_resize": true}'
)
_EXPORT = {
    **{"format": "open_clip", "weights": ["w.safetensors"], "step": 3},
    **{"tokenizer": {"tokenizer": "clip_bpe", "vocabulary": "v.gz"}},
    **{"preprocess": {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}},
}


# Vocabularies


@functools.cache
def _pieces():
    from cyclip_jax.data.tokenizers import train_sentencepiece

    with tempfile.TemporaryDirectory() as folder:
        texts = [caption(n) for n in range(EXAMPLES)]
        path = train_sentencepiece(texts, vocab_size=40, output=f"{folder}/model")
        return pathlib.Path(path).read_bytes()


def tokenizer(rng: random.Random, is_damaged: bool) -> Case:
    """CLIP's merges, or a SentencePiece model."""
    if rng.random() < 0.3:
        is_inside = is_damaged and rng.random() < 0.6
        text = damaged(rng, _MERGES)[0] if is_inside else _MERGES
        content, name = gzip.compress(text, mtime=0), "clip_bpe"
        is_damaged &= not is_inside
    else:
        content, name = _pieces(), "sentencepiece"
        if is_damaged and rng.random() < 0.5:
            content, is_damaged = _changed_model(rng, content), False
    content = damaged(rng, content)[0] if is_damaged else content
    return Case({"v": content}, ("tokenizer", {"path": "v", "name": name}))


def _changed_model(rng, content):
    """A SentencePiece model of which some fields are changed."""
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto.FromString(content)
    for _ in range(rng.choice((1, 1, 3))):
        box = rng.choice((rng.choice(model.pieces), model.trainer_spec, model.normalizer_spec))
        field = rng.choice(box.DESCRIPTOR.fields)
        value = rng.choice((*NUMBERS, 0.5, math.nan, math.inf, True))
        if field.type == field.TYPE_STRING:
            value = rng.choice(TEXTS)
        elif field.type == field.TYPE_BYTES:
            value = damaged(rng, getattr(box, field.name))[0]
        try:
            setattr(box, field.name, value)
        except (TypeError, ValueError, OverflowError, AttributeError):  # no value of such a field
            box.ClearField(field.name)
    if rng.random() < 0.2:
        del model.pieces[rng.randrange(len(model.pieces)) :]
    return model.SerializeToString(deterministic=True)


# Checkpoints and workdirs


@functools.cache
def _checkpoint_files(kind):
    import torch
    from safetensors.numpy import save

    from cyclip_jax.interop.names import to_transformers
    from cyclip_jax.interop.weights import shapes_of
    from cyclip_jax.models.presets import abstract_model

    rng, file = np.random.default_rng(0), io.BytesIO()
    shapes = shapes_of(abstract_model(MODEL)[2])
    weights = {n: rng.normal(0, 0.1, shape).astype(np.float32) for n, shape in shapes.items()}
    if kind == "pt":
        tensors = {name: torch.from_numpy(array) for name, array in weights.items()}
        torch.save({"state_dict": tensors, "epoch": 3}, file)
        return {"w.pt": file.getvalue()}
    if kind == "transformers":
        theirs = to_transformers(weights)
        parts = {f"{n}.safetensors": dict(list(theirs.items())[n::2]) for n in range(2)}
        index = {"weight_map": {key: name for name, part in parts.items() for key in part}}
        return {name: save(part) for name, part in parts.items()} | {
            "model.safetensors.index.json": as_json(index),
            "config.json": _TRANSFORMERS.encode(),
            "preprocessor_config.json": _PREPROCESSOR.encode(),
        }
    beside = {
        "safetensors": {},
        "open_clip": {"open_clip_config.json": _OPEN_CLIP.encode()},
        "export": {
            "cyclip_jax.json": as_json(_EXPORT | {"model": {**MODEL, "quick_gelu": True}}),
            "v.gz": gzip.compress(_MERGES, mtime=0),
        },
    }
    return {"w.safetensors": save(weights)} | beside[kind]


@functools.cache
def _run_files():
    """The files of a run, with numbers of an evaluation."""
    with tarfile.open(_OLD_RUN) as archive:
        files = {m.name: archive.extractfile(m).read() for m in archive.getmembers() if m.isfile()}
    written = json.loads(files["run/config.json"])
    written["config"]["evals"] = {}
    about = {"top1": {"unit": "share", "better": "more", "is_headline": True}}
    return files | {
        "run/config.json": as_json(written),
        "run/evals/step_3.json": as_json({"step": 3, "probe/top1": 0.5, "probe/top1_ci_low": 0.4}),
        "run/evals/probe/metrics.json": as_json(about),
    }


def checkpoint(rng: random.Random, is_damaged: bool) -> Case:
    """A workdir of a run, a file of weights, or a folder with weights and settings."""
    kind = rng.choice(("safetensors", "pt", "open_clip", "export", "transformers", "workdir"))
    if kind == "workdir":
        files = dict(_run_files())
        if rng.random() < 0.6:  # else they show all damage
            del files["run/checkpoints/3/checksums.json"]
        names = [n for n in files if "/model/" in n or n.count("/") == 3 or "/meta/" in n]
        files = changed_file(rng, files, rng.choice(sorted(names)))[0] if is_damaged else files
        return Case(files, (rng.choice(("load", "resume")), {"path": "run"}))
    files = dict(_checkpoint_files(kind))
    name = rng.choice(sorted(files))
    if is_damaged and name.endswith(".safetensors") and rng.random() < 0.6:
        size = int.from_bytes(files[name][:8], "little")
        head = as_json(changed_tree(rng, json.loads(files[name][8 : 8 + size]))[0])
        files[name] = len(head).to_bytes(8, "little") + head + files[name][8 + size :]
    elif is_damaged and name.endswith(".pt") and rng.random() < 0.6:
        files[name] = _changed_archive(rng, files[name])
    elif is_damaged:
        files = changed_file(rng, files, name)[0]
    is_bare = kind in ("safetensors", "pt")  # and tells no numbers of heads
    arguments = {"path": f"m/{name}" if is_bare else "m", "heads": 2 if is_bare else None}
    return Case({f"m/{n}": content for n, content in files.items()}, ("load", arguments))


def _changed_archive(rng, content):
    """A zip file of which one member is damaged and has a right checksum."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(file, "w") as new:
        names = old.namelist()
        chosen = rng.choice([name for name in names if name.endswith(".pkl")] * 4 + names)
        for name in names:
            inner = old.read(name)
            new.writestr(zipfile.ZipInfo(name), damaged(rng, inner)[0] if name == chosen else inner)
    return file.getvalue()


# Configs


def config(rng: random.Random, is_damaged: bool) -> Case:
    """A config file with flags, or the files that a report and an evaluation read of a workdir."""
    kind = rng.choice(("flags", "flags", "file", "report", "report", "evaluate"))
    if kind in ("report", "evaluate"):
        files = dict(_run_files())
        names = ["config.json", "metrics.jsonl", "evals/step_3.json", "evals/probe/metrics.json"]
        name = f"run/{rng.choice(names if kind == 'report' else names[:1])}"
        files = changed_file(rng, files, name)[0] if is_damaged else files
        return Case(files, (kind, {"path": "run"}))
    from cyclip_jax.defaults import get_config
    from cyclip_jax.runtime.sections import flat

    fields = sorted(flat(get_config().to_dict()))
    lines, given = [], ["--config.data.train=pairs.csv", "--config.total_steps=20000"]
    for _ in range(rng.choice((1, 1, 2)) if is_damaged else 0):
        field, value = rng.choice(fields), repr(rng.choice((*VALUES, *TEXTS)))
        if kind == "flags":
            value = rng.choice((value, rng.choice(DIGITS), rng.choice(TEXTS)))
            given.append(f"--config.{field}={value}")
        else:
            lines.append(f"    config.{field} = {value}\n")
    start = "from configs import common\n\n\ndef get_config():\n    config = common.get_config()\n"
    content = encoded(start + "".join(lines) + "    return config\n")
    if is_damaged and kind == "file" and rng.random() < 0.4:
        content = damaged(rng, content)[0]
    return Case({"config.py": content}, ("config", {"path": "config.py", "flags_given": given}))
