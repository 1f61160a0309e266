"""What messages tell a person to do can be done: flags, settings, commands and packages exist."""

import ast
import bz2
import functools
import gzip
import importlib
import io
import lzma
import re
import runpy
import shutil
import subprocess
import tarfile

import numpy as np
import pytest
import setuptools
import tensorflow as tf
from absl import flags

from cyclip_jax import defaults
from cyclip_jax.data import tokenizers
from cyclip_jax.data.record import Unreadable
from cyclip_jax.data.sources import create_source
from cyclip_jax.errors import UserError
from cyclip_jax.runtime import command
from tests.runs import ROOT
from tests.runtime.test_command import COMMANDS

OPEN = "{…}"  # what a message fills in
# Flags of other programs: of tar, pip, git, CLIP_benchmark and hf.
OTHERS = {
    "sort",
    "no-deps",
    "no-optional-locks",
    "always",
    "dirty",
    "abbrev",
    "model",
    "no_amp",
    "help",
    "helpfull",
    "helpshort",
    "local-dir",
}


@functools.cache
def texts():
    """(where, text) of every string of the package that is no docstring."""
    found = []
    for path in sorted((ROOT / "cyclip_jax").rglob("*.py")):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        inner = {
            id(part) for node in nodes if isinstance(node, ast.JoinedStr) for part in node.values
        }
        inner |= {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
        for node in nodes:
            if isinstance(node, ast.Constant | ast.JoinedStr) and id(node) not in inner:
                parts = node.values if isinstance(node, ast.JoinedStr) else [node]
                text = [str(p.value) if isinstance(p, ast.Constant) else OPEN for p in parts]
                found.append((f"{path.relative_to(ROOT)}:{node.lineno}", "".join(text)))
    return found


def named(pattern, at_least):
    """(where, groups) of what messages name."""
    found = [(where, *m.groups()) for where, text in texts() for m in re.finditer(pattern, text)]
    assert len(found) >= at_least
    return found


def test_every_setting_that_a_message_names_exists():
    for where, key in named(r"(?<![\w/])config\.(?!json)([a-z_]+[\w.]*)", 100):
        section = defaults.get_config()
        for part in key.rstrip(".").split("."):
            if section is None or not hasattr(section, "to_dict") or key.startswith("evals."):
                break
            if part == key.rpartition(".")[2].rstrip("_") and key.endswith("_"):
                break  # the message fills in the rest
            assert part in section, (where, key)
            section = None if part == "mixture" else section.get(part)


def flags_of(name):
    values = flags.FlagValues()
    module = "report.__main__" if name == "report" else name
    importlib.import_module(f"cyclip_jax.{module}").define_flags(values)
    return values


def test_every_flag_that_a_message_names_exists():
    costs = re.findall(r'"--([\w-]+)"', (ROOT / "launch" / "aot_check.py").read_text())
    commands = (*COMMANDS, "data.balance", "data.score")
    known = {"config", *OTHERS, *costs}.union(*map(flags_of, commands))
    for where, flag in named(r"(?<![\w(-])--([a-z][\w-]*\w)(?![\w{-])", 30):
        assert flag in known, (where, flag)


def test_every_command_that_a_message_names_is_understood():
    for where, module, rest in named(r"python -m ([\w.]+)((?: [^`;, ]+)*)", 5):
        name = module.removeprefix("cyclip_jax.")
        assert name in COMMANDS, where
        arguments = rest.replace(OPEN, "7").split()
        if arguments:
            positional = {"report": "WORKDIR", "search": "DIR"}.get(name)
            command.parse(flags_of(name), [name, *arguments], positional=positional)


def test_every_package_that_a_message_installs_is_one_that_brings_all_it_needs(monkeypatch):
    given = {}
    monkeypatch.setattr(setuptools, "setup", lambda **settings: given.update(settings))
    runpy.run_path(str(ROOT / "setup.py"))
    alone = {"pyarrow", "clip_benchmark", "faiss-cpu", "open_clip_torch", "libtpu"}
    for where, package, extra in named(
        r"pip install (?:-e |--no-deps )?'?([\w.-]+)(?:\[(\w+)\])?", 8
    ):
        assert (extra in given["extras_require"]) if extra else package in alone, (where, package)


ROWS = "image,caption\n0.jpg,a café\n1.jpg,two\n"
ENCODINGS = ("utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1")


def told_of(path):
    with pytest.raises(UserError) as raised:
        create_source("csv", str(path), config_key="config.data.train").captions()
    return str(raised.value)


CONVERTED = {
    **{name: functools.partial(str.encode, encoding=name) for name in ENCODINGS},
    "gzip": lambda text: gzip.compress(text.encode()),
    "bzip2": lambda text: bz2.compress(text.encode()),
    "xz": lambda text: lzma.compress(text.encode()),
}


@pytest.mark.parametrize("kind", CONVERTED)
def test_a_table_that_was_converted_as_told_is_read(tmp_path, kind):
    path, new = tmp_path / "a.csv", tmp_path / "new.csv"
    path.write_bytes(CONVERTED[kind](ROWS))
    told = re.search(r"with (iconv -f [\w-]+ -t UTF-8|\w+) < FILE > NEW", told_of(path))[1]
    with open(path, "rb") as file:
        new.write_bytes(
            subprocess.run(told.split(), stdin=file, capture_output=True, check=True).stdout
        )
    assert create_source("csv", str(new), config_key="c").captions() == ["a café", "two"]


@pytest.mark.skipif(shutil.which("tar") is None, reason="there is no tar")
def test_a_tar_that_was_packed_as_told_is_read(tmp_path):
    picture = tf.io.encode_png(np.zeros([2, 2, 3], np.uint8)).numpy()
    members = {f"{n}.{end}": what for end, what in (("png", picture), ("txt", b"a")) for n in "01"}
    (tmp_path / "pictures").mkdir()
    with tarfile.open(tmp_path / "unsorted.tar", "w") as archive:
        for name, content in members.items():
            (tmp_path / "pictures" / name).write_bytes(content)
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))

    def captions(name):
        source = create_source("webdataset", str(tmp_path / name), config_key="config.data.train")
        return [source.read(index).captions for index in range(len(source))]

    with pytest.raises((UserError, Unreadable), match="tar --sort=name") as raised:
        captions("unsorted.tar")
    option = re.search(r"tar (--[\w=]+)", str(raised.value))[1]
    packed = ["tar", option, "-cf", "sorted.tar", "pictures"]
    subprocess.run(packed, cwd=tmp_path, check=True)
    assert captions("sorted.tar") == [["a"], ["a"]]


def test_the_vocabulary_that_was_trained_as_told_is_taken(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "captions.csv").write_text("caption\na red ring\na blue disc\n")
    sizes = {"vocab_size": 30, "context_length": 8}
    with pytest.raises(UserError, match=r"python -m cyclip_jax\.data\.tokenizers") as raised:
        tokenizers.create_tokenizer("sentencepiece", vocabulary=None, **sizes)
    told = re.search(r"python -m cyclip_jax\.data\.tokenizers ([^`]+)`", str(raised.value))[1]
    tokenizers.main(told.split())
    tokenizer = tokenizers.create_tokenizer("sentencepiece", vocabulary="tokenizer.model", **sizes)
    assert tokenizer(["a red ring"]).shape == (1, 8)
