import json
import platform
import re

import ml_collections
import pytest

from cyclip_jax import defaults
from cyclip_jax.errors import UserError
from cyclip_jax.evals.flat import by_evaluation
from cyclip_jax.evals.metric import About, Unit
from cyclip_jax.losses.terms import Reported
from cyclip_jax.models.presets import EXECUTION
from cyclip_jax.runtime.sections import resolve_paths
from cyclip_jax.training.objective import Objective
from cyclip_jax.workdir import console as console_module
from cyclip_jax.workdir.changes import history
from cyclip_jax.workdir.config_json import (
    check_same_model,
    is_workdir,
    read_config,
    write_config,
)
from cyclip_jax.workdir.console import Console
from cyclip_jax.workdir.metrics import MetricWriter, metrics_at, read_metrics, read_reports
from cyclip_jax.workdir.saved import newest_meta, read_meta
from cyclip_jax.workdir.table import final_table, headline_lines


def test_the_command_and_the_machine_stand_beside_the_config(tmp_path, monkeypatch):
    command = ["/usr/bin/python3", "-m", "cyclip_jax.main", "--config=configs/my run.py"]
    monkeypatch.setattr("sys.orig_argv", command)
    monkeypatch.setattr("sys.executable", "/opt/env/bin/python3")
    write_config(defaults.get_config(), tmp_path)
    told = json.loads((tmp_path / "config.json").read_text())
    assert told["command"] == "python3 -m cyclip_jax.main '--config=configs/my run.py'"
    assert told["machine"]["devices"] == 8 and told["machine"]["device_kind"] == "cpu"
    assert platform.node() not in json.dumps(told["machine"])


def test_paths_in_the_config_follow_the_workdir():
    config = defaults.get_config()
    config.data.train = "{workdir}/data/train.csv"
    config.data.validation = "{workdir}/val.csv"
    resolved = resolve_paths(config, "/runs/x")
    assert resolved.data.train == "/runs/x/data/train.csv"
    assert resolved.evals.val.pairs == "/runs/x/val.csv"
    assert config.data.train == "{workdir}/data/train.csv"


def test_a_run_may_go_on_with_its_model_computed_in_another_way(tmp_path):
    config = defaults.get_config()
    write_config(config, tmp_path)
    other = {
        "attention": "cudnn",
        "vision_remat": "full",
        "text_remat": "dots",
        "scan_blocks": True,
    }
    assert other.keys() == set(EXECUTION)
    config.model.update(other)
    check_same_model(config, tmp_path)
    config.model.quick_gelu = False
    with pytest.raises(
        UserError, match=r"another model: model.quick_gelu \(True there, False in your config"
    ):
        check_same_model(config, tmp_path)


@pytest.mark.parametrize(
    "model", [{"name": "RN-tiny"}, {"name": "RN-tiny", "vision_layers": 2, "patch_size": 16}]
)
def test_a_run_from_before_towers_had_names_goes_on(tmp_path, model):
    config = defaults.get_config()
    config.model.update(model)
    write_config(config, tmp_path)
    path = tmp_path / "config.json"
    written = json.loads(path.read_text())
    for name in ("vision_tower", "pool"):
        del written["config"]["model"][name]
    path.write_text(json.dumps(written))
    assert read_config(tmp_path).model.vision_tower is None
    check_same_model(config, tmp_path)
    own = ("vit", "class_token") if "patch_size" in model else ("resnet", "attention")
    config.model.vision_tower, config.model.pool = own  # the same, by their names
    check_same_model(config, tmp_path)
    if own[0] == "resnet":
        config.model.update({"vision_tower": "vit", "vision_layers": 2, "patch_size": 16})
        config.model.pool = None
        with pytest.raises(
            UserError, match=r"model.vision_tower \('resnet' there, 'vit' in your config\)"
        ):
            check_same_model(config, tmp_path)


def test_metrics_are_cut_back_to_the_restored_step(tmp_path):
    writer = MetricWriter(tmp_path, first_step=0, enabled=True)
    for step in range(1, 6):
        writer.write(step, {"loss": step / 10})
    writer.close()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 6, "lo')  # a kill in the middle of a line
    writer = MetricWriter(tmp_path, first_step=3, enabled=True)
    writer.write(4, {"loss": 9.0})
    writer.close()
    assert [(line["step"], line["loss"]) for line in read_metrics(tmp_path)] == [
        (1, 0.1),
        (2, 0.2),
        (3, 0.3),
        (4, 9.0),
    ]


def test_what_is_not_finite_is_null_and_the_file_stays_json(tmp_path):
    writer = MetricWriter(tmp_path, first_step=0, enabled=True)
    writer.write(1, {"loss": float("nan"), "grad_norm": float("inf"), "learning_rate": 0.5})
    writer.close()
    line = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(line) == {"step": 1, "loss": None, "grad_norm": None, "learning_rate": 0.5}
    assert metrics_at(tmp_path, 1) == {"step": 1, "learning_rate": 0.5}


def test_other_processes_write_nothing(tmp_path):
    writer = MetricWriter(tmp_path, first_step=0, enabled=False)
    writer.write(1, {"loss": 1.0})
    writer.close()
    console = Console(tmp_path, enabled=False)
    console.say("x")
    console.close()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("is_terminal", [True, False])
def test_progress_is_a_bar_on_a_terminal_and_lines_elsewhere(
    tmp_path, capsys, monkeypatch, is_terminal
):
    monkeypatch.setattr(console_module.sys.stderr, "isatty", lambda: is_terminal, raising=False)
    console = Console(tmp_path, enabled=True)
    console.start(0, 10)
    console.step()
    console.report(1, 10, {"loss": 1.5, "images_per_second": 200.0}, seconds_left=61.0)
    console.close()
    printed = capsys.readouterr()
    line = "step 1/10  loss 1.5000  200 images/s  1:01 left"
    assert (line in printed.out) != is_terminal
    assert ("1/10" in printed.err and "loss 1.5000, 200 images/s" in printed.err) == is_terminal
    assert line in (tmp_path / "train.log").read_text()


def test_final_table_has_a_column_for_each_evaluation_with_intervals_and_chance():
    table = final_table(
        {
            "step": 10,
            "loss": 1.25,
            "images_per_second": 300.4,
            "val/loss": 2.5,
            "val/image_to_text_recall@1": 0.375,
            "val/image_to_text_recall@1_ci_low": 0.32,
            "val/image_to_text_recall@1_ci_high": 0.4311,
            "val/chance_image_to_text_recall@1": 0.0028,
            "val/modality_gap": 0.5,
            "val/pairs": 360,
            "zs/top1": 0.5,
        }
    )
    rows = {line.split("  ")[0]: line.split() for line in table.splitlines()}
    assert table.splitlines()[0].split() == ["training", "val", "zs"]
    assert rows["loss"] == ["loss", "1.250", "2.500"]
    assert rows["image_to_text_recall@1"][1:] == ["37.5%", "[32.0,", "43.1]", "(0.28%)"]
    assert rows["top1"][1:] == ["50.0%"]
    assert rows["modality_gap"][1:] == ["0.5000"]
    assert rows["images/s"][1:] == ["300"]
    assert rows["pairs"][1:] == ["360"]
    assert table.splitlines()[-1] == "[ ] 95 % interval, ( ) what a random order gets"


def test_columns_of_the_final_table_that_find_no_room_follow_below():
    names = [f"evaluation_number_{number}" for number in range(9)]
    lines = final_table({f"{name}/top1": 0.5 for name in names}).splitlines()
    assert max(map(len, lines)) <= 120
    heads = [line.split() for line in lines[::2]]
    assert heads == [names[:5], names[5:]]


def test_headlines_leave_the_rest_to_the_report():
    metrics = {"loss": 1.0, "val/top1": 0.5, "val/top5": 0.7, "val/images": 9, "val/loss": 2.0}
    table = final_table(metrics, headlines_only=True)
    assert [line.split()[0] for line in table.splitlines()] == ["training", "loss", "top1"]


def test_what_metrics_say_of_themselves_counts_before_their_names():
    abouts = {"a": {"top1": About(Unit.COUNT, is_headline=False), "new": About(Unit.SHARE)}}
    numbers = {"a/top1": 3.0, "a/new": 0.5, "b/top1": 0.5}
    rows = {line.split()[0]: line.split()[1:] for line in final_table(numbers, abouts).splitlines()}
    assert rows["top1"] == ["3", "50.0%"]
    assert rows["new"] == ["50.0%"]
    shown = final_table(numbers, abouts, headlines_only=True).splitlines()
    assert [line.split() for line in shown[1:]] == [["new", "50.0%"], ["top1", "50.0%"]]


def test_the_rows_of_training_are_in_the_order_that_they_always_had():
    names = ["loss", "contrastive_loss", "inmodal_cyclic_loss", "crossmodal_cyclic_loss"]
    names += ["inmodal_consistency", "crossmodal_consistency"]
    others = ["temperature", "image_to_text_accuracy", "learning_rate"]
    numbers = dict.fromkeys([*others, *sorted(names)], 0.5)
    lines = final_table(numbers).splitlines()
    assert [line.split()[0] for line in lines] == ["training", *names]


NEW = {
    "new_loss": Reported(meaning="The new term"),
    "new_accuracy": Reported(meaning="Its hits", unit="share", better="more"),
    "new_angle": Reported(meaning="Its angle", unit="number", better=None),
}


def test_a_term_that_no_list_names_has_its_rows():
    numbers = {"loss": 2.0, "new_angle": 0.5, "new_accuracy": 0.5, "new_loss": 1.25, "a/top1": 0.5}
    rows = [line.split() for line in final_table(numbers, reports=NEW).splitlines()[1:]]
    assert rows == [
        ["loss", "2.000"],
        ["new_loss", "1.250"],
        ["new_angle", "0.5000"],
        ["top1", "50.0%"],
    ]


def test_what_the_terms_say_of_their_metrics_comes_back(tmp_path):
    writer = MetricWriter(tmp_path, first_step=0, enabled=True)
    writer.describe(NEW)
    writer.close()
    assert list(read_reports(tmp_path).items()) == list(NEW.items())


def test_an_older_workdir_has_the_metrics_that_every_run_measures(tmp_path):
    assert read_reports(tmp_path) == Objective().reports


@pytest.mark.parametrize(
    "text",
    [
        *("[]", '{"a": 1}', '{"a": {"unit": "loss"}}', "{", "[" * 10_000),
        '{"a": {"meaning": "x", "unit": "metre"}}',
        '{"a": {"meaning": "x", "better": 3}}',
    ],
)
def test_meanings_that_are_damaged_are_named(tmp_path, text):
    (tmp_path / "metrics.json").write_text(text)
    with pytest.raises(UserError, match=r"metrics\.json does not say what.*; remove it"):
        read_reports(tmp_path)


def test_every_evaluation_has_a_line_with_its_first_headlines():
    metrics = {"a/images": 9, "a/loss": 2.5, "a/r@1": 0.5, "a/r@5": 0.7, "a/gap": 0.25}
    metrics |= {"a/chance_r@1": 0.1, "a/rank": 3.5, "a/last": 1.5, "b/top1": 1.0, "loss": 1.0}
    assert headline_lines(by_evaluation(metrics)) == [
        "a: loss 2.500  r@1 50.0%  gap 0.2500  rank 3.500",
        "b: top1 100.0%",
    ]


@pytest.mark.parametrize("workdir", ["/runs/sweep/clip", "gs://bucket/sweep/clip"])
def test_a_path_beside_the_workdir_needs_no_directory_to_exist(workdir):
    config = ml_collections.ConfigDict({"a": "{workdir}/../data/x.csv", "b": ("{workdir}/y", 1)})
    resolved = resolve_paths(config, workdir)
    assert resolved.a == workdir.removesuffix("clip") + "data/x.csv"
    assert resolved.b == (f"{workdir}/y", 1)


def written_config(workdir, change):
    """A workdir whose config.json is as a run wrote it but for one change."""
    write_config(defaults.get_config(), workdir)
    written = json.loads((workdir / "config.json").read_text())
    change(written)
    (workdir / "config.json").write_text(json.dumps(written))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda w: w.update(config="x"), "config.json cannot be read"),
        (lambda w: w["config"].update(model=None), "config.json cannot be read"),
        (lambda w: w["config"].update(data="x"), "config.json cannot be read"),
        (lambda w: w["config"]["data"].update(decoder=3), "data.decoder is 3"),
        (lambda w: w["config"]["loss"].update(chunk_size={}), "loss.chunk_size is {}"),
        (lambda w: w["config"].update(batch_size=0.5), "batch_size is 0.5"),
        (lambda w: w["config"]["mesh"].update({"a.b": 1}), "does not accept dots"),
    ],
)
def test_a_config_json_that_is_none_is_refused(tmp_path, change, told):
    written_config(tmp_path, change)
    with pytest.raises(UserError, match=re.escape(told)):
        read_config(tmp_path)


def test_a_config_json_of_other_content_makes_no_workdir(tmp_path):
    for text in ("3", "null", '["config"]', "[" * 10_000):
        (tmp_path / "config.json").write_text(text)
        assert not is_workdir(tmp_path)


@pytest.mark.parametrize("changes", [3, [3], [{"step": 1}], [{"step": "x", "settings": {"a": 1}}]])
def test_a_history_that_is_damaged_is_named(tmp_path, changes):
    written_config(tmp_path, lambda written: written.update(changes=changes))
    with pytest.raises(
        UserError, match=r"'changes' of .*config\.json cannot be read .*; remove it"
    ):
        history(tmp_path, until=3)


@pytest.mark.parametrize("line", [b"[1]", b"3", b'{"loss": 1}', b'{"step": null}', b"[" * 10_000])
def test_a_line_of_metrics_that_is_none_is_named(tmp_path, line):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n' + line + b"\n")
    with pytest.raises(UserError, match=r"line 2 of .* is damaged .*; remove it"):
        read_metrics(tmp_path)


@pytest.mark.parametrize("text", ["", "3", '{"config": 3}', "[" * 10_000])
def test_a_checkpoints_meta_that_is_damaged_is_named(tmp_path, text):
    folder = tmp_path / "checkpoints" / "3" / "meta"
    folder.mkdir(parents=True)
    (folder / "metadata").write_text(text)
    with pytest.raises(UserError, match="metadata"):
        read_meta(tmp_path, 3)
    assert newest_meta(tmp_path) is None
