"""The package as others install it: what is in it, and what it does not take the place of."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from cyclip_jax.data.tokenizers import create_tokenizer, train_sentencepiece
from cyclip_jax.interop.formats import write_open_clip
from tests.interop.models import VIT
from tests.interop.test_formats import CAPTIONS, checkpoint
from tests.runs import ROOT
from tests.runtime.test_command import COMMANDS


def finish(command):
    """Runs a command that must succeed."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with the package installed from a wheel, beside a package `configs` of others."""
    source, site = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    for name in ("setup.py", "README.md"):
        shutil.copy(ROOT / name, source)
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("cyclip_jax", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    pip = [sys.executable, "-m", "pip"]
    offline = ["--no-deps", "--no-index", "--quiet"]
    wheels = ["wheel", "--no-build-isolation", *offline, "--wheel-dir", source / "dist", source]
    finish([*pip, *wheels])
    (wheel,) = (source / "dist").iterdir()
    finish([*pip, "install", *offline, "--target", site, wheel])
    (site / "configs").mkdir()
    (site / "configs" / "__init__.py").write_text("THEIRS = True\n")
    return site


def run(site, folder, *arguments, environment=None):
    """A finished `python …`, in a folder, with the installed package first."""
    return subprocess.run(
        [sys.executable, "-P", *map(str, arguments)],
        cwd=folder,
        env=(environment or os.environ) | {"PYTHONPATH": str(site), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )


def test_a_wheel_holds_the_package_and_all_that_it_reads_and_no_configs(site):
    folders = {path.name for path in site.iterdir() if path.suffix != ".dist-info"}
    assert folders - {"__pycache__"} == {"cyclip_jax", "configs"}
    assert [path.name for path in (site / "configs").glob("*.py")] == ["__init__.py"]
    files = {str(path.relative_to(ROOT)) for path in (ROOT / "cyclip_jax").rglob("*.py")}
    files |= {f"cyclip_jax/page/page.{ending}" for ending in ("html", "css", "js")}
    for file in (*files, "cyclip_jax/py.typed"):
        assert (site / file).is_file(), file


# Of each command the help that it shows; then a model, and where all of the package came from.
EXPLAIN_AND_LOAD = """
import contextlib, io, json, runpy, sys

shown = {}
*commands, folder = sys.argv[1:]
for name in commands:
    sys.argv = [name, "--help"]
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        try:
            runpy.run_module(f"cyclip_jax.{name}", run_name="__main__")
        except SystemExit as end:
            shown[name] = [end.code, output.getvalue()]
import cyclip_jax

import numpy as np

model, preprocess, _ = cyclip_jax.load(folder)
pictures = preprocess([np.full((40, 50, 3), 128, np.uint8)])
shapes = pictures.shape, model.visual.conv1.kernel.shape
files = {m.__file__ for n, m in sys.modules.items() if n.split(".")[0] == "cyclip_jax"}
print(json.dumps([shown, shapes, sorted(files)]))
"""


def test_from_any_folder_every_command_explains_itself_and_an_export_is_loaded(site, tmp_path):
    vocabulary = str(tmp_path / "tokenizer.model")
    train_sentencepiece(CAPTIONS, vocab_size=VIT["vocab_size"], output=vocabulary)
    sizes = {name: VIT[name] for name in ("vocab_size", "context_length")}
    tokenizer = create_tokenizer("sentencepiece", **sizes, vocabulary=vocabulary)
    write_open_clip(tmp_path / "export", checkpoint(VIT, tokenizer), tokenizer, "float32")
    done = run(site, tmp_path, "-c", EXPLAIN_AND_LOAD, *COMMANDS, tmp_path / "export")
    assert done.returncode == 0, done.stderr
    shown, shapes, files = json.loads(done.stdout.splitlines()[-1])
    assert shown.keys() == COMMANDS.keys()
    for name, flag in COMMANDS.items():
        status, text = shown[name]
        assert status == 0 and flag in text and f"python -m cyclip_jax.{name}" in text, name
    side, patch, width = VIT["image_size"], VIT["patch_size"], VIT["vision_width"]
    assert shapes == [[1, side, side, 3], [patch, patch, 3, width]]
    # Not of an editable installation, which would lend what the wheel lacks.
    assert all(file.startswith(str(site)) for file in files)


def test_beside_a_package_configs_of_others_training_begins(site, tmp_path):
    (tmp_path / "mine.py").write_text(
        "from configs import THEIRS, common\n\n\n"
        "def get_config():\n"
        "    config = common.get_config()\n"
        "    config.total_steps = 20_000 if THEIRS else None\n"
        "    return config\n"
    )
    shown = run(site, tmp_path, "-m", "cyclip_jax.main", "--help")
    assert shown.returncode == 0 and "--config.data.train" in shown.stdout
    said = run(site, tmp_path, "-m", "cyclip_jax.main", "--config=mine.py")
    *_, last = said.stderr.strip().splitlines()
    assert (said.returncode, last[:35]) == (1, "error: config.data.train is empty; ")


def test_beside_a_package_configs_of_others_a_run_is_loaded_and_exported(site, finished, tmp_path):
    code = (
        "import json, sys, cyclip_jax\n"
        f"model, preprocess, tokenize = cyclip_jax.load({str(finished[0])!r})\n"
        "import configs\n"
        "print(json.dumps([cyclip_jax.__file__, configs.THEIRS, tokenize('a disc').shape]))\n"
    )
    loaded = run(site, tmp_path, "-c", code)
    assert loaded.returncode == 0, loaded.stderr
    file, theirs, shape = json.loads(loaded.stdout)
    assert file.startswith(str(site)) and theirs and shape == [1, 8]
    arguments = [f"--checkpoint={finished[0]}", "--format=open_clip", "--output=exported"]
    exported = run(site, tmp_path, "-m", "cyclip_jax.export", *arguments)
    assert exported.returncode == 0, exported.stderr
    assert (tmp_path / "exported" / "open_clip_model.safetensors").is_file()


ORDERS = ("sorted(names)", "sorted(names, reverse=True)", "sorted(names, key=lambda n: n[::-1])")
# What is imported only where data are opened, a checkpoint is, or a page is drawn.
LATE = (
    "cyclip_jax.data.augment",
    "cyclip_jax.data.decoding",
    "cyclip_jax.data.images",
    "cyclip_jax.data.loading",
    "cyclip_jax.data.pipeline",
    "cyclip_jax.workdir.checkpoints",
)


@pytest.mark.parametrize("order", ORDERS)
def test_imports_in_any_order_leave_signals_alone_and_bring_no_tensorflow_nor_orbax(order):
    code = (
        "import importlib, pkgutil, signal, sys\n"
        "import cyclip_jax\n"
        "names = [m.name for m in pkgutil.walk_packages(cyclip_jax.__path__, 'cyclip_jax.')]\n"
        f"names = [name for name in names if name not in {LATE!r}]\n"
        "names = [name for name in names if not name.endswith('__main__')]\n"
        "assert len(names) > 80 and not {'tensorflow', 'orbax'} & set(sys.modules)\n"
        "handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}\n"
        f"for name in {order}:\n"
        "    importlib.import_module(name)\n"
        "    assert not {'tensorflow', 'orbax'} & set(sys.modules), name\n"
        "assert handlers == {n: signal.getsignal(n) for n in signal.valid_signals()}\n"
    )
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
