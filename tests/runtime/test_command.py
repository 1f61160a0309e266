"""How all commands take flags, explain themselves, and say what is wrong."""

import subprocess
import sys

import pytest
from absl import flags

from cyclip_jax.errors import UserError
from cyclip_jax.runtime import command, config_help
from cyclip_jax.runtime.config_file import define_config
from tests.runs import ROOT

COMMANDS = {
    "main": "--workdir",
    "evaluate": "--checkpoint",
    "export": "--format",
    "embed": "--shard_size",
    "search": "--static",
    "average": "--alpha",
    "classify": "--classes",
    "finetune": "--choose",
    "sweep": "--only",
    "report": "WORKDIR",
    "data.inspect": "--clean",
    "data.prepare": "--examples_per_shard",
    "data.tokenizers": "--vocab_size",
    "evals.presets": "--preset",
}


def define_flags(values):
    flags.DEFINE_string("output", None, "Where to.", required=True, flag_values=values)
    flags.DEFINE_integer("count", 3, "How many.", lower_bound=1, flag_values=values)
    flags.DEFINE_multi_string("name", [], "Repeatable.", flag_values=values)
    flags.DEFINE_bool("check", True, "Whether.", flag_values=values)
    flags.DEFINE_bool("with_words", False, "Whether in words.", flag_values=values)
    flags.DEFINE_enum("format", "a", ["a", "b"], "Which.", flag_values=values)


def run(arguments, main=None, **options):
    """What `main`, called for a command line, is given."""
    given = []

    def remember(values, *rest):
        given.append((values, rest))
        return None if main is None else main(values)

    command.run(remember, define_flags, doc="Does it.", arguments=arguments, **options)
    return given[0]


def test_flags_have_their_types_and_defaults_and_no_call_leaves_anything_behind():
    values, rest = run(["--output=x", "--count", "5", "--name=a", "--name=b", "--nocheck"])
    assert (values.output, values.count, values.name, values.check) == ("x", 5, ["a", "b"], False)
    values, rest = run(["--output=y"])
    assert (values.count, values.name, values.check, rest) == (3, [], True, ())
    values, _ = run(["--output=y", "--no-check"])  # as other programs write it
    assert values.check is False
    for given, expected in (("--with-words", True), ("--no-with-words", False)):
        assert run(["--output=-a-b", given])[0].with_words is expected
    assert run(["--output=x", "--with-words=true"])[0].with_words


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "error: --output is missing; --help shows all flags"),
        (["--output=x", "--outptu=y"], "error: there is no flag --outptu; did you mean --output?"),
        (["--output=x", "--zzz"], "error: there is no flag --zzz; --help shows all flags"),
        (["--output=x", "--count=many"], "error: flag --count=many: invalid literal for int()"),
        (["--output=x", "--count=0"], "error: flag --count=0: 0 is not an integer in the range"),
        (["--output=x", "--format=c"], "error: flag --format=c: value should be one of <a|b>"),
        (["--output=x", "y"], "error: unknown argument y; flags begin with --"),
    ],
)
def test_what_is_not_understood_is_said_in_one_sentence(arguments, sentence):
    with pytest.raises(SystemExit) as end:
        run(arguments)
    assert end.value.code.startswith(sentence) or "positive integer" in end.value.code
    assert "\n" not in end.value.code


def test_arguments_without_a_flag_are_for_commands_that_take_some():
    _, rest = run(["--output=x", "a", "b"], positional="FILE")
    assert rest == ("a", "b")
    with pytest.raises(SystemExit, match="error: FILE is missing"):
        run(["--output=x"], positional="FILE")


def test_what_a_user_can_mend_and_a_status_end_a_command():
    def refuse(_):
        raise UserError("the disk is full; free some space")

    with pytest.raises(SystemExit, match=r"^error: the disk is full; free some space$"):
        run(["--output=x"], refuse)
    with pytest.raises(SystemExit, match=r"^130$"):
        run(["--output=x"], lambda _: 130)


def test_a_field_that_the_config_has_not_is_told_with_the_nearest(tmp_path):
    def sentence(field):
        argv = ["main", f"--config={ROOT / 'configs' / 'cc3m.py'}", f"--config.{field}=1"]
        values = flags.FlagValues()
        define_config(values, "It.", argv=argv)
        with pytest.raises(UserError) as refused:
            command.parse(values, argv)
        return str(refused.value)

    assert sentence("optimzer.eps") == ('config has no field "optimzer". Did you mean "optimizer"?')
    assert sentence("optimizer.epps") == (
        'config.optimizer has no field "epps". Did you mean "eps"?'
    )
    assert sentence("learning_rate") == (
        'config has no field "learning_rate". Did you mean "optimizer.learning_rate"?'
    )
    assert sentence("seed.x") == (
        'config.seed has no field "x"; --help shows all fields that there are'
    )


@pytest.mark.parametrize("module", sorted(COMMANDS))
def test_help_shows_a_commands_own_flags_and_ends_with_0(module):
    process = subprocess.run(
        [sys.executable, "-m", f"cyclip_jax.{module}", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert (process.returncode, process.stderr) == (0, "")
    assert f"python -m cyclip_jax.{module}" in process.stdout
    assert COMMANDS[module] in process.stdout and "--verbosity" not in process.stdout
    if module in ("main", "evaluate"):
        path = ROOT / "cyclip_jax" / "defaults.py"
        for section in config_help.read_sections(path.read_text(), path):
            for key in section.keys:
                assert f"--config.{key.name}  (default: {key.default})" in process.stdout
                assert key.meaning.split()[0] in process.stdout
