"""The walls of the house: which room may import which, and how long anything may be."""

import ast
import signal
import subprocess
import sys

import pytest

from tests.runs import ROOT

PACKAGE = ROOT / "cyclip_jax"
FILES = sorted(PACKAGE.rglob("*.py"))
DOORS = {
    *("main", "evaluate", "export", "embed", "search", "average", "classify", "finetune", "sweep"),
    *("__init__", "train", "defaults", "parallel", "files", "errors"),
}
MOST_LINES_OF_A_FILE, MOST_LINES_OF_A_FUNCTION = 500, 60


def module_of(path):
    """cyclip_jax.losses.cyclic of its file; a package's own name of its __init__."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in FILES}


def is_for_types_alone(node):
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def imported_names(node, lazily):
    """Full names of everything that a tree imports; `lazily` has functions count too."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            yield from (f"{child.module}.{alias.name}" for alias in child.names)
        elif isinstance(child, ast.FunctionDef | ast.Lambda) and not lazily:
            continue
        elif not is_for_types_alone(child):
            yield from imported_names(child, lazily)


def imports_of(path, *, lazily=True):
    """Names of the modules that a file imports, of the house's own the very module."""
    found = set()
    for name in imported_names(ast.parse(path.read_text()), lazily):
        while name.startswith("cyclip_jax") and name not in MODULES:
            name = name.rpartition(".")[0]
        found.add(name)
    return found - {module_of(path)}


def imported_names_of(path):
    return set(imported_names(ast.parse(path.read_text()), lazily=True))


IMPORTS = {name: imports_of(path) for name, path in MODULES.items()}


def room_of(module):
    """losses of cyclip_jax.losses.cyclic, and of cyclip_jax.losses."""
    return module.split(".")[1] if "." in module else ""


def own(names):
    return {name for name in names if name.split(".")[0] == "cyclip_jax"}


def test_no_module_imports_itself_by_way_of_others():
    done, path = set(), []

    def visit(name):
        assert name not in path, " → ".join([*path[path.index(name) :], name])
        if name in done:
            return
        path.append(name)
        for other in sorted(own(IMPORTS[name]) - {"cyclip_jax"}):
            visit(other)
        done.add(path.pop())

    for name in MODULES:
        visit(name)


@pytest.mark.parametrize("room", ["losses", "models"])
def test_losses_and_models_stand_on_themselves(room):
    for name, imported in IMPORTS.items():
        if room_of(name) == room:
            rooms = {room_of(other) for other in own(imported)}
            assert rooms <= {"errors", "parallel", "losses", room}, (name, rooms)


def test_the_package_imports_no_experiment():
    for name, imported in IMPORTS.items():
        assert not any(other.split(".")[0] == "configs" for other in imported), name


def test_nothing_needs_the_report_but_for_the_page_at_the_end():
    for name, imported in IMPORTS.items():
        if any(room_of(other) == "report" for other in own(imported)):
            assert room_of(name) in ("report", "train", "sweep", "finetune"), name
    assert not any(
        room_of(n) == "report" for n in own(imports_of(PACKAGE / "train.py", lazily=False))
    )


def test_evaluators_import_no_evaluator():
    evaluators = {f"cyclip_jax.evals.{path.stem}" for path in (PACKAGE / "evals").glob("*.py")}
    evaluators = {
        name
        for name in evaluators
        if name in MODULES and name.rpartition(".")[2] in EVALUATOR_MODULES
    }
    assert len(evaluators) == len(EVALUATOR_MODULES)
    for name in evaluators:
        assert not IMPORTS[name] & evaluators, name


def _evaluator_modules():
    from cyclip_jax.evals import EVALUATORS

    return {evaluator.__module__.rpartition(".")[2] for evaluator in EVALUATORS.values()}


EVALUATOR_MODULES = _evaluator_modules()


def test_orbax_stands_behind_one_module():
    users = {name for name, found in IMPORTS.items() if any("orbax" in other for other in found)}
    assert users == {"cyclip_jax.workdir.checkpoints"}


# What imports TensorFlow, when it is called, for those who open data or show numbers.
BEHIND_FUNCTIONS = ("cyclip_jax.runtime.started", "cyclip_jax.workdir.tensorboard")


def test_tensorflow_reads_data_and_is_imported_for_nothing_else():
    def uses(names):
        return any(name.split(".")[0] in ("tensorflow", "clu.metric_writers") for name in names)

    for name, path in MODULES.items():
        if uses(imports_of(path, lazily=False)):
            assert room_of(name) == "data", name
        if uses(IMPORTS[name]):
            assert room_of(name) == "data" or name in BEHIND_FUNCTIONS, name
        if "cyclip_jax.runtime.started.import_tensorflow" in imported_names_of(path):
            assert room_of(name) in ("data", "evals", "workdir", "files"), name


LIGHT = ("cyclip_jax", "cyclip_jax.models", "cyclip_jax.losses", "cyclip_jax.defaults")


def test_losses_and_models_bring_neither_tensorflow_nor_orbax_and_a_run_brings_no_keras():
    code = (
        f"import sys, signal, {', '.join(LIGHT)}\n"
        "brought = {name.split('.')[0] for name in sys.modules}\n"
        "assert not {'tensorflow', 'orbax'} & brought\n"
        f"assert signal.getsignal(signal.SIGUSR1) == {int(signal.SIG_DFL)}\n"
        # A run brings both, but not what TensorFlow would import for models of its own.
        "from cyclip_jax.runtime.started import prepare_command\n"
        "prepare_command()\n"
        "import cyclip_jax.train, cyclip_jax.data.pipeline, cyclip_jax.workdir.checkpoints\n"
        "brought = {name.split('.')[0] for name in sys.modules}\n"
        "assert {'tensorflow', 'orbax'} <= brought and not {'keras', 'sklearn'} & brought\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_the_top_level_has_doors_alone():
    assert {path.stem for path in PACKAGE.glob("*.py")} == DOORS


def test_no_file_is_longer_than_a_sitting():
    lengths = {module_of(path): len(path.read_text().splitlines()) for path in FILES}
    assert {n: length for n, length in lengths.items() if length > MOST_LINES_OF_A_FILE} == {}


def lines_without_docstring(function):
    first, *_ = function.body
    has_docstring = ast.get_docstring(function, clean=False) is not None
    docstring = first.end_lineno - first.lineno + 1 if has_docstring else 0
    return function.end_lineno - function.lineno + 1 - docstring


def test_no_function_is_longer_than_a_screen():
    too_long = {
        f"{module_of(path)}.{node.name}": lines_without_docstring(node)
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
        and lines_without_docstring(node) > MOST_LINES_OF_A_FUNCTION
    }
    assert too_long == {}
