"""The commands that the manual's pages show, as tests run them."""

import re
import shlex

from tests import tiny
from tests.runs import ROOT, finish, start_process


def commands_of(page):
    """The commands in the fenced blocks of a page, one line each."""
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "docs" / page).read_text(), flags=re.DOTALL)
    return "".join(blocks).replace("\\\n", " ").splitlines()


def small_model():
    """Flags that give any run the model of tests/tiny.py."""
    model = tiny.get_config().model.to_dict()
    sizes = [name for name, size in model.items() if size is not None and name != "logit_bias"]
    return [f"--config.model.{name}={model[name]}" for name in sizes]


def run_command(environment, command, *flags, of_module="main"):
    """Runs a command to its end, one of `of_module` with further flags; returns what it printed.

    A sweep makes six runs, with an evaluation each, and has the time for them.
    """
    python, dash, module, *own = shlex.split(command)
    assert (python, dash) == ("python", "-m")
    name = module.removeprefix("cyclip_jax.")
    own += flags if name == of_module else ()
    return finish(start_process(environment, name, *own), seconds=1500 if name == "sweep" else 300)
