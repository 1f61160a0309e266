"""Fine-tuning as a user does it: run, continued, chosen, between before and after, exported."""

import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from cyclip_jax import defaults, evals, load
from cyclip_jax.classify import classify_pictures
from cyclip_jax.data.sources.subset import ClassPairs
from cyclip_jax.errors import UserError
from cyclip_jax.evals.data import labelled
from cyclip_jax.evals.data.labelled import open_labelled, part_of
from cyclip_jax.evals.zeroshot import Zeroshot
from cyclip_jax.evaluate import evaluate_checkpoint
from cyclip_jax.export import export_checkpoint
from cyclip_jax.finetune import _as_told, define_flags, finetune
from cyclip_jax.interop.files import read_weights, write_safetensors
from cyclip_jax.interop.pretrained import open_checkpoint
from cyclip_jax.report.write import write_report
from cyclip_jax.runtime import command
from cyclip_jax.train import train
from cyclip_jax.training.finetuning import (
    NORMS,
    FineTuning,
    candidates,
    fine_tuning_config,
)
from cyclip_jax.training.freezing import check_freeze, name_of, paths_of, trainable_by
from cyclip_jax.training.opened_model import open_model
from cyclip_jax.workdir.checkpoints import restore_model
from cyclip_jax.workdir.metrics import metrics_at
from tests.interop.models import SMALL, abstract
from tests.pages import commands_of, run_command
from tests.pictures import COLOURS, SHAPES, draw
from tests.pytorch import open_clip, torch

LAST = 6


def write_classes(folder, sizes=(40,), shapes=SHAPES):
    """A folder for each shape, with a drawing of it in each colour and size."""
    for shape in shapes:
        (folder / shape).mkdir(parents=True)
        for colour in COLOURS:
            for size in sizes:
                picture = Image.fromarray(draw(shape, colour, size))
                picture.save(folder / shape / f"{colour}_{size}.png")
    (folder / "classes.json").write_text('{"templates": ["a {}"]}')
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Pictures to train on, to test on, and another distribution of half of the classes."""
    folder = tmp_path_factory.mktemp("labelled")
    return (
        write_classes(folder / "train"),
        write_classes(folder / "test", sizes=(30,)),
        write_classes(folder / "small", sizes=(12,), shapes=SHAPES[:3]),
    )


@pytest.fixture(scope="module")
def wanted(finished, folders):
    train_on, test, small = map(str, folders)
    return FineTuning(
        model=str(finished[0]),
        train=train_on,
        tests={"test": test, "small": small},
        epochs=2,
        batch_size=8,
        settings={
            "optimizer.learning_rate": 1e-2,
            "checkpoint_every_steps": 3,
            # Statistics that stay need not be taken anew for every model between.
            "optimizer.freeze": ["text/.*", "logit_scale", NORMS],
        },
    )


@pytest.fixture(scope="module")
def run(wanted, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("fine_tuned") / "run"
    assert finetune(wanted, workdir)["class_loss"] > 0
    return workdir


def test_the_head_begins_as_the_classes_texts(wanted, folders, tmp_path):
    """The first step's accuracy is that of a model that was not fine-tuned."""
    pictures = wanted.open_pictures()
    assert pictures.templates == ["a {}"] and len(pictures.source) == 24
    config = fine_tuning_config(wanted, wanted.open_model(), pictures)
    with config.unlocked():
        config.batch_size, config.num_epochs, config.total_steps = 24, None, 1
        config.optimizer.warmup_steps = 0
        config.data.augmentation, config.data.shuffle = "none", False
        config.average.kind = "none"
        config.optimizer.freeze = ("visual/.*", "text/.*", "logit_scale")
        config.evals = {}
    metrics = train(config, tmp_path / "run")
    asked = {"all": {"type": "zeroshot", "folder": str(folders[0])}}
    encoders = open_model(wanted.model, batch_size=8).encoders
    results = evals.evaluate(evals.create_evaluators(asked), encoders, directory=None)
    assert metrics["class_accuracy"] == pytest.approx(results["all"]["top1"].value)


def test_a_run_goes_on_to_the_same_bits(run, wanted, tmp_path, capsys):
    again = tmp_path / "again"
    shutil.copytree(run, again)
    shutil.rmtree(again / "checkpoints" / str(LAST))
    for name in ("wise_ft.json", "report.html"):
        (again / name).unlink()
    finetune(wanted, again)
    assert "continuing from step 3" in capsys.readouterr().out
    for item in ("model", "average"):
        first, second = (restore_model(path, None, item=item)[1] for path in (run, again))
        jax.tree.map(np.testing.assert_array_equal, first, second)
    assert metrics_at(again, LAST)["class_loss"] == metrics_at(run, LAST)["class_loss"]
    assert json.loads((again / "wise_ft.json").read_text()) == json.loads(
        (run / "wise_ft.json").read_text()
    )


def test_other_classes_than_before_are_refused(run, wanted, tmp_path):
    again = tmp_path / "again"
    shutil.copytree(run, again)
    (again / "wise_ft.json").unlink()
    (again / "classes.json").write_text('{"classes": ["disc", "square"]}')
    with pytest.raises(UserError, match="has other classes than those that"):
        finetune(wanted, again)


def test_the_models_between_begin_with_zero_shot_and_end_with_the_run(run, wanted, folders):
    told = json.loads((run / "wise_ft.json").read_text())
    path = {row["alpha"]: row["top1"] for row in told["path"]}
    assert list(path) == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
    assert told["weights"] == "average" and not told["is_chosen"]
    measured = metrics_at(run, LAST)
    asked = {name: {"type": "zeroshot", "folder": place} for name, place in wanted.tests.items()}
    encoders = open_model(wanted.model, batch_size=8).encoders
    before = evals.evaluate(evals.create_evaluators(asked), encoders, directory=None)
    for name in wanted.tests:
        assert path[0.0][name][0] == pytest.approx(before[name]["top1"].value)
        assert path[1.0][name][0] == pytest.approx(measured[f"{name}_of_average/top1"])
    page = write_report([run]).read_text()
    assert "Before and after fine-tuning" in page and "(1 − α)·before + α·after" in page
    assert "<h1>fine-tuned</h1>" in page and "fine-tuned to 6 classes" in page


def test_the_text_tower_and_the_scale_stay(run, wanted):
    before, after = (open_checkpoint(path).weights for path in (wanted.model, run))
    same = {name for name in before if np.array_equal(before[name], after[name])}
    assert {name for name in before if not name.startswith("visual.")} <= same
    assert "visual.conv1.weight" not in same


def test_exports_have_the_head_beside_them_as_a_linear_layer(run, folders, tmp_path):
    """What classifies by the export classifies as the run does."""
    export_checkpoint(run, export_format="open_clip", output=tmp_path / "export")
    weights = read_weights(tmp_path / "export" / "open_clip_model.safetensors")
    assert not [name for name in weights if "head" in name]
    ours = [
        classify_pictures(place, [str(folders[1])], None, top=len(SHAPES))
        for place in (run, tmp_path / "export")
    ]
    assert [one.labels for one in ours[0]] == [one.labels for one in ours[1]]
    head = read_weights(tmp_path / "export" / "class_head.safetensors")
    images = open_labelled(str(folders[1]), config_key="config.evals.test.folder")
    embeds, _ = open_model(tmp_path / "export", batch_size=8).encoders.image_embeds(images)
    logits = embeds @ head["weight"].T + head["bias"]
    names = json.loads((tmp_path / "export" / "classes.json").read_text())["classes"]
    assert [names[best] for best in logits.argmax(axis=1)] == [one.labels[0] for one in ours[0]]
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    scores = [one.scores[0] for one in ours[0]]
    np.testing.assert_allclose(shares.max(axis=1), scores, rtol=0, atol=1e-5)
    # A run that begins with the fine-tuned model leaves the head.
    opened = open_checkpoint(tmp_path / "export")
    assert opened.classes == names == sorted(SHAPES)
    (tmp_path / "export" / "classes.json").write_text('{"classes": ["a", "b"]}')
    with pytest.raises(UserError, match="is no head of 16 numbers for the classes"):
        open_checkpoint(tmp_path / "export")


def test_a_fine_tuned_model_is_evaluated_by_its_head_and_by_texts(run, folders, tmp_path):
    config = defaults.get_config()
    config.batch_size = 8
    config.evals = {
        "by_head": defaults.zeroshot(str(folders[1]), head=True),
        "by_texts": defaults.zeroshot(str(folders[1])),
        "shift": defaults.robustness(
            {"folder": str(folders[1])}, {"small": {"folder": str(folders[2])}}, head=True
        ),
    }
    results = evaluate_checkpoint(run, config=config, output=tmp_path)
    assert results["by_head/top1"] == pytest.approx(metrics_at(run, LAST)["test/top1"])
    assert results["shift/reference_top1"] == results["by_head/top1"]
    assert 0 <= results["by_texts/top1"] <= 1
    with pytest.raises(UserError, match="has no head of classes"):
        classify_pictures(open_checkpoint(run).config.init_from, [str(folders[1])], None)


def test_held_out_pictures_and_the_others_are_all_pictures_once(folders):
    images = open_labelled(str(folders[0]), config_key="config.classes.train")
    parts = [
        part_of(images, 0.3, is_held_out=is_held, config_key="config.classes.train")
        for is_held in (True, False)
    ]
    held, others = ([*part.source.keys(range(len(part.source)))] for part in parts)
    assert len(held) == len(SHAPES)  # one of four in each class
    assert sorted(held + others) == sorted(images.source.keys(range(24)))
    for part in parts:
        folders_of = [key.split("/")[0] for key in part.source.keys(range(len(part.source)))]
        assert [part.classes[label] for label in part.labels] == folders_of
        assert part.source.captions() == folders_of
        assert part.identity != images.identity


@pytest.mark.parametrize("share, split", [(0.0, "test"), (0.2, "train")])
def test_what_is_held_out_is_of_the_training_split(monkeypatch, share, split):
    """Of a data set with splits: to choose by the test split would be to choose by the test set."""
    opened = []

    def stop(place, split, *others):
        opened.append(split)
        raise UserError("opened")

    monkeypatch.setattr(labelled, "_open", stop)
    with pytest.raises(UserError, match="opened"):
        Zeroshot("held_out", folder="preset:cifar10", held_out_share=share).open()
    asked = FineTuning(model="", train="preset:cifar10", tests={})
    with pytest.raises(UserError, match="opened"):
        asked.open_pictures()
    assert opened == [split, "train"]


def test_a_pair_says_of_a_picture_what_its_class_is_called(folders):
    images = open_labelled(str(folders[0]), config_key="config.classes.train")
    prompts = [[f"a {name}", f"the {name}"] for name in images.classes]
    pairs = ClassPairs(images.source, images.labels, prompts)
    record = pairs.read(9)
    assert record.captions == prompts[images.labels[9]] and record.weights == [1.0, 1.0]
    assert record.image == images.source.read(9).image
    assert pairs.captions()[9] == prompts[images.labels[9]][0]


@pytest.mark.parametrize("tower", sorted(SMALL))
def test_the_norms_of_every_tower_have_one_pattern(tower):
    params = abstract(SMALL[tower])["params"]
    check_freeze((NORMS,), params)
    frozen = {name_of(path) for path in paths_of(params) if not trainable_by((NORMS,))(path)}
    norms = {name_of(path) for path in paths_of(params["visual"]) if path[-1] == "scale"}
    assert {f"visual/{name}" for name in norms if "head" not in name} <= frozen
    assert all(
        (name.endswith(("/scale", "/bias")) and "ln" in name) or "bn" in name for name in frozen
    )


def test_all_combinations_of_choices_are_candidates():
    choices = ["optimizer.learning_rate=1e-5,1e-4", "classes.margin=0.1"]
    assert candidates(choices) == [
        {"optimizer.learning_rate": 1e-5, "classes.margin": 0.1},
        {"optimizer.learning_rate": 1e-4, "classes.margin": 0.1},
    ]


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--set=optimizer.learning_rat=1"], "did you mean optimizer.learning_rate"),
        (["--set=optimizer.learning_rate"], "must be NAME=VALUE"),
        (["--set=optimizer.learning_rate=fast"], "learning_rate"),
        (["--choose=seed=1,2", "--held_out=1"], "must be between 0 and 1"),
        (["--batch_size=100"], "config.batch_size"),
        (["--test={small}", "--test={small}/none", "--choose=seed=1,2"], "small/none"),
        (["--classes={small}/nothing.json"], "nothing.json"),
    ],
)
def test_mistakes_are_told_before_anything_is_trained(
    wanted, folders, tmp_path, capsys, flags, message
):
    flags = [flag.format(small=folders[2]) for flag in flags]
    arguments = [wanted.model, wanted.train, f"--workdir={tmp_path / 'run'}", *flags]
    with pytest.raises(SystemExit) as ended:
        command.run(
            lambda values, *paths: _as_told(values, paths),
            define_flags,
            doc="",
            arguments=arguments,
            positional="MODEL PICTURES",
        )
    assert message in str(ended.value.code)
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.slow
def test_every_command_of_the_page_runs(finished, environment_with_torch, tmp_path):
    """On drawings of shapes, in the order of the page."""
    for split, size in (("train", 40), ("test", 30), ("sketches", 20)):
        write_classes(tmp_path / "flowers" / split, sizes=(size,))
    (tmp_path / "photos").mkdir()
    Image.fromarray(draw(SHAPES[0], "red")).save(tmp_path / "photos" / "one.png")
    shutil.copytree(finished[0], tmp_path / "models" / "vit")
    commands = commands_of("fine_tuning.md")
    assert len(commands) == 6
    for line in commands:
        for place in ("models/", "flowers/", "runs/", "exports/", "photos", "labels.csv"):
            line = line.replace(f" {place}", f" {tmp_path}/{place}")
            line = line.replace(f"={place}", f"={tmp_path}/{place}")
        small = ("--epochs=1", "--batch_size=8")
        run_command(environment_with_torch, line, *small, of_module="finetune")
    choice = json.loads((tmp_path / "runs/chosen/choice.json").read_text())
    assert len(choice["candidates"]) == 3
    assert choice["settings"] in [one["settings"] for one in choice["candidates"]]
    best = max(one["top1"] for one in choice["candidates"])
    assert {"settings": choice["settings"], "top1": best} in choice["candidates"]
    told = json.loads((tmp_path / "runs/chosen/wise_ft.json").read_text())
    assert told["is_chosen"] and told["alpha"] == choice["alpha"]
    assert "one.png" in (tmp_path / "labels.csv").read_text()


@pytest.mark.slow
def test_a_model_of_open_clip_is_fine_tuned_and_goes_back(
    folders, environment_with_torch, tmp_path
):
    """Import, lock, train, export, open: a ViT-B/32 of random weights, at its own size."""
    model = open_clip.create_model("ViT-B-32-quickgelu")
    state = {name: array.float().numpy() for name, array in model.state_dict().items()}
    write_safetensors(tmp_path / "before.safetensors", state)
    command = (
        f"python -m cyclip_jax.finetune {tmp_path / 'before.safetensors'} {folders[0]} "
        f"--workdir={tmp_path / 'run'} --epochs=1 --batch_size=8 "
        "--set=average.kind=none --set=optimizer.learning_rate=1e-4"
    )
    run_command(environment_with_torch, command)
    export_checkpoint(tmp_path / "run", export_format="open_clip", output=tmp_path / "export")
    after, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{tmp_path / 'export'}")
    changed = {n for n, array in after.state_dict().items() if not np.array_equal(array, state[n])}
    assert changed and all(name.startswith("visual.") for name in changed)
    ours, own_preprocess, tokenize = load(tmp_path / "run")
    picture = folders[1] / SHAPES[0] / "red_30.png"
    with torch.no_grad(), Image.open(picture) as opened:
        pixels = preprocess(opened)[None]
        theirs = after.encode_image(pixels, normalize=True).numpy()
    embeds, _, _ = ours(pixels.numpy().transpose(0, 2, 3, 1), tokenize(["a disc"]))
    np.testing.assert_allclose(embeds, theirs, rtol=0, atol=2e-6)
    # Of the file itself, whose 30 pixels become 224, both make nearly the same picture.
    embeds, _, _ = ours(own_preprocess(str(picture)), tokenize(["a disc"]))
    np.testing.assert_allclose(embeds, theirs, rtol=0, atol=1e-3)
