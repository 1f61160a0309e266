"""The commands of the manual for choosing examples, and for training on small images."""

import csv
import io
import tarfile

import pytest

from tests.pages import commands_of, run_command, small_model
from tests.pictures import write_pairs

SHORT = ["--config.num_epochs=None", "--config.batch_size=8", "--config.optimizer.warmup_steps=1"]
SHORT += ["--config.data.tokenizer=sentencepiece"]


@pytest.mark.slow
def test_every_command_of_the_page_runs(tmp_path, environment):
    """In their order; the model that scores is the one that was trained on balanced captions."""
    pairs = write_pairs(tmp_path / "pairs")
    (tmp_path / "pool").mkdir()
    with open(pairs, newline="") as file, tarfile.open(tmp_path / "pool" / "0.tar", "w") as archive:
        for number, row in enumerate(csv.DictReader(file)):
            picture = (pairs.parent / row["image"]).read_bytes()
            members = {"png": picture, "txt": f"{row['caption']} {number}".encode()}
            for ending, content in members.items():
                member = tarfile.TarInfo(f"{number:03d}.{ending}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    small = [*small_model(), *SHORT, "--config.total_steps=2"]
    commands = commands_of("choosing_examples.md")
    assert len(commands) == 4
    for command in commands:
        command = command.replace("/data/", f"{tmp_path}/").replace("runs/cc3m", "runs/balanced")
        command = command.replace("runs/", f"{tmp_path}/runs/")
        if "benchmarks" in command:
            command = command.replace("docs/", f"{tmp_path}/") + " --captions=3000 --limit=20"
        run_command(environment, command, *small)
    assert (tmp_path / "balance.png").stat().st_size > 10_000
    assert (tmp_path / "runs" / "balanced" / "checkpoints" / "2").is_dir()
    with open(tmp_path / "scored" / "scores.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert sum(row["kept"] == "1" for row in rows) == round(0.4 * len(rows)) == 10


@pytest.mark.slow
def test_the_recipe_of_small_images_runs(tmp_path, environment):
    pairs = write_pairs(tmp_path / "pairs")
    commands = [one for one in commands_of("large_batches.md") if "clipa" in one]
    (command,) = [one for one in commands if "cyclip_jax.main" in one]
    command = command.replace("/data/cc12m/*.tfrecord", str(pairs))
    command = command.replace("runs/", f"{tmp_path}/runs/")
    sizes = {"name": "ViT-tiny", "dtype": "float32", "vocab_size": 64, "context_length": 8}
    tokens = {"image_size": 16, "text_length": 5, "full_steps": 2, "full_warmup_steps": 1}
    small = [f"--config.model.{name}={size}" for name, size in sizes.items()]
    small += [f"--config.tokens.{name}={number}" for name, number in tokens.items()]
    run_command(environment, command, *small, *SHORT, "--config.total_steps=4")
    assert (tmp_path / "runs" / "clipa" / "checkpoints" / "4").is_dir()
