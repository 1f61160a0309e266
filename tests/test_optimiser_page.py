"""Every command of the manual's page about the optimiser, on small models of the drawings."""

import pytest

from cyclip_jax.workdir.metrics import read_metrics
from tests.pages import commands_of, run_command, small_model


@pytest.mark.slow
def test_every_command_of_the_page_runs(tmp_path, environment):
    """In their order; the last but one goes on with the run before it."""
    small = [*small_model(), "--config.model.vocab_size=256", "--config.batch_size=8"]
    small += ["--config.log_every_steps=1", "--config.optimizer.warmup_steps=1"]
    small += ["--config.eval_every_steps=2"]
    commands = commands_of("optimiser.md")
    assert len(commands) == 7
    said = []
    for command in commands:
        is_prolonged = "cooldown_steps" in command
        lengths = ["--config.total_steps=4", "--config.optimizer.cooldown_steps=2"]
        flags = lengths if is_prolonged else ["--config.total_steps=2"]
        if "sweep" in command:
            command += " --only=*_seed0 --total_steps=1"
        command = command.replace("/tmp/", f"{tmp_path}/")
        said.append(run_command(environment, command, *small, *flags))
    assert [line["step"] for line in read_metrics(tmp_path / "constant")][-1] == 4
    assert len(list((tmp_path / "clipping").glob("*_seed0/report.html"))) == 6
    assert "best" in said[-1]
