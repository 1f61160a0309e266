"""Measures what embedding a data set costs beside its two parts, the input pipeline and the towers.

    python -m benchmarks.embed --checkpoint=runs/quickstart
    python -m benchmarks.embed --checkpoint=ViT-B-32.safetensors --examples=256

JPEG photographs of 500 pixels, cut from those of scikit-image, lie in a tar with captions. In each
round take turns: the pipeline, which reads, decodes and tokenises them all; the towers, which embed
as many batches that are there already; and the whole, which also writes the files. Everything is
compiled before. On a CPU all three share the same cores.
"""

import argparse
import functools
import pathlib
import statistics
import tempfile
import time

from benchmarks.data import photographs, write_tar
from benchmarks.report import table
from cyclip_jax.data.pipeline import eval_batches
from cyclip_jax.embeddings import write
from cyclip_jax.embeddings.write import Wanted, embed_data

PICTURES, BATCH = 64, 64
COLUMNS = {"what": ("name", ""), "seconds": ("seconds", ".2f"), "of the sum": ("share", ".3f")}


def pipeline(encoders, source):
    """The batches of all examples."""
    return list(
        eval_batches(source, encoders.tokenize, batch_size=BATCH, image_size=encoders.image_size)
    )


def towers(encoders, batches):
    """Embeds batches."""
    for batch in batches:
        encoders.encode_features(batch["images"])
        encoders.encode_text(batch["tokens"])


def seconds_of(function):
    begun = time.perf_counter()
    function()
    return time.perf_counter() - begun


def measure(checkpoint, examples, rounds):
    """Rows of the table: medians, and the median of the rounds' ratios."""
    write.open_model = functools.cache(write.open_model)  # compiled once
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder)
        files = photographs(PICTURES, 500)
        data = write_tar(path / "data.tar", files, repeat=-(-examples // PICTURES))
        wanted = Wanted(input=data, batch_size=BATCH)
        source = wanted.opened().source
        runs = iter(range(rounds + 1))

        def whole():
            embed_data(wanted, checkpoint, path / str(next(runs)))

        whole()
        encoders = write.open_model(
            checkpoint, step=None, weights="raw", batch_size=BATCH, text_windows=False, alone=True
        ).encoders
        batches = pipeline(encoders, source)
        parts = {
            "the pipeline alone": lambda: pipeline(encoders, source),
            "the towers alone": lambda: towers(encoders, batches),
            "embedding": whole,
        }
        found = [{name: seconds_of(run) for name, run in parts.items()} for _ in range(rounds)]
    sums = [sum(seconds for name, seconds in one.items() if name != "embedding") for one in found]
    return [
        {
            "name": name,
            "seconds": statistics.median(one[name] for one in found),
            "share": statistics.median(
                one[name] / total for one, total in zip(found, sums, strict=True)
            ),
        }
        for name in parts
    ]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", required=True, help="what cyclip_jax.load takes")
    parser.add_argument("--examples", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    rows = measure(arguments.checkpoint, arguments.examples, arguments.rounds)
    print(table(rows, COLUMNS))


if __name__ == "__main__":
    main()
