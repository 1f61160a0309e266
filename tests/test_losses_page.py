"""Every command of the manual's page about further losses, on small models and small pairs."""

import csv
import re
import shlex

import pytest

from tests import tiny
from tests.pictures import write_pairs
from tests.runs import ROOT, finish, start_process

PAGE = (ROOT / "docs" / "losses.md").read_text()
COMMANDS = [
    block.replace("\\\n", " ").strip()
    for block in re.findall(r"```bash\n(.*?)```", PAGE, flags=re.DOTALL)
]
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
    model = tiny.get_config().model.to_dict()
    small = [f"--config.model.{name}={value}" for name, value in model.items() if value is not None]
    small = [flag for flag in small if "logit_bias" not in flag]
    small += ["--config.total_steps=2", "--config.num_epochs=None"]
    small += ["--config.optimizer.warmup_steps=1", "--config.batch_size=8"]
    small += ["--config.data.tokenizer=sentencepiece", "--config.data.max_bad_share=0.1"]
    assert len(COMMANDS) == 5
    for command in COMMANDS:
        command = command.replace("/data/paraphrases.csv", str(sentences))
        command = re.sub(r"/data/cc3m/\w+\.csv", str(pairs), command)
        command = command.replace("runs/cc3m", str(tmp_path / "runs" / "laclip"))
        command = command.replace("--workdir=runs/", f"--workdir={tmp_path}/runs/")
        python, dash, module, *flags = shlex.split(command)
        assert (python, dash) == ("python", "-m")
        finish(start_process(environment, module.removeprefix("cyclip_jax."), *flags, *small))
    for name in ("siglip", "negclip", "tripletclip", "laclip", "paraclip"):
        assert (tmp_path / "runs" / name / "checkpoints" / "2").is_dir()
