"""What all commands have in common: flags, help, and how they report mistakes.

A command defines its flags in a function of absl's FlagValues, and `run` does the rest. The flags
belong to one call, so that importing a command defines no flag.
"""

import ast
import contextlib
import difflib
import functools
import os
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import absl.logging
from absl import app, flags

from cyclip_jax.errors import UserError
from cyclip_jax.runtime import config_file
from cyclip_jax.runtime.distributed_flags import is_first_process
from cyclip_jax.runtime.interrupts import INTERRUPTED, ctrl_c_ends, tell_of_interrupt
from cyclip_jax.runtime.started import prepare_command

_WIDTH = 100  # columns of the help
_HELP = {"--help", "-help", "-h", "--helpshort", "--helpfull"}


def literal(text: str) -> Any:
    """The number or other literal that a text writes, or else the text itself."""
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text


def run(
    main: Callable[..., int | str | None],
    define_flags: Callable[[flags.FlagValues], None],
    *,
    doc: str | None,
    arguments: Sequence[str] | None = None,
    positional: str | None = None,
    words: int = 0,
    starting: Callable[..., str] | None = None,
    is_run: bool = False,
    continues: bool = False,
) -> None:
    """Runs a command; a mistake of the user's ends it with one sentence and exit status 1.

    Args:
      main: function of the flags' values and of the positional arguments. It returns the exit
        status, a number, or a sentence that says what is wrong. None and 0 mean success.
      define_flags: function that defines the flags in the FlagValues that it is given.
      doc: what the command is for, as `--help` shows it.
      arguments: the arguments of the command line. None means those of the process, which is then
        prepared first.
      positional: what the arguments without a flag are, for a command that takes some.
      words: how many of the first arguments name the command itself.
      starting: function of the same arguments as `main` that says in words what is begun, before
        anything slow is imported. Of the flags, --config is then still the name of its file.
      is_run: whether the command's output is what a run says, and nothing that programs read; the
        first line then goes there, and else to the error output.
      continues: whether the same command, given again, goes on where it was.

    Raises:
      SystemExit: the command has ended. A call with `arguments` that succeeds returns instead.
    """
    told = "interrupted; the same command continues" if continues else "interrupted"
    if arguments is not None:
        values = flags.FlagValues()
        define_flags(values)
        argv = [sys.argv[0], *arguments[words:]]
        rest = _parse_or_end(values, argv, doc=doc, positional=positional)
        try:
            status = _call(main, values, rest)
        except KeyboardInterrupt:
            tell_of_interrupt(told)
            status = INTERRUPTED
        if status:
            sys.exit(status)
        return
    with ctrl_c_ends(told):
        prepare_command()
        argv = [sys.argv[0], *sys.argv[1 + words :]]
        if starting is not None:
            words_of_start = _start_in_words(starting, define_flags, argv, positional)
            if words_of_start is not None:
                print(words_of_start, file=sys.stdout if is_run else sys.stderr, flush=True)
        values = flags.FlagValues()
        define_flags(values)
        parse = functools.partial(_parse_or_end, values, doc=doc, positional=positional)
        app.run(functools.partial(_call, main, values), argv, flags_parser=parse)


def define_allow_changes(values: flags.FlagValues) -> None:
    """Defines the flag that lets a run go on with other settings."""
    flags.DEFINE_list(
        "allow_changes",
        [],
        "Names of settings, such as optimizer.learning_rate,total_steps, with which a run may go "
        "on otherwise than it began. Each change is recorded once, so that the flag may stay.",
        flag_values=values,
    )


def define_checkpoint(values: flags.FlagValues) -> None:
    """Defines --checkpoint and --step, which name a trained model."""
    flags.DEFINE_string(
        "checkpoint",
        None,
        "Workdir of a run, an export, a folder of open_clip or transformers, a weight file, or "
        "hf-hub:user/name for a model on the Hugging Face Hub.",
        required=True,
        flag_values=values,
    )
    define_step(values)


def define_step(values: flags.FlagValues) -> None:
    """Defines --step, which says which checkpoint of a workdir is meant."""
    flags.DEFINE_integer(
        "step",
        None,
        "Step of the checkpoint in a workdir; by default the newest.",
        flag_values=values,
    )


def define_weights(values: flags.FlagValues) -> None:
    """Defines --weights, which says which weights of a run's checkpoint are meant."""
    flags.DEFINE_enum(
        "weights",
        "raw",
        ["raw", "average"],
        "The weights themselves, or the average that config.average keeps of them.",
        flag_values=values,
    )


def parse(
    values: flags.FlagValues, argv: Sequence[str], *, positional: str | None = None
) -> list[str]:
    """Parses a command line.

    Args:
      values: the command's flags, to which those of absl's logging are added.
      argv: the program's name and its arguments.
      positional: as in `run`.

    Returns:
      The arguments without a flag.

    Raises:
      UserError: the command does not understand an argument.
    """
    for flag in _flags_of(flags.FLAGS):
        if flag.name not in values and str(flag.short_name) not in values:
            values[flag.name] = flag
    with _one_sentence(values, argv):
        kept, unset = config_file.without_unset(argv)
        rest = values(_as_absl_writes(values, kept))[1:]
        config_file.settle(values, unset)
    flags.FLAGS.mark_as_parsed()
    if rest and positional is None:
        raise UserError(f"unknown argument {rest[0]}; flags begin with --")
    if positional is not None and not rest:
        raise UserError(f"{positional} is missing")
    return rest


def _start_in_words(starting, define_flags, argv, positional) -> str | None:
    """The first line of a command; None where it only shows its help, or is about to be refused."""
    if _HELP.intersection(argv[1:]):
        return None
    early = flags.FlagValues()
    define_flags(early)
    if "config" in early:  # loading that file takes seconds: it imports JAX
        delattr(early, "config")
        flags.DEFINE_string("config", None, "", flag_values=early)
    try:
        rest = early(_as_absl_writes(early, argv), known_only=True)[1:]
    except flags.Error:
        return None  # `parse` says what is wrong
    unknown = [argument for argument in rest if argument.startswith("-")]
    named = [re.match(r"--?(?:no)?(\w+\.)?(\w*)", argument) for argument in unknown]
    if any(not match[1] and match[2] not in flags.FLAGS for match in named if match):
        return None
    rest = [argument for argument in rest if argument not in unknown]
    if bool(rest) != (positional is not None) or not is_first_process(early):
        return None
    return f"starting: {starting(early, *rest)}"


def _call(main, values, rest):
    if not flags.FLAGS["verbosity"].present:
        # Orbax tells of every file that it writes; --verbosity=0 shows that.
        absl.logging.set_verbosity(absl.logging.WARNING)
    try:
        return main(values, *rest)
    except UserError as error:
        return f"error: {error}"
    except BrokenPipeError:  # whoever reads has read enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return None


def _parse_or_end(values, argv, *, doc, positional) -> list[str]:
    wanted = _HELP.intersection(argv[1:])
    if wanted:
        _show_help(values, doc, positional, with_absl="--helpfull" in wanted)
        sys.exit(0)
    try:
        return parse(values, argv, positional=positional)
    except UserError as error:
        sys.exit(f"error: {error}")


def _as_absl_writes(values, argv):
    """The arguments with dashes within a name, as other programs write them, as absl's.

    --no-check is --nocheck, and --with-pictures is --with_pictures.
    """
    return [_flag_as_absl_writes(values, argument) for argument in argv]


def _flag_as_absl_writes(values, argument):
    found = re.match(r"--([a-z][a-z-]*-[a-z-]*)(=.*)?$", argument, re.DOTALL)
    if found is None:
        return argument
    name, value = found[1].replace("-", "_"), found[2] or ""
    if name in values:
        return f"--{name}{value}"
    known = name.removeprefix("no_")
    if known != name and known in values and values[known].boolean:
        return f"--no{known}{value}"
    return argument


@contextlib.contextmanager
def _one_sentence(values: flags.FlagValues, argv: Sequence[str]) -> Iterator[None]:
    """A context whose errors, of absl and of the config's fields, become one sentence each."""
    try:
        yield
    except flags.UnrecognizedFlagError as error:
        _refuse_unknown(values, error.flagname)
    except (flags.Error, KeyError, AttributeError, IndexError, TypeError, ValueError) as error:
        misspelt = config_file.misspelt_field(values, argv)
        if misspelt is not None:
            raise UserError(misspelt) from error
        if isinstance(error.__context__, UserError):  # said while the config was loaded
            raise error.__context__ from error.__context__.__cause__
        missing = re.match(r"flag --(\w+)=None: Flag --\w+ must have a value", str(error))
        if missing:
            raise UserError(f"--{missing[1]} is missing; --help shows all flags") from error
        raise UserError(" ".join(str(error).split())) from error


def _refuse_unknown(values, name) -> NoReturn:
    head, _, field = name.partition(".")
    if field and head in values:
        raise UserError(f"--{name} changes a field of --{head}=FILE, which must stand before it")
    near = difflib.get_close_matches(name, list(values), n=1)
    hint = f"did you mean --{near[0]}?" if near else "--help shows all flags"
    raise UserError(f"there is no flag --{name}; {hint}")


def _show_help(values, doc, positional, *, with_absl):
    print((doc or "").strip() + "\n")
    if positional is not None:
        print(f"{positional}\n")
    print("Flags:\n")
    for flag in _flags_of(values):
        print(_flag_help(flag))
    if with_absl:
        print("\nFlags of absl:\n")
        for flag in _flags_of(flags.FLAGS):
            print(_flag_help(flag))
    if "config" in values:
        print("\n" + config_file.fields_help(_WIDTH))


def _flags_of(values: flags.FlagValues) -> list[flags.Flag[Any]]:
    """The flags by their names, each once: some have a short name too."""
    return [values[name] for name in sorted(values) if values[name].name == name]


def _flag_help(flag: flags.Flag[Any]) -> str:
    """A flag as two lines or more: its name and default, and what it means."""
    value = {"bool": "", "int": "=NUMBER", "float": "=NUMBER"}.get(flag.flag_type(), "=…")
    text = flag.help or ""
    if isinstance(flag.parser, flags.EnumParser):
        text = f"{text} One of: {', '.join(flag.parser.enum_values)}."
    if flag.default not in (None, "", [], False):
        text = f"{text} Default: {flag.default}."
    name = f"--[no]{flag.name}" if flag.boolean else f"--{flag.name}{value}"
    return f"  {name}\n" + textwrap.indent(textwrap.fill(text, _WIDTH - 6), " " * 6)
