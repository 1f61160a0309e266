"""`python -m cyclip_jax.evaluate` by flags alone, on data sets as CLIP_benchmark gives them out."""

import csv
import json
import shutil

import pytest
from ml_collections import ConfigDict

from cyclip_jax import defaults, evaluate
from cyclip_jax.runtime import command
from tests.evals.data.test_labelled import CLASSES, exported
from tests.evals.data.test_pairs import clip_benchmark_folder
from tests.pictures import write_pairs
from tests.runs import status_of


def run(*arguments):
    """The exit status of the command."""

    def main(given):
        command.run(evaluate.main, evaluate.define_flags, doc="It.", arguments=given)

    return status_of(main, list(map(str, arguments)))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with wds_drawings, for classification, wds_captions, for retrieval, and sts.csv."""
    folder = tmp_path_factory.mktemp("clip_benchmark")
    write_pairs(folder / "pictures")
    exported(folder / "wds_drawings", folder / "pictures")
    clip_benchmark_folder(folder / "pictures", folder / "wds_captions")
    rows = [f"{CLASSES[n]},{CLASSES[n + 5]},{n % 5}" for n in range(len(CLASSES) - 5)]
    (folder / "sts.csv").write_text("\n".join(["sentence1,sentence2,score", *rows]))
    return folder


def test_flags_alone_name_data_sets_of_clip_benchmark(data, finished, capsys):
    workdir = finished[0]
    flags = [f"--zeroshot={data}/wds_drawings", f"--retrieval={data}/wds_captions"]
    assert run(f"--checkpoint={workdir}", *flags, f"--output={data}/table.csv") == 0
    shown, said = capsys.readouterr()
    rows = list(csv.DictReader((data / "table.csv").read_text().splitlines()))
    counts = {(row["evaluation"], row["metric"]): row["value"] for row in rows}
    assert counts["wds_drawings", "images"] == counts["wds_captions", "images"] == "24.0"
    assert (counts["wds_drawings", "classes"], counts["wds_captions", "pairs"]) == ("24.0", "120.0")
    assert {row["evaluation"] for row in rows} == {"wds_captions", "wds_drawings"}  # not its own
    results = json.loads((workdir / "evals" / "step_120.json").read_text())  # as programs read it
    assert results["wds_drawings/top1"] == float(counts["wds_drawings", "top1"])
    lines = shown.splitlines()
    assert lines[0] == "step 120" and lines[2].startswith("wds_captions  image_to_text")
    assert lines[-2:] == [
        f"written to {data}/table.csv",
        f"with figures: python -m cyclip_jax.report {workdir}",
    ]
    # 48 prompts of two templates; the five captions of each picture.
    assert said.startswith("2 evaluations: 48 images and 168 texts to embed\n")
    assert "1 of 2, wds_captions" in said and "2 of 2, wds_drawings" in said


def test_a_failed_evaluation_takes_nothing_from_the_others_and_a_format_is_printed_alone(
    data, finished, tmp_path, capsys
):
    shutil.copytree(data / "wds_drawings", tmp_path / "wds_long")
    template = "a very long sentence of many words before the name of the {c}"
    (tmp_path / "wds_long" / "zeroshot_classification_templates.txt").write_text(template)
    flags = [f"--sts={data}/sts.csv", f"--zeroshot={tmp_path}/wds_long", "--format=json"]
    assert run(f"--checkpoint={finished[0]}", *flags) == 1
    shown, said = capsys.readouterr()
    assert json.loads(shown)["sts"]["pairs"]["value"] == len(CLASSES) - 5
    assert "error: the evaluation wds_long failed: all 24 classes have the same tokens" in said


def test_flags_come_besides_the_evaluations_of_a_config_file():
    config = defaults.get_config()
    config.evals = ConfigDict({"x": {"type": "zeroshot", "folder": "/a/x"}})
    given = {"y": {"type": "zeroshot", "folder": "/b/y"}}
    checked = evaluate._checked_config(config.lock(), "/nothing", given)
    assert checked.evals.to_dict() == config.evals.to_dict() | given
    assert list(config.evals) == ["x"]
