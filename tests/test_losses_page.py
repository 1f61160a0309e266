"""Every command of the manual's page about further losses, on small models and small pairs."""

import csv
import re

import pytest

from tests.pages import commands_of, run_command, small_model
from tests.pictures import write_pairs

COMMANDS = commands_of("losses.md")
COLUMNS = ("chatgpt", "bard", "mscoco", "human", "paraphrase", "negative_caption")


@pytest.mark.slow
def test_every_command_of_the_page_runs(tmp_path, environment):
    """In their order. The first model with all pairs is what the last starts from."""
    pairs = write_pairs(tmp_path)
    with open(pairs, newline="") as file:
        rows = list(csv.DictReader(file))
    with open(pairs, "w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], *COLUMNS, "negative_image"])
        writer.writeheader()
        for row, next_row in zip(rows, [*rows[1:], rows[0]], strict=True):
            texts = {name: f"{name} {row['caption']}" for name in COLUMNS}
            writer.writerow(row | texts | {"negative_image": next_row["image"]})
    sentences = tmp_path / "paraphrases.csv"
    lines = [f"{row['caption']},the {row['caption']} there" for row in rows] * 6
    sentences.write_text("sent0,sent1\n" + "\n".join(lines) + "\n")
    small = small_model()
    small += ["--config.total_steps=2", "--config.num_epochs=None"]
    small += ["--config.optimizer.warmup_steps=1", "--config.batch_size=8"]
    small += ["--config.data.tokenizer=sentencepiece", "--config.data.max_bad_share=0.1"]
    assert len(COMMANDS) == 7
    for command in COMMANDS:
        command = command.replace("/data/paraphrases.csv", str(sentences))
        command = re.sub(r"/data/cc3m/\w+\.csv", str(pairs), command)
        command = command.replace("runs/cc3m", str(tmp_path / "runs" / "laclip"))
        command = command.replace("--workdir=runs/", f"--workdir={tmp_path}/runs/")
        if "sweep" in command:
            command = f"{command} --only=*_seed0 --total_steps=1"
            command = command.replace("/tmp/", f"{tmp_path}/")
        run_command(environment, command, *small)
    names = ("siglip", "negclip", "tripletclip", "laclip", "paraclip", "long_captions")
    for name in names:
        assert (tmp_path / "runs" / name / "checkpoints" / "2").is_dir()
