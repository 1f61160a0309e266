"""benchmarks/data.py at its smallest: nothing is timed here, but everything runs."""

import io
import json
import os

import numpy as np
import pytest
from PIL import Image

from benchmarks import data
from tests.pytorch import torch  # noqa: F401  (first, and torchvision only after it)

# isort: split
from torchvision.transforms import v2

# All cores: the process that runs the tests is not to be confined to one.
SMALLEST = (
    f"--cores={len(os.sched_getaffinity(0))}",
    *("--pictures=4", "--side=60", "--images=64", "--rounds=1"),
)


@pytest.fixture
def run(tmp_path, capsys):
    """A function that runs the benchmark and gives the rows that it wrote, and what it printed."""

    def run(*arguments):
        path = tmp_path / "rows.json"
        data.main([*SMALLEST, *arguments, f"--json={path}"])
        return json.loads(path.read_text())["rows"], capsys.readouterr().out

    return run


def test_every_pipeline_is_measured_beside_pillow_and_its_own_decoder(run):
    rows, printed = run()
    by_name = {row["name"]: row for row in rows}
    assert by_name["Pillow: decode, resize, crop"]["of_pillow"] == 1
    for ending in (
        *("tar", "tfrecord", "tar, decoder=fast", "tar, random crops"),
        *("tar, second_image=autoaugment", "tar, second_caption=eda"),
        "tar, random crops, second_image=crops",
    ):
        row = by_name[f"pipeline, {ending}"]
        assert row["rate"] > 0 and row["of_bare"] > 0
        assert row["cores"] == pytest.approx(3_000 / row["rate"])
    assert by_name["sentencepiece"]["share"] > 0
    assert all(name in printed for name in by_name)


def test_memory_and_resumption_are_watched_over_as_many_examples_as_asked(run):
    memory, _ = run("--memory=640")
    assert memory[-1]["examples"] == 640 and all(row["mebibytes"] > 0 for row in memory)
    resumption, _ = run("--resume=200")
    assert [row["seconds"] > 0 for row in resumption] == [True] * 3


def test_its_pillow_is_the_reference_transform():
    (encoded,) = data.photographs(1, 400)
    picture = Image.open(io.BytesIO(encoded))
    size = data.IMAGE_SIZE
    reference = v2.Compose(
        [v2.Resize(size, interpolation=v2.InterpolationMode.BICUBIC), v2.CenterCrop(size)]
    )
    np.testing.assert_array_equal(data.by_pillow(encoded), np.asarray(reference(picture)))
