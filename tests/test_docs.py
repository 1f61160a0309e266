"""What the documents name exists, and a person can read them."""

import ast
import importlib.util
import re
import shlex
import subprocess
import sys

import pytest
import yaml

from cyclip_jax import defaults, main
from cyclip_jax.runtime import command
from cyclip_jax.training.settings import checked
from cyclip_jax.workdir.layout import CLASSES
from tests.pages import commands_of
from tests.runs import ROOT

ROWS = re.findall(r"\| P `(\S+?)(?: -k (.+?))?` \|", (ROOT / "docs" / "faults.md").read_text())
PAGES = sorted((ROOT / "docs").glob("*.md"))
DOCUMENTS = (*sorted(ROOT.glob("*.md")), *PAGES, *sorted((ROOT / ".github").rglob("*.md")))
README = (ROOT / "README.md").read_text()


def imported(name):
    """A module of docs/, which is no package."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", ROOT / "docs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


hooks = imported("hooks")


def without_code(text):
    """A document without its code blocks."""
    return re.sub(r"^ *```.*?^ *```$", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(text):
    """What a link to a heading may end in."""
    headings = re.findall(r"^#+ (.+)$", without_code(text), flags=re.MULTILINE)
    plain = (re.sub(r"[^\w\s-]", "", heading).strip().lower() for heading in headings)
    return {re.sub(r"[-\s]+", "-", heading) for heading in plain}


def named(pattern):
    """[(document's name, what the pattern finds in it)] of all documents but the changelog."""
    return [
        (page.name, found)
        for page in DOCUMENTS
        if page.name != "CHANGELOG.md"
        for found in re.findall(pattern, page.read_text())
    ]


def test_every_row_of_the_fault_table_is_made_by_tests():
    assert len(ROWS) > 20
    for path, expression in ROWS:
        tests = re.findall(r"def (test_\w+)", (ROOT / path).read_text())
        for word in expression.strip('"').split(" or "):
            assert any(word in name for name in tests), (path, word)


def test_every_fault_has_a_command():
    text = (ROOT / "docs" / "faults.md").read_text()
    rows = [line for line in text.splitlines() if re.match(r"\| (?!fault |-)", line)]
    faults = [line for line in rows if not line.startswith("|---")]
    assert len(faults) == len(ROWS)


def test_links_between_documents_lead_somewhere():
    for page in DOCUMENTS:
        for link, anchor in re.findall(r"\]\((?!http)([^)#]*)#?([^)]*)\)", page.read_text()):
            target = page.parent / link if link else page
            assert target.exists(), (page.name, link)
            if anchor:
                assert anchor in anchors(target.read_text()), (page.name, link, anchor)


def test_every_page_of_the_manual_is_in_its_navigation_once():
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    listed = [path for entry in settings["nav"] for path in entry.values()]
    assert sorted(listed) == sorted(page.name for page in PAGES)


def test_no_line_is_wider_than_120_columns_outside_tables():
    for page in DOCUMENTS:
        for number, line in enumerate(page.read_text().splitlines(), start=1):
            assert len(line) <= 120 or line.lstrip().startswith("|"), (page.name, number)


def test_the_readme_is_a_front_page():
    assert len(README.split()) <= 1000
    lines = README.splitlines()
    assert lines.count("pip install -e '.[test]' && pytest") == 1
    assert any(
        line.startswith("pip install -e '.[quickstart]' && python -m cyclip_jax.main ")
        for line in lines
    )


@pytest.mark.parametrize("name", ["gallery.png", "search.png"])
def test_a_picture_of_drawings_is_small_and_its_licence_stands_beside_it(name):
    assert (ROOT / "docs" / name).stat().st_size < 300_000
    showing = [page for page in DOCUMENTS if f"{name})" in page.read_text()]
    assert len(showing) >= 2
    for page in showing:
        after = page.read_text().partition(f"{name})")[2][:1000]
        assert {"OpenMoji", "CC-BY-SA-4.0", "Twemoji", "CC-BY-4.0"} <= set(
            re.findall(r"[\w.-]*\w", after)
        ), page.name


def test_every_command_and_file_that_the_documents_name_exists():
    for page, module in named(r"python -m ((?:cyclip_jax|benchmarks)[\w.]*\w)"):
        assert importlib.util.find_spec(module) is not None, (page, module)
    paths = named(r"(?<![\w./-])((?:cyclip_jax|configs|tests|launch|benchmarks)/[\w./-]*\w)")
    assert len(paths) > 40
    for page, path in paths:
        if path != "configs/my_evals.py":  # the reader's own
            assert (ROOT / path).exists(), (page, path)


def test_every_test_that_a_command_chooses_exists():
    for page, path, word in (
        (page, *found) for page, found in named(r"(tests/[\w/]+\.py) -k (\w+)")
    ):
        assert re.search(rf"def test_\w*{word}", (ROOT / path).read_text()), (page, path, word)


def test_every_setting_that_the_documents_name_exists():
    config = defaults.get_config()
    sections = "|".join(key for key, value in config.items() if hasattr(value, "to_dict"))
    flags = named(r"--config\.([a-z][\w.]*\w)")
    assert len(flags) > 20
    settings = named(rf"`((?:{sections})\.[a-z]\w*)[`=]")
    for page, key in flags + settings:
        if key.split(".")[0] not in ("evals",) and key != CLASSES:  # a file; the reader's names
            value = config
            for part in key.split("."):
                assert part in value, (page, key)
                value = value[part]


def test_the_runs_that_the_page_of_the_optimiser_begins_have_good_settings(monkeypatch):
    """And what a run changes when it goes on, it is allowed to."""
    commands = commands_of("optimiser.md")
    starts = [shlex.split(line)[3:] for line in commands if "cyclip_jax.main" in line]
    assert len(starts) >= 5
    begun = {}

    def accept(values):
        config = flat(values.config.to_dict())
        checked(values.config)
        before = begun.setdefault(values.workdir, config)
        assert {name for name in config if config[name] != before[name]} == set(
            values.allow_changes
        )

    for arguments in starts:
        monkeypatch.setattr(sys, "argv", ["main", *arguments])  # in which --config looks
        command.run(accept, main.define_flags, doc="", arguments=arguments)


def test_every_function_for_a_config_file_exists():
    functions = named(r"`defaults\.(\w+)")
    assert len(functions) > 8
    for page, name in functions:
        assert callable(getattr(defaults, name)), (page, name)


def flat(config, prefix=""):
    """{name: value} of a config; an empty section is a value."""
    values = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            values |= flat(value, f"{name}.")
        else:
            values[name] = value
    return values


def test_the_page_of_the_configuration_has_every_key_with_its_default_and_meaning():
    path = hooks.defaults_path()
    sections = hooks.read_sections(path.read_text(encoding="utf-8"), path)
    keys = {key.name: key for section in sections for key in section.keys}
    assert all(key.meaning for key in keys.values())
    values = flat(defaults.get_config().to_dict())
    for name in values:
        parents = [name.rsplit(".", count)[0] for count in range(name.count(".") + 1)]
        assert any(parent in keys for parent in parents), name
    compared = 0
    for name, key in keys.items():
        if key.default.startswith(hooks.NOT_SET):
            assert values[name] is None, name
        elif name in values:
            try:
                default = ast.literal_eval(key.default)
            except ValueError:  # an expression, as 2**16
                continue
            assert default == values[name], name
            compared += 1
    assert compared > 40


ONE_FUNCTION = '''
from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

def get_config():
    """Returns the defaults."""
    config = ConfigDict()
    config.seed = 0  # of everything
    config.model = model = ConfigDict()  # What the towers are
    # A preset, such as
    # those of CLIP
    model.name = "RN50"
    model.size = placeholder(int)  # in pixels
    config.extra = ConfigDict()  # {name: value}
    return config
'''
ONE_FOR_EACH_SECTION = """
import ml_collections
from ml_collections.config_dict import placeholder

def get_config():
    config = ml_collections.ConfigDict()
    config.seed = 0  # of everything
    config.model = _model()  # What the towers are
    config.extra = ml_collections.ConfigDict()  # {name: value}
    return config

def _model() -> ml_collections.ConfigDict:
    model = ml_collections.ConfigDict()
    # A preset, such as
    # those of CLIP
    model.name = "RN50"
    model.size = placeholder(int)  # in pixels
    return model
"""
AS_DICTS = """
from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

def get_config():
    return ConfigDict(
        {
            "seed": 0,  # of everything
            "model": _model(),  # What the towers are
            "extra": ConfigDict(),  # {name: value}
        }
    )

def _model():
    return ConfigDict(
        dict(
            # A preset, such as
            # those of CLIP
            name="RN50",
            size=placeholder(int),  # in pixels
        )
    )
"""


@pytest.mark.parametrize("source", [ONE_FUNCTION, ONE_FOR_EACH_SECTION, AS_DICTS])
def test_defaults_are_read_whether_sections_have_functions_or_not(source):
    sections = hooks.read_sections(source)
    assert {section.name: section.meaning for section in sections} == {
        "": "",
        "model": "What the towers are",
    }
    assert {
        key.name: (key.default, key.meaning) for section in sections for key in section.keys
    } == {
        "seed": ("0", "of everything"),
        "model.name": ('"RN50"', "A preset, such as those of CLIP"),
        "model.size": ("not set (int)", "in pixels"),
        "extra": ("{}", "{name: value}"),
    }


@pytest.mark.parametrize("source", [ONE_FUNCTION, ONE_FOR_EACH_SECTION, AS_DICTS])
def test_a_key_without_a_comment_ends_the_build_with_its_name(source):
    with pytest.raises(hooks.Undocumented, match=r"model\.size \(line \d+\)"):
        hooks.defaults_table(source.replace("  # in pixels", ""))


def test_a_page_without_the_defaults_ends_the_build(tmp_path):
    with pytest.raises(hooks.Undocumented, match="get_config"):
        hooks.defaults_path(tmp_path)
    with pytest.raises(hooks.Undocumented, match="get_config"):
        hooks.read_sections("def other(): pass")


def test_markers_of_a_page_become_tables_whose_cells_hold_any_comment():
    page = (ROOT / "docs" / "configuration.md").read_text()
    assert page.count(hooks.DEFAULTS_MARKER) == page.count(hooks.EVALUATIONS_MARKER) == 1
    table = hooks.defaults_table(ONE_FUNCTION.replace("# of everything", "# a|b, [0, 1) or <x>"))
    assert "| `seed` | `0` | a\\|b, \\[0, 1) or &lt;x> |" in table
    sources = (ROOT / path for path in hooks.FUNCTIONS)
    functions = hooks.evaluations_table("".join(path.read_text("utf-8") for path in sources))
    for name in ("part", "retrieval", "zeroshot", "linear_probe", "consistency", "robustness"):
        assert f"| `{name}(" in functions


def test_an_entry_of_a_docstring_may_describe_several_parameters():
    split = imported("grouped_parameters").split_groups
    grouped = "Sum.\n\nArgs:\n  a: one.\n  b, *c: both\n    of them.\n\nReturns:\n  x, y: no."
    alone = (
        "Sum.\n\nArgs:\n  a: one.\n  b: both\n    of them.\n  *c: both\n    of them.\n\n"
        "Returns:\n  x, y: no."
    )
    assert split(grouped) == alone
    assert split(alone) == alone


def test_the_manual_builds_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    page = (tmp_path / "configuration" / "index.html").read_text()
    assert "optimizer.warmup_steps" in page and hooks.DEFAULTS_MARKER not in page
    assert not list(tmp_path.rglob("*.py"))
