"""`python -m cyclip_jax.export`, as its users run it on a trained run."""

import json
import subprocess
import sys

import pytest

from cyclip_jax.errors import UserError
from cyclip_jax.export import DTYPES, FORMATS, export_checkpoint, main
from cyclip_jax.interop import files, formats
from cyclip_jax.interop.files import read_weights, write_safetensors
from cyclip_jax.workdir.metrics import metrics_at
from tests.runs import ROOT, finish, start_process


@pytest.fixture(scope="module")
def exported(finished, environment_with_torch, tmp_path_factory):
    """(folder, output) of the run, exported for open_clip."""
    folder = tmp_path_factory.mktemp("exported") / "tiny-cyclip"
    process = start_process(
        environment_with_torch,
        "export",
        f"--checkpoint={finished[0]}",
        "--format=open_clip",
        f"--output={folder}",
        "--license=cc-by-4.0",
    )
    return folder, finish(process)


def test_the_command_says_what_it_wrote(exported):
    folder, output = exported
    files = sorted(path.name for path in folder.iterdir())
    first, *warnings, last = output.strip().splitlines()
    assert first.startswith("starting: export of ") and first.endswith(" as open_clip")
    assert last == f"{folder}: {', '.join(files)}"
    assert len(warnings) == 1 and "Readers of openai.pt" in warnings[0]
    assert {"open_clip_config.json", "open_clip_model.safetensors", "openai.pt"} < set(files)
    assert {"README.md", "tokenizer.json", "tokenizer.model", "cyclip_jax.json"} < set(files)
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_open_clip_in_a_fresh_process_has_the_recall_of_the_run(exported, finished, pairs):
    """With our pixels: among 24 pairs one rounded otherwise would already be four points."""
    folder, _ = exported
    command = [sys.executable, "-m", "benchmarks.open_clip_recall"]
    process = subprocess.run(
        [*command, f"--export={folder}", f"--pairs={pairs}", "--pixels=ours"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    theirs, ours = json.loads(process.stdout), metrics_at(finished[0], 120)
    for direction in ("image_to_text", "text_to_image"):
        for k in (1, 5, 10):
            name = f"{direction}_recall@{k}"
            assert theirs[name] == pytest.approx(ours[f"val/{name}"], abs=1e-3), name
    assert theirs["pairs"] == 24
    assert theirs["text_to_image_recall@1"] > 3 / 24  # three times what chance gets


def test_the_card_says_what_a_user_wants_to_know(exported, finished):
    card = (exported[0] / "README.md").read_text()
    head = card.split("---")[1]
    assert "license: cc-by-4.0" in head and "library_name: open_clip" in head
    for text in (
        "# tiny-cyclip",
        'open_clip.create_model_and_transforms("local-dir:tiny-cyclip")',
        'cyclip_jax.load("tiny-cyclip")',
        "step 120 of a run",
        "in-modal weight 0.25",
        "train.csv",
        '"learning_rate": 0.005',
        "image_to_text_recall@1",
    ):
        assert text in card, text
    assert str(finished[0]) not in card


def test_the_config_says_how_pictures_are_prepared(exported):
    config = json.loads((exported[0] / "open_clip_config.json").read_text())
    assert config["preprocess_cfg"] == {
        "mean": [0.48145466, 0.4578275, 0.40821073],
        "std": [0.26862954, 0.26130258, 0.27577711],
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    }
    assert config["model_cfg"]["quick_gelu"] is True


def test_without_torch_open_clips_folder_lacks_one_file_and_says_so(
    finished, tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, "torch", None)  # as if it were not installed
    arguments = [f"--checkpoint={finished[0]}", "--format=open_clip", f"--output={tmp_path / 'x'}"]
    main(arguments)
    output = capsys.readouterr().out
    assert "openai.pt is left out" in output and "cyclip_jax[torch]" in output
    assert not (tmp_path / "x" / "openai.pt").exists()
    with pytest.raises(UserError, match=r"pip install 'cyclip_jax\[torch\]'"):
        export_checkpoint(finished[0], export_format="cyclip", output=tmp_path / "y")
    assert {path.name for path in tmp_path.iterdir()} == {"x"}


def test_a_resnet_for_transformers_is_refused_in_one_sentence(finished, tmp_path):
    arguments = [f"--checkpoint={finished[0]}", "--format=transformers", f"--output={tmp_path}/x"]
    with pytest.raises(
        SystemExit, match=r"error: .* has a ResNet, and transformers has no CLIP with a ResNet"
    ):
        main(arguments)
    assert not list(tmp_path.iterdir())


def test_an_earlier_export_is_replaced_and_nothing_else(finished, tmp_path):
    def export(output, **arguments):
        return export_checkpoint(finished[0], export_format="open_clip", output=output, **arguments)

    export(tmp_path / "x")
    export(tmp_path / "x", dtype="float16", step=100)
    description = json.loads((tmp_path / "x" / "cyclip_jax.json").read_text())
    assert (description["dtype"], description["step"]) == ("float16", 100)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "y").mkdir()  # empty: nothing is lost
    export(tmp_path / "y")
    (tmp_path / "y" / "notes.txt").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "x")
    export(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    for other, message in (
        (finished[0], "holds the model to be exported"),
        (finished[0].parent, "holds the model to be exported"),
        (tmp_path, r"is left alone.*\(file, link, x, y\)"),
        (tmp_path / "y", r"is left alone.*\(notes.txt\)"),
        (tmp_path / "file", "is left alone"),
        (tmp_path / "file" / "z", "cannot be written"),
    ):
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(UserError, match=message):
            export(other)
        assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(UserError, match="holds the model to be exported"):
        export_checkpoint(tmp_path / "x", export_format="cyclip", output=tmp_path / "x")


def test_weights_that_are_not_the_models_are_not_exported(finished, tmp_path):
    export_checkpoint(finished[0], export_format="open_clip", output=tmp_path / "x")
    weights = read_weights(tmp_path / "x" / "open_clip_model.safetensors")
    del weights["ln_final.bias"]
    write_safetensors(tmp_path / "x" / "open_clip_model.safetensors", weights)
    with pytest.raises(UserError, match=r"missing \(1\):\n    ln_final.bias"):
        export_checkpoint(tmp_path / "x", export_format="cyclip", output=tmp_path / "y")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_half_precision_halves_the_file(finished, tmp_path):
    sizes = {}
    for dtype in ("float32", "float16", "bfloat16"):
        folder = tmp_path / dtype
        export_checkpoint(finished[0], export_format="open_clip", output=folder, dtype=dtype)
        sizes[dtype] = (folder / "open_clip_model.safetensors").stat().st_size
    for half in ("float16", "bfloat16"):
        assert sizes[half] < 0.6 * sizes["float32"]


def test_an_unknown_format_is_named(finished, tmp_path):
    with pytest.raises(UserError, match="unknown format 'keras'; choose one of open_clip, cyclip"):
        export_checkpoint(finished[0], export_format="keras", output=tmp_path / "x")


def test_the_flags_choices_are_those_of_the_tables():
    assert tuple(formats.READERS_TOWERS) == FORMATS and tuple(files.DTYPES) == DTYPES
