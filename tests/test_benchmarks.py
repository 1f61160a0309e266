"""Each benchmark at its smallest: nothing is timed here, but everything runs."""

import dataclasses
import itertools
import json
import math
import os
import subprocess
import sys

import jax
import pytest

from benchmarks import checksums, loss, report, scaling, small_data
from cyclip_jax import parallel
from tests.runs import ROOT

SMALL_LOSS = ("--rows=8", "--dim=4", "--chunk-size=3", "--repeats=2")
SMALL_STEP = (
    "--model=ViT-tiny",
    "--batch-per-device=2",
    "--set",
    *("model.image_size=16", "model.vision_layers=1", "model.text_layers=1"),
    *("model.context_length=4", "model.vocab_size=16", "mesh.fsdp_min_size=64"),
)


def run(benchmark, tmp_path, *args):
    """The rows that a benchmark writes."""
    path = tmp_path / "rows.json"
    benchmark.main([*args, f"--json={path}"])
    return json.loads(path.read_text())["rows"]


def numbers_of(tree):
    """All numbers of a nested dict."""
    for value in tree.values():
        if isinstance(value, dict):
            yield from numbers_of(value)
        elif isinstance(value, int | float):
            yield value


@pytest.mark.parametrize("module", [loss, scaling])
def test_help_names_every_option_that_the_docstring_shows(module, capsys):
    with pytest.raises(SystemExit, match="0"):
        module.main(["--help"])
    shown = {word.strip("[],").split("=")[0] for word in module.__doc__.split() if "--" in word}
    assert len(shown) > 1
    assert shown <= set(capsys.readouterr().out.replace(",", " ").split())


def test_benchmarks_need_neither_pytorch_nor_tensorflow(environment):
    found = "print({'torch', 'tensorflow'} & set(sys.modules))"
    command = [sys.executable, "-c", f"import sys, benchmarks.loss, benchmarks.scaling; {found}"]
    assert subprocess.check_output(command, env=environment, text=True) == "set()\n"


def test_loss_measures_every_form_of_both_losses(tmp_path, capsys):
    rows = run(loss, tmp_path, *SMALL_LOSS, "--side-by-side")
    forms = [(row["loss"], row["form"]) for row in rows]
    assert forms == list(itertools.product(loss.LOSSES, ("ours", "dense", "PyTorch")))
    for row in rows:
        assert all(map(math.isfinite, numbers_of(row)))
        assert row["milliseconds"] > 0
        assert row["difference"] < 1e-4
    assert "time / PyTorch" in capsys.readouterr().out


def test_loss_leaves_out_what_does_not_fit_and_says_so(tmp_path, capsys):
    args = (*SMALL_LOSS, "--devices=2", "--memory-only", "--dense-limit=1e-9")
    rows = run(loss, tmp_path, *args)
    assert [row["form"] for row in rows] == ["ours", "ours"]
    assert all(row["temporary_mebibytes"] > 0 for row in rows)
    assert "No dense form of N = 8 on 2" in capsys.readouterr().out


def test_a_form_that_computes_something_else_is_no_form():
    forms = {
        "ours": loss.Form(lambda: [1.0], fetch=list),
        "dense": loss.Form(lambda: [1.1], fetch=list),
    }
    with pytest.raises(ValueError, match="dense differs by"):
        loss.differences(forms, tolerance=1e-4)


def test_scaling_shows_state_split_over_devices_and_what_is_sent(tmp_path, capsys):
    with_cyclic, without = (
        run(
            scaling, tmp_path, *SMALL_STEP, "--devices=2", "--fsdp=2", "--list", f"--cyclic={terms}"
        )
        for terms in ("on", "off")
    )
    for (row,) in (with_cyclic, without):
        assert all(map(math.isfinite, numbers_of(row)))
        assert row["rows"] == 4
        assert row["collectives"]["all-gather"]["executions"] > 1
    sent = [row["collectives"]["all-reduce"]["mebibytes"] for (row,) in (with_cyclic, without)]
    assert (sent[0] - sent[1]) * 2**20 == pytest.approx(3 * 64**2 * 4)  # three D×D matrices
    assert "all-gather" in capsys.readouterr().out


def test_a_table_is_aligned_and_shows_what_is_missing():
    columns = {"name": ("name", ""), "share": ("share", ".2f")}
    expected = [
        "|   name | share |",
        "| -----: | ----: |",
        "| towers |  0.50 |",
        "|   loss |     – |",
    ]
    rows = [{"name": "towers", "share": 0.5}, {"name": "loss", "share": None}]
    assert report.table(rows, columns).splitlines() == expected


def test_checksums_are_measured_in_both_formats(monkeypatch, capsys):
    sizes = {"EXAMPLES": 8, "DIFFERENT": 2, "BATCH": 4, "BATCHES": 1, "ROUNDS": 2, "WINDOW": 8}
    for name, value in {**sizes, "IMAGE_SIZE": 8}.items():
        monkeypatch.setattr(checksums, name, value)
    checksums.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == [".tfrecord", ".parquet"]


def test_small_data_hold_out_parts_and_drawings_that_training_has_not_seen(monkeypatch, tmp_path):
    monkeypatch.setattr(small_data, "PHOTOGRAPHS", {"camera": "a cameraman"})
    monkeypatch.setattr(small_data, "MORE_PHOTOGRAPHS", {})
    examples = list(small_data.photographs())
    assert [split for split, _, _ in examples].count("val") == 9 and len(examples) == 81
    small_data.build(tmp_path, examples)
    assert [c.seed for c in small_data.runs(tmp_path, others=False).values()] == [0, 1, 2]
    configs = small_data.runs(tmp_path, others=True)
    assert {config.model.vocab_size for config in configs.values()} == {256}
    workdir = tmp_path / "run"
    workdir.mkdir()
    line = {"step": 150, "contrastive_loss": 1.0, "embedding_rank": 2.0, "collapsed": 1}
    recalls = ("mean_recall", "mean_recall_ci_low", "mean_recall_ci_high", "chance_mean_recall")
    line |= {f"val/{name}": 0.1 for name in recalls}
    (workdir / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    small_data.train_until(configs["cc3m, ViT-tiny"], workdir, 150)  # it is there already
    row = small_data.row_of("photographs", "a run", workdir)
    assert (row["recall"], row["alarm"]) == ("10.0% [10.0, 10.0]", 150)


def test_the_sigmoid_is_one_loss_in_all_forms_and_not_the_softmax():
    embeds = loss.draw_embeddings(16, 4, "float32")
    mesh = parallel.create_mesh(jax.devices()[:1])
    forms = {
        "ours": loss.compiled_form(loss.ours("sigmoid", mesh, 8), embeds, mesh),
        "dense": loss.compiled_form(loss.dense("sigmoid"), embeds, mesh),
        "PyTorch": loss.pytorch_form("sigmoid", embeds, "cpu"),
        "chunked": loss.pytorch_form("chunked", embeds, "cpu"),
    }
    softmax = loss.compiled_form(loss.ours("contrastive", mesh, 8), embeds, mesh)
    forms["softmax"] = dataclasses.replace(softmax, is_same=False)
    *same, other = loss.measure(forms, repeats=1, tolerance=1e-4)
    assert all(row["difference"] < 1e-4 for row in same)
    assert other["difference"] is None and same[0]["time_to_softmax"] > 0


def test_what_is_measured_is_written_before_the_rest_fails(tmp_path, monkeypatch):
    path = tmp_path / "rows.json"
    measure = loss.measure

    def run_out_of_memory(forms, **options):
        if path.exists():
            raise MemoryError
        return measure(forms, **options)

    monkeypatch.setattr(loss, "measure", run_out_of_memory)
    with pytest.raises(MemoryError):
        loss.main([*SMALL_LOSS, "--no-side-by-side", f"--json={path}"])
    rows = json.loads(path.read_text())["rows"]
    assert [row["form"] for row in rows] == ["ours", "dense"]


@pytest.mark.parametrize("arguments", [(), ("out", "--rehearsal"), ("--json=out",)])
def test_a_gpu_session_that_is_misspelt_says_how_to_start_one(arguments):
    command = ["bash", "benchmarks/gpu_session.sh", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "benchmarks/gpu_session.sh OUT [--rehearse]" in done.stdout


def test_parts_of_a_gpu_session_do_not_stop_one_another(tmp_path):
    """With a python that fails in one part, hangs in another, and else writes an empty file."""
    python = tmp_path / "python"
    python.write_text(
        "#!/usr/bin/env bash\n"
        "[[ $* == *RN-tiny* ]] && exit 3\n"
        "[[ $* == *out_of_time* ]] && exec sleep 60\n"
        'last="${@: -1}"; echo "{}" > "${last#--json=}"\n'
    )
    python.chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = ["bash", "benchmarks/gpu_session.sh", str(tmp_path / "out"), "--rehearse"]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
    lines = (tmp_path / "out/summary.txt").read_text().splitlines()
    said = dict(line.split(": ") for line in lines)
    assert said.pop("rn50_step").startswith("failed with status 3")
    assert said.pop("out_of_time").startswith("out of time after 2 s")
    assert all(text.startswith("done") for text in said.values())
    for name in said:
        assert (tmp_path / f"out/{name}.json").exists() and (tmp_path / f"out/{name}.log").exists()


def _gpu_objectives(tmp_path, python, *arguments):
    """Runs the script with a stand-in for python."""
    stand_in = tmp_path / "python"
    stand_in.write_text(f"#!/usr/bin/env bash\n{python}")
    stand_in.chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = ["bash", "benchmarks/gpu_objectives.sh", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("arguments", [(), ("out",), ("out", "nowhere"), ("--data",)])
def test_a_gpu_comparison_that_is_misspelt_says_how_to_start_one(tmp_path, arguments):
    said = _gpu_objectives(tmp_path, "exit 9", *arguments)
    assert said.returncode == 2 and "OUT DATA [SECONDS] [--rehearse]" in said.stdout


def test_a_gpu_comparison_that_runs_out_of_time_reports_on_what_is_done(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    (data / "train.csv").touch()
    sweep = (
        f'echo "$@" >> {tmp_path}/said\n'
        "[[ $* == *cyclip_jax.sweep* ]] || exit 0\n"
        'runs="${@: -1}"; runs="${runs#--workdir=}"; [[ -f $runs/data/train.csv ]] || exit 3\n'
        'mkdir -p "$runs/clip_seed0" "$runs/cyclip_seed0"; touch "$runs/cyclip_seed0/report.html"\n'
        "exec sleep 60\n"
    )
    out = tmp_path / "out"
    done = _gpu_objectives(tmp_path, sweep, out, data, 1)
    assert done.returncode == 0, done.stderr
    assert "finished: 1 runs" in done.stdout
    *_, report = (tmp_path / "said").read_text().splitlines()
    assert report == (
        f"-m cyclip_jax.report {out}/objectives/cyclip_seed0 --output={out}/report.html"
    )


def test_a_gpu_comparison_that_fails_says_so(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    (data / "train.csv").touch()
    assert _gpu_objectives(tmp_path, "exit 3", tmp_path / "out", data).returncode == 3
