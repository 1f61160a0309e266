"""Loads the file of an experiment, lets flags change it, and explains its fields.

While such a file loads, `from configs import common` works in it from any folder.
"""

import contextlib
import difflib
import functools
import importlib.abc
import importlib.machinery
import importlib.util
import pathlib
import re
import sys
import textwrap
import traceback
import types
from collections.abc import Iterator, Sequence

import ml_collections
from absl import flags
from ml_collections import config_flags

from cyclip_jax.errors import UserError
from cyclip_jax.files import expanded, how_written
from cyclip_jax.runtime import config_help
from cyclip_jax.runtime.sections import flat

_PACKAGE = pathlib.Path(__file__).parents[1]
_LONGEST_MESSAGE = 300  # characters of an exception's own words


def define_config(
    values: flags.FlagValues,
    help_text: str,
    *,
    required: bool = False,
    argv: list[str] | None = None,
) -> None:
    """Defines --config=FILE, and --config.FIELD=VALUE for every field of the file's config.

    Args:
      values: where the flags are defined.
      help_text: what the file is for.
      required: whether the command needs such a file.
      argv: the command line with the program's name; None means that of the process.
    """
    config_flags.DEFINE_config_file("config", None, help_text, flag_values=values, sys_argv=argv)
    values["config"].parser = ConfigFileParser()
    if required:
        flags.mark_flag_as_required("config", flag_values=values)


def config_name(values: flags.FlagValues) -> str:
    """The name of the file that --config names, without its folder and ending."""
    return pathlib.Path(config_flags.get_config_filename(values["config"])).stem


def load_module(path: str | pathlib.Path, name: str) -> types.ModuleType:
    """Runs a user's Python file.

    Args:
      path: the file.
      name: the name under which it is imported.

    Raises:
      UserError: there is no such file, or it raises an error, whose line the message names.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        others = [str(path.parent / other.name) for other in path.parent.glob("*.py")]
        near = difflib.get_close_matches(str(path), others, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"there is no file {path}{how_written(str(path)) or hint}")
    loader = importlib.machinery.SourceFileLoader(name, str(path))
    spec = importlib.util.spec_from_file_location(name, path, loader=loader)
    if spec is None:
        raise UserError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    with errors_in(path):
        loader.exec_module(module)
    return module


@contextlib.contextmanager
def errors_in(path: str | pathlib.Path) -> Iterator[None]:
    """A context for code of the file `path`, whose errors become one sentence with their line.

    Raises:
      UserError: whatever the code raises.
    """
    try:
        yield
    except Exception as error:  # whatever a user's own code raises
        lines = [
            frame.lineno
            for frame in traceback.extract_tb(error.__traceback__)
            if pathlib.Path(frame.filename) == pathlib.Path(path)
        ]
        line = lines[-1] if lines else None
        if isinstance(error, SyntaxError) and error.filename == str(path):
            line = error.lineno
        where = path if line is None else f"{path}, line {line}"
        words = " ".join(str(error).split())[:_LONGEST_MESSAGE]
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        raise UserError(f"{where}: {kind}{words}") from error


@contextlib.contextmanager
def configs_at_hand() -> Iterator[None]:
    """A context in which `configs.common` can be imported from any folder.

    If the user has a package `configs`, that is imported, and only the modules that it lacks are
    ours. Afterwards everything is as it was.
    """
    finder = _Finder()
    sys.meta_path.append(finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if finder.has_provided(name)]:
            module, (parent, _, last) = sys.modules.pop(name), name.rpartition(".")
            if getattr(sys.modules.get(parent), last, None) is module:
                delattr(sys.modules[parent], last)


class _Finder(importlib.abc.MetaPathFinder):
    """Finds in `configs` what no other finder has found.

    In a checkout that is every config of the project; elsewhere it is `configs.common`, which holds
    what cyclip_jax/defaults.py does.

    """

    def __init__(self) -> None:
        self._found: set[str] = set()

    def has_provided(self, name: str) -> bool:
        """Whether a module is from here: with the package itself everything in it is."""
        is_inside = name.startswith("configs.")
        return name in self._found or (is_inside and "configs" in self._found)

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: types.ModuleType | None = None,
    ) -> importlib.machinery.ModuleSpec | None:
        """The spec of `configs` or of what is in it; None for everything else."""
        del path, target
        if fullname.split(".")[0] != "configs":
            return None
        spec = _in_checkout(fullname)
        if spec is None and fullname == "configs":
            spec = importlib.machinery.ModuleSpec(fullname, None, is_package=True)
        elif spec is None and fullname == "configs.common":
            spec = importlib.machinery.ModuleSpec(fullname, _Defaults())
        if spec is not None:
            self._found.add(fullname)
        return spec


class _Defaults(importlib.abc.Loader):
    """Fills a module with what cyclip_jax/defaults.py offers."""

    def exec_module(self, module: types.ModuleType) -> None:
        """Fills the module."""
        from cyclip_jax import defaults

        public = {key: value for key, value in vars(defaults).items() if not key.startswith("_")}
        vars(module).update(public)


def _in_checkout(fullname):
    """The spec of a module in the folder configs/ that lies beside the package's sources."""
    folder = _PACKAGE.parent / "configs"
    if not (folder / "common.py").is_file() or not (folder.parent / "setup.py").is_file():
        return None
    path = folder.parent.joinpath(*fullname.split("."))
    for file in (path / "__init__.py", path.with_suffix(".py")):
        if file.is_file():
            return importlib.util.spec_from_file_location(fullname, file)
    return None


class ConfigFileParser(flags.ArgumentParser):
    """Loads FILE or FILE:ARGUMENT.

    Attributes:
      config: what was loaded last, or None.
    """

    def __init__(self) -> None:
        super().__init__()
        self.config: ml_collections.ConfigDict | None = None

    def parse(self, path: str) -> ml_collections.ConfigDict:
        """The locked config of the file, whose get_config() is given what follows a colon."""
        path, *argument = expanded(path).split(":", 1)
        with configs_at_hand():
            module = load_module(path, "config_config")
            if not hasattr(module, "get_config"):
                raise UserError(f"{path} has no function get_config(), which returns the config")
            with errors_in(path):
                config = module.get_config(*argument)
        if not isinstance(config, ml_collections.ConfigDict):
            raise UserError(
                f"get_config() of {path} returns a {type(config).__name__}, not a ConfigDict; let "
                "it begin with cyclip_jax.defaults.get_config() and return that"
            )
        self.config = config.lock()
        return self.config


def without_unset(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """(A command line without --config.FIELD=None, which no type but str can parse; the fields)."""
    named = [re.fullmatch(r"--?config\.([\w.]+)=None", argument) for argument in argv]
    kept = [argument for argument, match in zip(argv, named, strict=True) if match is None]
    return kept, [match[1] for match in named if match is not None]


def settle(values: flags.FlagValues, unset: Sequence[str]) -> None:
    """Unsets fields, and the file's length of a run where a flag gives it in the other unit.

    Args:
      values: the parsed flags.
      unset: full names of the fields, as `without_unset` gives them.

    Raises:
      UserError: a field has to have a value.
    """
    parser = values["config"].parser if "config" in values else None
    config = parser.config if isinstance(parser, ConfigFileParser) else None
    if config is None:
        return
    from cyclip_jax import defaults  # brings JAX, which --help does without

    known = flat(defaults.get_config().to_dict())
    for field in unset:
        if known.get(field) is not None:
            raise UserError(f"config.{field} needs a value; its default is {known[field]!r}")
        *sections, last = field.split(".")
        functools.reduce(getattr, sections, config)[last] = None
    for name, other in (("total_steps", "num_epochs"), ("num_epochs", "total_steps")):
        flag = f"config.{name}"
        is_given = flag in values and values[flag].present and config.get(name) is not None
        if is_given and not (f"config.{other}" in values and values[f"config.{other}"].present):
            config[other] = None


def misspelt_field(values: flags.FlagValues, argv: Sequence[str]) -> str | None:
    """A sentence on the first --config.FIELD that the config does not have, or None."""
    parser = values["config"].parser if "config" in values else None
    if not isinstance(parser, ConfigFileParser) or parser.config is None:
        return None
    for argument in argv[1:]:
        named = re.match(r"--?(?:no)?config\.([^=]+)", argument)
        if named is None:
            continue
        section, known = parser.config, ""
        for name in named[1].split("."):
            if not isinstance(section, ml_collections.ConfigDict) or name not in section:
                return _misspelt(named[1], f"config.{known}".rstrip("."), name, parser.config)
            section, known = section[name], f"{known}{name}."
    return None


def _misspelt(wanted, where, name, config):
    """The sentence on the field `name` of `where`, which `wanted` names."""
    fields = _names(config)
    head = f"{where}.".partition(".")[2]
    beside = [field.removeprefix(head) for field in fields if field.startswith(head)]
    near = difflib.get_close_matches(name, [key for key in beside if "." not in key], n=1)
    if not near:  # it may be spelt right, and belong to another section
        by_last = {field.split(".")[-1]: field for field in reversed(fields)}
        last = wanted.split(".")[-1]
        near = [by_last[key] for key in difflib.get_close_matches(last, by_last, 1, cutoff=0.8)]
    if not near:
        return f'{where} has no field "{name}"; --help shows all fields that there are'
    return f'{where} has no field "{name}". Did you mean "{near[0]}"?'


def _names(config, prefix=""):
    """The full names of all fields of a config, those of sections too."""
    names = []
    for key in config:
        names.append(prefix + key)
        value = config.get(key)
        if isinstance(value, ml_collections.ConfigDict):
            names += _names(value, f"{prefix}{key}.")
    return names


def fields_help(width: int) -> str:
    """The fields of every config with their defaults and meanings, as text."""
    path = _PACKAGE / "defaults.py"
    lines = ["Fields of the config, each set by --config.FIELD=VALUE:", ""]
    for section in config_help.read_sections(path.read_text(encoding="utf-8"), path):
        for key in section.keys:
            lines.append(f"  --config.{key.name}  (default: {key.default})")
            lines.append(textwrap.indent(textwrap.fill(key.meaning, width - 6), " " * 6))
        lines.append("")
    return "\n".join(lines)
