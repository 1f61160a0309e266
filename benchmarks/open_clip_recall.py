"""Measures the recall of an export in open_clip, to compare it with what `evaluate` says.

    python -m benchmarks.open_clip_recall --export=DIR --pairs=val.csv

open_clip alone loads the export, and pictures go through its own transform. Captions become token
ids through our tokenizer. The program prints the recall as JSON.
"""

import argparse
import functools
import json
import os
import pathlib

import numpy as np
from PIL import Image

import cyclip_jax
from cyclip_jax.data.sources import create_source
from cyclip_jax.interop.pretrained import completed, open_checkpoint, tokenizer_of
from tests.pytorch import open_clip, torch


def main():
    """Prints {"image_to_text_recall@1": …, …, "pairs": …} without pairs that cannot be read."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_path = functools.partial(parser.add_argument, type=os.path.expanduser, required=True)
    add_path("--export", help="a folder in open_clip's format")
    add_path("--pairs", help="a csv of images and captions")
    parser.add_argument(
        "--pixels", choices=("open_clip", "ours"), default="open_clip", help="whose preprocessing"
    )
    args = parser.parse_args()

    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{args.export}")
    tokenize = tokenizer_of(completed(open_checkpoint(args.export)))
    paths, captions = readable_pairs(args.pairs)
    with torch.no_grad():
        if args.pixels == "ours":
            pixels = np.array(cyclip_jax.load(args.export)[1](list(paths)))
            images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
        else:
            images = torch.stack([transform(open_image(path)) for path in paths])
        tokens = torch.from_numpy(tokenize(captions)).long()
        image_embeds = model.eval().encode_image(images, normalize=True).numpy()
        text_embeds = model.encode_text(tokens, normalize=True).numpy()
    print(json.dumps(recalls(image_embeds, text_embeds, paths, captions)))


def readable_pairs(path):
    """Returns (paths, captions) of pairs whose picture opens and whose caption is not empty."""
    source = create_source(
        "csv",
        path,
        config_key="--pairs",
        image_key="image",
        caption_key="caption",
        delimiter=",",
    )
    folder = pathlib.Path(path).parent
    kept = [
        (folder / key, caption)
        for key, caption in zip(source.keys(range(len(source))), source.captions(), strict=True)
        if caption.strip() and opens(folder / key)
    ]
    return tuple(zip(*kept, strict=True))


def open_image(path):
    """Reads a PIL image into memory."""
    with Image.open(path) as image:
        return image.convert("RGB")


def opens(path):
    """Says whether Pillow can read a file."""
    try:
        open_image(path)
    except OSError:
        return False
    return True


def recalls(image_embeds, text_embeds, paths, captions):
    """Computes recall at 1, 5 and 10 both ways; equal captions or pictures count as one."""
    distinct_images, image_ids = np.unique([str(path) for path in paths], return_inverse=True)
    distinct_texts, text_ids = np.unique(captions, return_inverse=True)
    images = image_embeds[[list(image_ids).index(i) for i in range(len(distinct_images))]]
    texts = text_embeds[[list(text_ids).index(i) for i in range(len(distinct_texts))]]
    is_pair = np.zeros((len(images), len(texts)), bool)
    is_pair[image_ids, text_ids] = True
    result = {}
    for name, similarities, partners in (
        ("image_to_text", images @ texts.T, is_pair),
        ("text_to_image", texts @ images.T, is_pair.T),
    ):
        best = np.where(partners, similarities, -np.inf).max(axis=1, keepdims=True)
        ranks = np.sum((similarities >= best) & ~partners, axis=1)
        result |= {f"{name}_recall@{k}": float(np.mean(ranks < k)) for k in (1, 5, 10)}
    return result | {"pairs": len(paths)}


if __name__ == "__main__":
    main()
