"""Config files of a user's own: what they may import, and what their mistakes end in."""

import re
import subprocess
import sys

import pytest
from absl import flags

from cyclip_jax import defaults
from cyclip_jax.errors import UserError
from cyclip_jax.runtime import command, config_file
from cyclip_jax.runtime.config_file import ConfigFileParser
from cyclip_jax.runtime.sections import flat
from tests.runs import ROOT

WITHOUT_CONFIGS = """
import os, sys
sys.path = [path for path in sys.path if not os.path.isdir(os.path.join(path, "configs"))]
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
"""
# As from an editable install: the package is found in the checkout, and configs/ is not.
AS_INSTALLED = f"""{WITHOUT_CONFIGS}
import importlib.util
folder = {str(ROOT / "cyclip_jax")!r}
spec = importlib.util.spec_from_file_location(
    "cyclip_jax", folder + "/__init__.py", submodule_search_locations=[folder]
)
package = sys.modules["cyclip_jax"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(package)
from cyclip_jax.runtime import config_file
"""
LOAD = """
config = config_file.ConfigFileParser().parse("mine.py")
print(config.seed, "configs" in sys.modules, "configs.common" in sys.modules)
"""


def run(code, folder, path=""):
    """What a script prints that is run in a folder, with `path` first among those of modules."""
    process = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=folder,
        env={"PYTHONPATH": str(path), "PATH": "", "HOME": str(folder), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout.strip()


def write(folder, imports="from configs import common", first="common.get_config()"):
    text = f"{imports}\n\n\ndef get_config():\n    config = {first}\n    config.seed = 7\n"
    (folder / "mine.py").write_text(text + "    return config\n")


@pytest.mark.parametrize(
    "written",
    [
        {},
        {"imports": "from configs import cc3m", "first": "cc3m.get_config()"},
        {"imports": "import configs.common as common"},
    ],
)
def test_a_file_in_any_folder_may_import_configs_and_leaves_none_behind(tmp_path, written):
    write(tmp_path, **written)
    assert run(AS_INSTALLED + LOAD, tmp_path) == "7 False False"


def test_without_a_checkout_configs_common_is_the_defaults(tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "cyclip_jax").symlink_to(ROOT / "cyclip_jax")
    write(tmp_path)
    code = WITHOUT_CONFIGS + "from cyclip_jax.runtime import config_file\n" + LOAD
    assert run(code, tmp_path, tmp_path / "site") == "7 False False"


def test_a_package_of_the_same_name_wins_and_what_it_lacks_is_ours(tmp_path):
    (tmp_path / "own" / "configs").mkdir(parents=True)
    (tmp_path / "own" / "configs" / "__init__.py").write_text("MINE = True\n")
    (tmp_path / "own" / "configs" / "cc3m.py").write_text("get_config = None\n")
    write(tmp_path, "from configs import MINE, cc3m, common\n\nassert MINE and not cc3m.get_config")
    code = AS_INSTALLED + "sys.path.insert(0, 'own')\n" + LOAD
    code += "import configs\nprint(configs.MINE, hasattr(configs, 'common'))"
    assert run(code, tmp_path).splitlines() == ["7 True False", "True False"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("def get_config():\n    return 1 / 0\n", "mine.py, line 2: ZeroDivisionError: division"),
        ("import no_such_module\n", "mine.py, line 1: ModuleNotFoundError: No module named"),
        ("def get_config(:\n", "mine.py, line 1: SyntaxError: "),
        ("x = 1\n", "mine.py has no function get_config()"),
        ("def get_config():\n    pass\n", "get_config() of .*mine.py returns a NoneType"),
    ],
)
def test_a_mistake_is_said_in_one_sentence_with_its_line(tmp_path, text, sentence):
    (tmp_path / "mine.py").write_text(text)
    pattern = re.escape(sentence).replace(r"\.\*", ".*")
    with pytest.raises(UserError, match=pattern) as refused:
        ConfigFileParser().parse(str(tmp_path / "mine.py"))
    assert "\n" not in str(refused.value)


def test_a_file_that_is_not_there_is_told_with_the_nearest(tmp_path):
    write(tmp_path)
    with pytest.raises(UserError, match=r"there is no file .*mime\.py; did you mean .*mine\.py\?$"):
        ConfigFileParser().parse(str(tmp_path / "mime.py"))
    with pytest.raises(UserError, match=r"there is no file /no/such\.py$"):
        ConfigFileParser().parse("/no/such.py")


def test_what_follows_a_colon_is_given_to_get_config(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from cyclip_jax import defaults\n\n\n"
        "def get_config(name):\n"
        "    config = defaults.get_config()\n"
        "    config.model.name = name\n"
        "    return config\n"
    )
    assert ConfigFileParser().parse(f"{tmp_path / 'mine.py'}:ViT-tiny").model.name == "ViT-tiny"


def flagged(*overrides, file=ROOT / "configs" / "cc3m.py"):
    """The config that a command line makes of a file."""
    argv = ["main", f"--config={file}", *(f"--config.{override}" for override in overrides)]
    values = flags.FlagValues()
    config_file.define_config(values, "", argv=argv)
    command.parse(values, argv)
    return values.config


def test_a_length_on_the_command_line_wins_over_the_files():
    for overrides in (["total_steps=100"], ["num_epochs=None", "total_steps=100"]):
        config = flagged(*overrides)
        assert (config.total_steps, config.num_epochs) == (100, None)
    config = flagged("num_epochs=3", file=ROOT / "configs" / "drawings.py")
    assert (config.total_steps, config.num_epochs) == (None, 3)
    both = flagged("num_epochs=3", "total_steps=100")  # which `checked` refuses
    assert (both.total_steps, both.num_epochs) == (100, 3)
    assert flagged().num_epochs == 64


def test_every_optional_field_can_be_unset_and_no_other_one():
    optional = [k for k, v in flat(defaults.get_config().to_dict()).items() if v is None]
    assert {"data.validation", "data.caption_key", "profile_steps"} < set(optional)
    config = flagged(*(f"{field}=None" for field in optional))
    assert {flat(config.to_dict())[f] for f in optional if f[:5] != "evals"} == {None}
    assert flagged("evals.val=None").evals.val is None
    with pytest.raises(UserError, match=r"config\.seed needs a value; its default is 0"):
        flagged("seed=None")
    with pytest.raises(UserError, match=r'has no field "sead"\. Did you mean "seed"'):
        flagged("sead=None")
