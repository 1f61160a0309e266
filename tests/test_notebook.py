"""The notebook of the manual: it can be run, and what is saved with it is fit to be shown."""

import ast
import importlib
import json
import os
import re
import shlex
import shutil
import sys

import pytest
from absl import flags

from cyclip_jax.runtime import command
from tests.runs import ROOT

NOTEBOOK = ROOT / "docs" / "quickstart.ipynb"
CELLS = json.loads(NOTEBOOK.read_text())["cells"]
CODE = [cell for cell in CELLS if cell["cell_type"] == "code"]


def source(cell):
    return "".join(cell["source"])


def is_script(cell):
    return source(cell).startswith("%%bash\n")


def commands():
    """The command lines of the notebook, each on a line, without what they are piped to."""
    scripts = [source(cell).replace("\\\n", " ") for cell in CODE if is_script(cell)]
    lines = [line for script in scripts for line in script.splitlines() if "python -m" in line]
    return [shlex.split(line.partition(" 2>&1")[0]) for line in lines]


def test_every_cell_is_python_or_a_command():
    for cell in CODE:
        if not is_script(cell):
            ast.parse(source(cell))
            assert all(len(line) <= 101 for line in cell["source"])
    assert len(commands()) == 4


@pytest.mark.parametrize("words", commands(), ids=lambda words: words[2])
def test_every_command_has_the_flags_that_it_is_given(words, monkeypatch):
    monkeypatch.chdir(ROOT)
    python, dash, module, *arguments = words
    assert (python, dash) == ("python", "-m")
    values = flags.FlagValues()
    importlib.import_module(module).define_flags(values)
    positional = "DIR" if module.endswith("search") else None
    command.parse(values, [module, *arguments], positional=positional)


def test_what_is_saved_is_small_complete_and_of_no_machine():
    text = NOTEBOOK.read_text()
    assert len(text) < 600_000
    assert [cell["execution_count"] for cell in CODE] == list(range(1, len(CODE) + 1))
    outputs = json.dumps([cell["outputs"] for cell in CODE])
    assert "Traceback" not in outputs and '"error"' not in outputs
    assert not re.search(r"(?<![\w.])/(home|root|tmp|usr|opt|work)\b", text)
    assert "CC-BY-SA-4.0" in source(CELLS[-1]) and "CC-BY-4.0" in source(CELLS[-1])


@pytest.mark.slow
def test_the_notebook_runs(tmp_path, environment_with_torch, monkeypatch):
    """From the folder docs/, as Jupyter begins, with a run of few steps."""
    nbclient, nbformat = (importlib.import_module(name) for name in ("nbclient", "nbformat"))
    for name in ("configs", "docs"):
        shutil.copytree(ROOT / name, tmp_path / name)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (training,) = (cell for cell in notebook.cells if "cyclip_jax.main" in cell.source)
    short = "--config.total_steps=40 --config.optimizer.warmup_steps=5"
    training.source = training.source.replace(" 2>&1", f" {short} 2>&1")
    for name, value in environment_with_torch.items():
        monkeypatch.setenv(name, value)
    python = os.path.dirname(sys.executable)
    monkeypatch.setenv("PATH", os.pathsep.join([python, os.environ["PATH"]]))
    folder = {"metadata": {"path": str(tmp_path / "docs")}}
    nbclient.NotebookClient(notebook, timeout=600, resources=folder).execute()
    printed = "".join(output.get("text", "") for output in notebook.cells[-2].outputs)
    assert printed == "largest difference 0.0\n"
    assert (tmp_path / "runs" / "notebook_gallery.html").stat().st_size > 10_000
    assert (tmp_path / "runs" / "notebook_export" / "open_clip_config.json").exists()
