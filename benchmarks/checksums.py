"""Measures what it costs to verify the checksums of TFRecord and Parquet files.

    python -m benchmarks.checksums

Photographs of 500 pixels are read from files of both formats and made into images of 224², with the
checksums verified and not, in turns. The numbers are ratios of processor time, which other programs
on the machine hardly change. Parquet has row groups of 100 pictures and is read with
data.shuffle_window, as such files should be.

It needs scikit-image and pyarrow.
"""

import pathlib
import statistics
import tempfile
import time
from unittest import mock

import numpy as np
import pyarrow
import pyarrow.parquet

from benchmarks.data import BATCH, CAPTION, IMAGE_SIZE, photographs, write_tfrecord
from cyclip_jax.data import pipeline
from cyclip_jax.data.bad_examples import BadExamples
from cyclip_jax.data.sources import create_source, tfrecord

EXAMPLES = 1_200
DIFFERENT = 200  # pictures among them
BATCHES = 15
ROUNDS = 9
WINDOW = 600


def write_parquet(path, pictures):
    captions = [CAPTION.format(number) for number in range(len(pictures))]
    table = pyarrow.table({"image": pictures, "caption": captions})
    pyarrow.parquet.write_table(table, path, row_group_size=100, write_page_checksum=True)


def seconds(path, folder, **settings):
    """Processor seconds of some batches of an epoch."""
    source = create_source("auto", str(path), config_key="data", kept_examples=WINDOW)
    iterator = pipeline.train_batches(
        source,
        lambda captions: np.zeros((len(captions), 1), np.int32),
        batch_size=BATCH,
        image_size=IMAGE_SIZE,
        seed=0,
        position=None,
        bad_examples=BadExamples(folder / "bad.jsonl", 0.0, len(source)),
        **settings,
    )
    start = time.process_time()
    for _ in range(BATCHES):
        next(iterator)
    elapsed = time.process_time() - start
    iterator.close()
    return elapsed


def without_checksums():
    """Patches that leave the checksums of both formats unread."""
    read, opened = tfrecord.TfRecords, pyarrow.parquet.ParquetFile

    def content(source, shard, offset, size):
        return source._files.read(shard, offset, size)

    def unverified(*arguments, page_checksum_verification, **options):
        return opened(*arguments, **options)

    return mock.patch.object(read, "_content", content), mock.patch.object(
        pyarrow.parquet, "ParquetFile", unverified
    )


def main():
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        pictures = photographs(DIFFERENT, 500) * (EXAMPLES // DIFFERENT)
        write_tfrecord(folder / "a.tfrecord", pictures)
        write_parquet(folder / "a.parquet", pictures)
        for path, settings in (
            (folder / "a.tfrecord", {}),
            (folder / "a.parquet", {"shuffle_window": WINDOW}),
        ):
            ratios = []
            for _ in range(ROUNDS):
                verified = seconds(path, folder, **settings)
                records, pages = without_checksums()
                with records, pages:
                    ratios.append(verified / seconds(path, folder, **settings))
            low, *_, high = sorted(ratios)
            middle = statistics.median(ratios)
            print(f"{path.suffix}: with / without {middle:.3f} ({low:.3f} to {high:.3f})")


if __name__ == "__main__":
    main()
