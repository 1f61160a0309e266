import itertools
import json

import pytest

from cyclip_jax.data.order import Position
from cyclip_jax.errors import UserError
from cyclip_jax.training.settings import checked
from cyclip_jax.workdir.changes import check_changes, check_names, history, recorded
from cyclip_jax.workdir.config_json import write_config
from cyclip_jax.workdir.saved import newest_meta
from tests import tiny

CLIP = {"loss.inmodal_weight": 0.0, "loss.crossmodal_weight": 0.0, "optimizer.learning_rate": 0.01}


def config_with(**overrides):
    config = tiny.get_config()
    config.data.train = "/there/train.csv"
    config.update_from_flattened_dict(overrides)
    return config


@pytest.fixture
def workdir(tmp_path):
    """A run of CLIP with its newest checkpoint at step 60."""
    for step in (30, 60):
        folder = tmp_path / "checkpoints" / str(step) / "meta"
        folder.mkdir(parents=True)
        meta = {"config": config_with(**CLIP).to_dict(), "position": {}}
        (folder / "metadata").write_text(json.dumps(meta))
    write_config(config_with(**CLIP), tmp_path)
    return tmp_path


def changed(workdir, allowed=(), **overrides):
    return check_changes(config_with(**overrides), workdir, *newest_meta(workdir), allowed)


def test_forgotten_flags_are_listed_and_refused(workdir):
    with pytest.raises(UserError) as raised:
        changed(workdir)
    message = str(raised.value)
    assert "loss.inmodal_weight (0.0 before, 0.25 now)" in message
    assert "optimizer.learning_rate (0.01 before, " in message
    names = "loss.crossmodal_weight,loss.inmodal_weight,optimizer.learning_rate"
    assert message.endswith(f"--allow_changes={names}")
    assert set(changed(workdir, names.split(","))) == set(CLIP)
    assert set(changed(workdir, ["config.loss", "optimizer"])) == set(CLIP)
    with pytest.raises(UserError, match=r"loss\.inmodal_weight"):
        changed(workdir, ["optimizer.learning_rate", "loss.crossmodal_weight"])


@pytest.mark.parametrize(
    "name, value",
    [
        ("seed", 7),
        ("batch_size", 16),
        ("micro_batches", 2),
        ("total_steps", 240),
        ("matmul_precision", "float32"),
        ("data.decoder", "fast"),
        ("data.augmentation", "none"),
        ("data.train", "/there/other.csv"),
        ("data.shuffle", False),
        ("loss.cyclic_normalization", "batch_size_free"),
        ("loss.cyclic_warmup_steps", 10),
        ("optimizer.beta2", 0.98),
        ("tokens.text_length", 5),
    ],
)
def test_what_changes_the_numbers_is_refused(workdir, name, value):
    with pytest.raises(UserError, match=rf"{name} .*--allow_changes={name}$"):
        changed(workdir, **CLIP | {name: value})


@pytest.mark.parametrize(
    "name, value",
    [
        ("data.train", "/elsewhere/train.csv"),
        ("data.validation", "/elsewhere/validation.csv"),
        ("data.max_bad_share", 0.5),
        ("log_every_steps", 1),
        ("eval_every_steps", 1),
        ("keep_checkpoints", 9),
        ("keep_best", "val/mean_recall"),
        ("wandb.project", "mine"),
        ("profile_steps", (1, 2)),
        ("mesh.fsdp", 2),
        ("model.vision_remat", "full"),
        ("model.attention", "xla"),
        ("loss.chunk_size", 8),
        ("evals.val.type", "geometry"),
    ],
)
def test_what_changes_no_number_is_free(workdir, name, value):
    assert changed(workdir, **CLIP | {name: value}) == {}


KINDS = ("none", "norm", "agc", "autoclip", "zclip", "adagc")


@pytest.mark.parametrize("before, now", itertools.permutations(KINDS, 2))
def test_a_kind_of_clipping_with_another_history_cannot_be_gone_on_with(workdir, before, now):
    """Not even where it is allowed to: the checkpoint lacks what it needs."""
    path = workdir / "checkpoints" / "60" / "meta" / "metadata"
    path.write_text(json.dumps({"config": config_with(**kind_of(before)).to_dict()}))
    with pytest.raises(UserError) as raised:
        changed(workdir, **kind_of(now))
    if {before, now} <= set(KINDS[:3]):
        assert str(raised.value).endswith("--allow_changes=optimizer.gradient_clip")
        assert set(changed(workdir, ["optimizer"], **kind_of(now))) == {"optimizer.gradient_clip"}
        return
    assert str(raised.value) == (
        f"the optimiser of {workdir} keeps what config.optimizer.gradient_clip {before!r} needs, "
        f"and {now!r} needs something else, so that this run cannot go on with it; set it as it "
        f"was, or begin another --workdir with --config.init_from={workdir}"
    )
    with pytest.raises(UserError, match="the optimiser of"):
        changed(workdir, ["optimizer.gradient_clip"], **kind_of(now))


def kind_of(kind):
    return {"optimizer.gradient_clip": kind, "optimizer.gradient_clip_norm": 1.0}


def test_a_history_of_another_length_cannot_be_gone_on_with(workdir):
    path = workdir / "checkpoints" / "60" / "meta" / "metadata"
    path.write_text(json.dumps({"config": config_with(**kind_of("autoclip")).to_dict()}))
    window = {"optimizer.autoclip.window": 9}
    with pytest.raises(UserError, match=r"config\.optimizer\.autoclip\.window 1000 needs, and 9 "):
        changed(workdir, ["optimizer"], **kind_of("autoclip"), **window)
    assert set(changed(workdir, ["optimizer"], **kind_of("autoclip"), **{"optimizer.eps": 1.0}))


def test_another_optimiser_cannot_be_gone_on_with(workdir):
    with pytest.raises(
        UserError, match=r"config\.optimizer\.name 'adamw' needs, and 'muon' needs "
    ):
        changed(workdir, ["optimizer"], **CLIP, **{"optimizer.name": "muon"})


def test_a_run_from_before_there_were_kinds_clips_as_it_did(workdir):
    path = workdir / "checkpoints" / "60" / "meta" / "metadata"
    before = config_with(**{"optimizer.gradient_clip_norm": 1.0}).to_dict()
    for key in ("name", "gradient_clip", "autoclip", "schedule", "cooldown_steps"):
        del before["optimizer"][key]
    path.write_text(json.dumps({"config": before}))
    assert changed(workdir, **{"optimizer.gradient_clip_norm": 1.0}) == {}


def test_micro_batches_are_free_where_no_statistics_are_of_a_batch(workdir):
    path = workdir / "checkpoints" / "60" / "meta" / "metadata"
    vit = CLIP | {"model.name": "ViT-tiny", "model.vision_layers": 1}
    path.write_text(json.dumps({"config": config_with(**vit).to_dict()}))
    assert changed(workdir, **vit | {"micro_batches": 2}) == {}


def test_a_change_is_recorded_once_and_then_is_no_change(workdir):
    changes = changed(workdir, ["loss", "optimizer"])
    write_config(config_with(), workdir, recorded(workdir, 60, changes))
    assert changed(workdir) == {}  # the same command, with the flag or without it
    assert recorded(workdir, 60, {}) == history(workdir)
    (entry,) = history(workdir)
    assert entry["step"] == 60 and entry["settings"]["loss.inmodal_weight"] == [0.0, 0.25]
    with pytest.raises(UserError, match=r"loss.inmodal_weight \(0.25 before, 0.0 now\)"):
        changed(workdir, **CLIP)
    assert recorded(workdir, 30, {}) == []  # from an older checkpoint it has not happened yet


def test_what_an_older_run_did_not_know_had_its_default(workdir):
    path = workdir / "checkpoints" / "60" / "meta" / "metadata"
    meta = json.loads(path.read_text())
    del meta["config"]["matmul_precision"], meta["config"]["data"]["decoder"]
    path.write_text(json.dumps(meta))
    assert changed(workdir, **CLIP) == {}
    with pytest.raises(UserError, match=r"data\.decoder"):
        changed(workdir, **CLIP | {"data.decoder": "fast"})


def test_a_path_that_an_older_run_recorded_as_it_was_given_is_the_same_from_anywhere(
    workdir, monkeypatch
):
    path = workdir / "checkpoints" / "60" / "meta" / "metadata"
    data = workdir / "data"
    data.mkdir()
    monkeypatch.chdir(data)
    for given, absolute in ((".", data), ("../data/", data), ("train.csv", data / "train.csv")):
        meta = {"config": config_with(**CLIP | {"data.train": given}).to_dict()}
        path.write_text(json.dumps(meta))
        assert changed(workdir, **CLIP | {"data.train": str(absolute)}) == {}
        with pytest.raises(UserError, match=r"data\.train"):
            changed(workdir, **CLIP | {"data.train": "/there/other"})


def test_a_name_that_is_no_setting_is_refused():
    check_names(["optimizer", "config.total_steps", "data.mixture.coco.weight"])
    with pytest.raises(UserError, match=r"--allow_changes=optimzer\.learning_rate: .* no such"):
        check_names(["optimzer.learning_rate"])


def test_a_damaged_or_missing_checkpoint_has_no_meta(tmp_path, workdir):
    assert newest_meta(tmp_path / "nothing") is None
    (workdir / "checkpoints" / "60" / "meta" / "metadata").write_text("{")
    assert newest_meta(workdir) is None


def test_a_length_in_epochs_follows_from_the_place_in_the_data():
    def length(batch_size, step=0, **place):
        settings = checked(config_with(total_steps=None, num_epochs=6, batch_size=batch_size))
        return settings.run_length(33, step, Position(**place, seed=0) if place else None)

    assert length(4) == 48
    for step in range(48):
        assert length(4, step, epoch=step // 8, examples=step % 8 * 4) == 48
    # After three of six epochs.
    assert length(8, 24, epoch=3, examples=0) == 24 + 3 * 4
    assert length(2, 24, epoch=2, examples=32) == 24 + 3 * 16
    assert length(8, 20, epoch=2, examples=16) == 20 + 2 + 3 * 4


def test_what_a_checkpoint_holds_numbers_of_cannot_change(workdir):
    names = ["optimizer", *CLIP]
    with pytest.raises(UserError) as raised:
        changed(workdir, names, **CLIP, **{"optimizer.freeze": ("visual/.*",)})
    message = str(raised.value)
    assert "optimizer.freeze ([] before, ['visual/.*'] now)" in message
    assert message.endswith("from its weights with --config.init_from=WORKDIR")
