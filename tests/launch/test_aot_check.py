"""launch/aot_check.py: what a step takes of chips that are not there, and what fits instead."""

import json
import platform
import re
import subprocess
import sys

import jax
import pytest

from cyclip_jax import parallel, train
from cyclip_jax.costs import aot
from cyclip_jax.costs.chips import CHIPS
from cyclip_jax.errors import UserError
from cyclip_jax.training.step import jit_step
from launch import aot_check
from tests import tiny
from tests.runs import ROOT

GIB = 2**30
TINY = ("--config=tests/tiny.py", "--config.batch_size=16")
SIZES = {
    "name": "ViT-tiny",
    "image_size": 16,
    "patch_size": 8,
    "vision_layers": 1,
    "vision_width": 16,
    "vision_heads": 2,
}
VIT = tuple(f"--config.model.{name}={value}" for name, value in SIZES.items())
has_libtpu = pytest.mark.skipif(
    (platform.system(), platform.machine()) != ("Linux", "x86_64"), reason="libtpu is for Linux"
)


def figures_of(*arguments, tmp_path):
    """(exit code, the figures that it writes) of the command in this process."""
    path = tmp_path / "figures.json"
    code = aot_check.main([*arguments, f"--json={path}"])
    return code, json.loads(path.read_text())


@pytest.fixture(scope="module")
def on_stand_ins(tmp_path_factory):
    """(config, figures) of the tiny step on two "GPUs", compiled by a CPU's compiler."""
    arguments = (*TINY, *VIT, "--topology=h100:2", "--mesh=data:1,fsdp:2")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(aot, "GPU_PLUGINS", ())
        code, figures = figures_of(*arguments, tmp_path=tmp_path_factory.mktemp("aot"))
    assert code == 0
    return figures


def test_memory_is_what_shapes_and_compiler_say_and_adds_up(on_stand_ins):
    (phase,) = on_stand_ins["phases"]
    memory = phase["memory"]
    assert phase["needed"] == sum(memory.values())
    assert all(size >= 0 for size in memory.values())
    batch = 8 * (16 * 16 * 3 + 8 * 4)  # of one of two devices: uint8 pixels, int32 tokens
    assert (memory["batch"], memory["2 batches in waiting"]) == (batch, 2 * batch)
    assert memory["optimiser state"] == 2 * memory["parameters"] + 4  # two moments and a counter
    assert memory["activations and temporaries"] > batch


def test_bounds_are_counts_over_the_data_sheets_peaks(on_stand_ins):
    (phase,) = on_stand_ins["phases"]
    received = sum(kind["received"] for kind in phase["collectives"].values())
    # The gradient by pixels is not computed, though the convention counts it.
    assert phase["flops"]["step"] > 0.9 * phase["flops"]["model"] > 0
    assert received > 0
    assert phase["floors"] == pytest.approx(
        {
            "compute": phase["flops"]["step"] / 2 / 989e12,
            "memory": phase["memory_bytes"] / 3.35e12,
            "links": received / 450e9,
        }
    )


def test_what_a_cpus_compiler_says_is_marked_as_such(on_stand_ins, capsys):
    assert on_stand_ins["compiler"] == "CPU"
    mesh = parallel.create_mesh(jax.devices()[:2])
    for compiler, told in (("CPU", True), ("GPU", False), ("TPU", False)):
        line = aot_check.headline(tiny.get_config(), "h100:2", mesh, compiler)
        assert ("A CPU's compiler stands in" in line) == told


class Stopped(Exception):
    """Ends a run where its step would be compiled."""


def without_names(program):
    """Of values, which are numbered in another order where something else was traced before."""
    return re.sub(r"%\w+", "%", program)


def test_the_step_is_the_one_that_a_run_compiles(pairs, tmp_path, monkeypatch):
    config = tiny.get_config()
    config.data.train, config.evals = str(pairs), {}
    config.mesh.fsdp, config.mesh.fsdp_min_size, config.batch_size = 2, 100, 16
    config.model.update(SIZES)
    programs = []

    class Recorder:
        def __init__(self, *args, **kwargs):
            self.jitted = jit_step(*args, **kwargs)

        def lower(self, *args):
            # As shapes: a new run's logit scale is of a weak type, a continued one's is not.
            shapes = jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), args
            )
            programs.append(without_names(self.jitted.lower(*shapes).as_text()))
            raise Stopped

    monkeypatch.setattr("cyclip_jax.training.phases.jit_step", Recorder)
    with pytest.raises(Stopped):
        train.train(config.lock(), tmp_path)
    mesh = parallel.create_mesh(fsdp=2)
    step = aot.abstract_step(config, mesh)
    assert programs == [without_names(step.lower().as_text())]


@has_libtpu
def test_a_step_is_compiled_for_a_tpu_slice_in_a_fresh_process(tmp_path):
    path = tmp_path / "figures.json"
    command = [sys.executable, "launch/aot_check.py", *TINY, *VIT]
    command += ["--topology=v5e:2x4", "--mesh=data:4,fsdp:2", f"--json={path}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    figures = json.loads(path.read_text())
    (phase,) = figures["phases"]
    assert figures["compiler"] == "TPU"
    assert phase["memory"]["program"] > 0
    assert phase["needed"] == sum(phase["memory"].values()) < 0.1 * GIB
    assert "all-reduce" in phase["collectives"]
    assert "of 15.75 GiB: fits" in done.stdout


def test_without_libtpu_the_error_says_what_to_install(monkeypatch, capsys):
    def no_library(**_):
        raise RuntimeError("JAX TPU support not installed; cannot generate TPU topology.")

    monkeypatch.setattr("jax.experimental.topologies.get_topology_desc", no_library)
    assert aot_check.main([*TINY, "--topology=v5e:2x4"]) == 2
    assert "pip install libtpu" in capsys.readouterr().err


def test_a_dry_run_says_what_it_would_compile_and_compiles_nothing(monkeypatch, capsys):
    monkeypatch.setattr(aot, "GPU_PLUGINS", ())
    monkeypatch.delattr(aot.AbstractStep, "compile")
    arguments = ["--topology=h100:2x4", "--batch=64", "--mesh=data:2,fsdp:4", "--dry-run"]
    assert aot_check.main(["--config=tests/tiny.py", *arguments]) == 0
    shown = capsys.readouterr().out
    assert "64 pairs a step on h100:2x4: 8 chips, mesh data 2 × fsdp 4" in shown
    assert "warmup_steps: 10\n" in shown


@pytest.mark.parametrize(
    ("arguments", "said"),
    (
        (["--topology=v9:2x2"], "--topology=v9:2x2 names no known chip; choose one of v4, v5e"),
        (["--topology=v5e"], "how many chips there are along each dimension; write e.g. v5e:4x8"),
        (["--topology=v5e:2x0"], "how many chips there are along each dimension"),
        (["--topology=v5e:32x32"], "at most 16x16"),
        (["--topology=v5e:2x32"], "at most 16x16"),
        (["--topology=v4:4x4"], "3 dimensions and at most 4096 chips"),
        (["--topology=h100:8", "--mesh=data:3,fsdp:2"], "is 3 × 2 = 6 chips, and the topology"),
        (["--topology=h100:8", "--mesh=4x2"], "write it as data:64,fsdp:4"),
        (["--topology=h100:8", "--mesh=data:4,tensor:2"], "the axes are data and fsdp"),
        (["--topology=h100:8", "--batch=12"], "does not split evenly over 8 devices"),
        (["--topology=h100:8", "--config.mesh.fsdp=3"], "3 does not divide the 8 devices"),
        (["--topology=h100:8", "--config.model.nme=x"], 'Did you mean "name"'),
        (["--topology=h100:8", "--config.batch_size=many"], "--config.batch_size=many"),
        (["--topology=h100:8", "--compare=model.dtype"], "write FIELD=VALUE,VALUE"),
        (["--topology=h100:8", "--compare=model.nme=a"], "model.nme=a: the config has no such"),
        (["--topology=h100:8", "--compare=batch_size=a"], "batch_size=a: the field is of another"),
        (["--topology=h100:8", "--pairs=9", "--compare=batch_size=8,16"], "leave out one"),
        (["--topology=h100:8", "--pairs=7", "--config.num_epochs=1"], "has only 7 examples"),
        (["--topology=h100:8", "--price=1.2"], "goes with --pairs=N"),
        (["--topology=h100:8", "--pairs=9", "--price=-1"], "goes with --pairs=N"),
        (["--topology=h100:8", "--nope"], "nope"),
        (["--topology=h100:8", "nope"], "unknown argument nope"),
        ([], "--topology"),
        (["--topology=h100:8", "--config=nowhere.py"], "nowhere.py"),
    ),
)
def test_bad_input_ends_with_2_and_says_what_is_wrong(arguments, said, monkeypatch, capsys):
    monkeypatch.setattr(aot, "GPU_PLUGINS", ())
    monkeypatch.delattr(aot.AbstractStep, "compile")
    try:
        code = aot_check.main([*TINY, *arguments])
    except SystemExit as end:  # argparse's
        code = end.code
    assert code == 2
    assert said in capsys.readouterr().err


def test_a_comparison_has_a_row_for_each_combination(monkeypatch, tmp_path, capsys, on_stand_ins):
    (phase,) = on_stand_ins["phases"]

    def examine(self, config):
        return [phase | {"memory_bytes": 1e9 * config.batch_size, "fits": config.mesh.fsdp == 2}]

    monkeypatch.setattr(aot, "GPU_PLUGINS", ())
    monkeypatch.setattr(aot_check.Check, "examine", examine)
    comparisons = ("--compare=batch_size=16,32", "--compare=mesh.fsdp=1,2")
    code, figures = figures_of(*TINY, "--topology=h100:2", *comparisons, tmp_path=tmp_path)
    assert code == 1  # not all of them fit
    settings = [tuple(row["settings"].values()) for row in figures["comparison"]]
    assert settings == [(16, 1), (16, 2), (32, 1), (32, 2)]
    rows = capsys.readouterr().out.splitlines()[-4:]
    assert rows[0].startswith("| `batch_size=16`, `mesh.fsdp=1` | 16.0 GB |")
    assert [row.endswith("does not fit |") for row in rows] == [True, False, True, False]


def test_a_whole_run_is_bound_by_the_slowest_bounds_of_its_phases(monkeypatch, tmp_path, capsys):
    seconds = iter((0.5, 1.0))

    def examine(self, config):
        assert (config.total_steps, config.num_epochs) == (100, None)
        return [
            {"first_step": first, "fits": True, "needed": 1, "floors": {"a": next(seconds), "b": 0}}
            for first in (0, 60)
        ]

    monkeypatch.setattr(aot, "GPU_PLUGINS", ())
    monkeypatch.setattr(aot_check.Check, "examine", examine)
    monkeypatch.setattr(aot_check, "lines_of", lambda figures, check: ())
    pairs = ("--config.total_steps=None", "--config.num_epochs=4", "--batch=16", "--pairs=415")
    code, figures = figures_of(*TINY, "--topology=h100:2", *pairs, "--price=90", tmp_path=tmp_path)
    assert code == 0
    seconds_of_run = 60 * 0.5 + 40 * 1.0
    assert figures["run"] == pytest.approx(
        {"steps": 100, "hours": seconds_of_run / 3600, "chip_hours": 2 * seconds_of_run / 3600}
    )
    said = capsys.readouterr().out.splitlines()[-1]
    assert said == (
        "the whole run: 100 steps, at least 0.0194 hours, 0.03889 chip-hours, 3.5 at 90 a chip-hour"
    )


def test_what_the_compiler_refuses_is_a_row_too():
    refused = {"fits": False, "needed": 20 * GIB, "memory": None}
    assert aot_check.cells_of(refused)[-2:] == ["–", "at least 20.00 GiB, does not fit"]


def test_help_ends_with_0(capsys):
    with pytest.raises(SystemExit, match=r"^0$"):
        aot_check.main(["--help"])
    assert "v5e:16x16" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("message", "needed", "available"),
    (
        ("RESOURCE_EXHAUSTED: … hbm. Used 21.95G of 15.48G hbm. Exceeded", 21.95, 15.48),
        ("Ran out of memory in memory space hbm. Used 512.00M of 256M hbm.", 0.5, 0.25),
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
            "temporaries (1.50T) exceeds available HBM (30.75G).",
            1536 + 3,
            30.75,
        ),
    ),
    ids=("program", "small-units", "temporaries-alone"),
)
def test_a_compilers_refusal_is_read(message, needed, available):
    error = aot.read_overflow(message, arguments=3 * GIB)
    assert (error.needed, error.available) == (needed * GIB, available * GIB)


def test_another_failure_is_no_refusal():
    assert aot.read_overflow("INTERNAL: Ran out of registers") is None


def affine(constant, slope, calls):
    def needs(batch_size):
        calls.append(batch_size)
        return constant + slope * batch_size

    return needs


def test_the_largest_batch_is_found_along_a_line_with_three_compilations():
    calls = []
    found = aot.largest_batch(affine(1000, 3, calls), 10_000, multiple=4, start=1000)
    assert found == (2976, 1000 + 3 * 2976)  # a multiple of 8 · 4; the next, 3008, needs 10,024
    assert len(calls) == 3


def test_a_start_that_does_not_fit_is_halved():
    calls = []
    found = aot.largest_batch(affine(1000, 3, calls), 1100, multiple=4, start=1000)
    assert found == (28, 1084)  # close enough to stop there


def test_close_to_all_of_the_memory_is_enough():
    calls = []
    assert aot.largest_batch(affine(0, 1, calls), 1000, multiple=1, start=960) == (960, 960)
    assert calls == [960, 480]


def test_a_line_that_bends_upwards_is_followed_back_to_what_fits():
    def needs(batch_size):
        return 1000 + 3 * batch_size + (20 * (batch_size - 2000) if batch_size > 2000 else 0)

    batch_size, needed = aot.largest_batch(needs, 10_000, multiple=4, start=1000)
    assert needed == needs(batch_size) <= 10_000
    assert batch_size > 1700  # of 2086


def test_where_not_one_row_of_each_device_fits_there_is_no_batch():
    assert aot.largest_batch(lambda _: 11, 10, multiple=8, start=800) is None


def made_up(monkeypatch, needs):
    """Lets a step need what `needs` gives for its config, with nothing compiled."""

    def examine(self, config, *, only_memory=False):
        needed = needs(config)
        self.mesh(config)
        return [{"first_step": 0, "fits": self.fits(needed), "needed": needed, "memory": None}]

    monkeypatch.setattr(aot, "GPU_PLUGINS", ())
    monkeypatch.setattr(aot_check.Check, "examine", examine)


def test_what_does_not_fit_ends_with_1_and_a_list_of_what_does(monkeypatch, tmp_path, capsys):
    available = CHIPS["h100"].memory

    def needs(config):
        activations = 2e9 * config.batch_size / 8 / config.micro_batches
        if config.model.vision_remat == "full":
            activations /= 2
        return 20e9 / config.mesh.fsdp + activations

    made_up(monkeypatch, needs)
    arguments = ("--config=tests/tiny.py", "--topology=h100:8", "--batch=256")
    code, figures = figures_of(*arguments, tmp_path=tmp_path)
    assert code == 1
    assert [each["settings"] for each in figures["suggestions"]] == [
        {"batch_size": 160},
        {"model.vision_remat": "full", "model.text_remat": "full"},
        {"micro_batches": 2},
    ]
    assert all(each["needed"] <= available for each in figures["suggestions"])
    assert "GiB with --config.batch_size=160\n" in capsys.readouterr().out


def test_remedies_are_what_may_suffice_and_divides_the_batch():
    config = tiny.get_config()
    config.batch_size, config.model.vision_remat, config.model.text_remat = 256, "full", "full"
    parts = [{"micro_batches": 8}, {"micro_batches": 16}, {"micro_batches": 32}]
    assert list(aot_check.remedies(config, 8, excess=5)) == [parts, [{"mesh.fsdp": 8}]]
    config.mesh.fsdp, config.batch_size = 2, 128
    assert list(aot_check.remedies(config, 8, excess=5)) == [parts[:2]]


def test_a_state_that_is_too_large_is_split(monkeypatch, tmp_path):
    made_up(monkeypatch, lambda config: 70e9 / config.mesh.fsdp)
    arguments = (*TINY, "--topology=h100:8", "--batch=64")
    code, figures = figures_of(*arguments, tmp_path=tmp_path)
    assert code == 1
    assert [each["settings"] for each in figures["suggestions"]] == [{"mesh.fsdp": 8}]


def test_what_fits_is_asked_for_more_only_on_demand(monkeypatch, tmp_path):
    made_up(monkeypatch, lambda config: 1e9 * config.batch_size)
    arguments = (*TINY, "--topology=h100:8")
    assert figures_of(*arguments, tmp_path=tmp_path)[1]["suggestions"] == []
    code, figures = figures_of(*arguments, "--suggest", tmp_path=tmp_path)
    assert (code, figures["suggestions"]) == (
        0,
        [{"settings": {"batch_size": 56}, "needed": 56e9}],
    )


@pytest.mark.parametrize("name", CHIPS)
def test_every_chip_has_a_peak_and_sane_figures(name):
    chip = CHIPS[name]
    assert chip.peak_flops > 1e14
    assert 10 * GIB < chip.memory < 300 * GIB
    assert 1e10 < chip.link_bandwidth < chip.memory_bandwidth < 1e13


def test_a_config_is_not_changed_by_what_is_tried():
    config = tiny.get_config().lock()
    changed = aot_check.with_settings(config, {"mesh.fsdp": 8, "model.vision_remat": "full"})
    assert (changed.mesh.fsdp, changed.model.vision_remat) == (8, "full")
    assert (config.mesh.fsdp, config.model.vision_remat) == (1, "none")
    with pytest.raises(UserError, match="--mesh"):
        aot_check.fsdp_of("fsdp:8", 8)
