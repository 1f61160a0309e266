"""What is in a data set: faults, copies, pictures of the validation data, and what is left."""

import csv
import json
import re

import numpy as np
import pytest
import skimage.data
from PIL import Image, ImageEnhance

from benchmarks.copies import compressed, turned
from cyclip_jax.data import inspect as door
from cyclip_jax.data.decoding import pixels_of
from cyclip_jax.data.inspection import duplicates, inspecting
from cyclip_jax.data.inspection import examples as examples_module
from cyclip_jax.data.inspection.alignment import are_copies
from cyclip_jax.data.inspection.duplicates import (
    alike,
    alike_others,
    changed_copies,
    copies_of_others,
    same_bytes,
)
from cyclip_jax.data.inspection.neighbours import Cells
from cyclip_jax.data.inspection.thumbnails import Thumbnails, descriptors, is_flat, thumbnail
from cyclip_jax.data.sources import create_source
from tests.conftest import unit_rows
from tests.runs import status_of

SIDE = 96


def photographs():
    """Parts of photographs that do not overlap, RGB [SIDE, SIDE]."""
    found = []
    for name in ("astronaut", "coffee", "chelsea", "rocket", "camera", "coins", "page"):
        whole = Image.fromarray(getattr(skimage.data, name)()).convert("RGB")
        for top in range(0, whole.height - SIDE + 1, SIDE):
            for left in range(0, whole.width - SIDE + 1, SIDE):
                found.append(whole.crop((left, top, left + SIDE, top + SIDE)))
    return found


def cut(picture, left, top, right, bottom):
    """Without so many pixels at each edge."""
    return picture.crop((left, top, picture.width - right, picture.height - bottom))


CHANGES = {
    "compressed": compressed,
    "halved": lambda picture: picture.resize((SIDE // 2, SIDE // 2), Image.Resampling.BICUBIC),
    "cut at a corner": lambda picture: cut(picture, 5, 0, 0, 5),
    "cut unevenly": lambda picture: cut(picture, 1, 4, 4, 1),
    "cut at every edge": lambda picture: cut(picture, 5, 5, 5, 5),
    "lighter": lambda picture: ImageEnhance.Brightness(picture).enhance(1.15),
    "darker": lambda picture: ImageEnhance.Brightness(picture).enhance(0.8),
    "more contrast": lambda picture: ImageEnhance.Contrast(picture).enhance(1.3),
    "less contrast": lambda picture: ImageEnhance.Contrast(picture).enhance(0.7),
    "more colour": lambda picture: ImageEnhance.Color(picture).enhance(1.5),
    "less colour": lambda picture: ImageEnhance.Color(picture).enhance(0.5),
    "other hues": lambda picture: turned(picture, 0.03),
    "grey": lambda picture: picture.convert("L").convert("RGB"),
    "cut, compressed and lighter": lambda picture: compressed(
        ImageEnhance.Brightness(cut(picture, 0, 3, 4, 0)).enhance(1.1), 75
    ),
}


def thumbnails_of(pictures):
    found = [thumbnail(np.asarray(picture)) for picture in pictures]
    return Thumbnails(*map(np.concatenate, zip(*found, strict=True)))


def ignored(more):
    pass


@pytest.fixture(scope="module")
def parts():
    found = photographs()
    flat = is_flat(thumbnails_of(found).luma)
    return [picture for picture, is_blank in zip(found, flat, strict=True) if not is_blank]


@pytest.fixture(scope="module")
def shown(parts):
    return thumbnails_of(parts)


# Copies


@pytest.mark.parametrize("change", CHANGES)
def test_changed_copies_are_found_and_nothing_else(parts, shown, change):
    """At least 95 of 100 are found, and of those that are told of 99 of 100 are copies."""
    n = len(parts)
    assert n > 100
    copies = thumbnails_of(map(CHANGES[change], parts))
    both = Thumbnails(*(np.concatenate(planes) for planes in zip(shown, copies, strict=True)))
    originals = changed_copies(both, ignored)
    right = originals[n:] == np.arange(n)
    assert right.mean() >= 0.95
    wrong = (originals[:n] >= 0).sum() + ((originals[n:] >= 0) & ~right).sum()
    assert wrong <= 0.01 * right.sum()
    # And among others; and whichever of the two comes first.
    assert (copies_of_others(copies, shown, ignored) == np.arange(n)).mean() >= 0.95
    assert (copies_of_others(shown, copies, ignored) == np.arange(n)).mean() >= 0.95


def test_what_is_no_copy(parts, shown):
    """Another side, another part, another colour, another detail."""
    n = len(parts)
    others = {
        "mirrored": [picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for picture in parts],
        "turned": [picture.rotate(90) for picture in parts],
        "negative": [Image.fromarray(255 - np.asarray(picture)) for picture in parts],
        "covered": [covered(picture) for picture in parts],
    }
    for name, pictures in others.items():
        assert are_copies(shown, thumbnails_of(pictures)).mean() <= 0.03, name
    vivid = [row for row in range(n) if shown.chroma[row].std() > 12]
    assert len(vivid) > 15
    blue = [turned(parts[row], 0.4) for row in vivid]
    assert not are_copies(shown.at(vivid), thumbnails_of(blue)).any()


def covered(picture):
    """With a disc of a sixteenth of the area, of which one half is white and one half black."""
    pixels = np.array(picture)
    y, x = np.mgrid[:SIDE, :SIDE] - SIDE / 2
    disc = np.hypot(x, y) < SIDE * 0.14
    pixels[disc] = np.where(x[disc] < 0, 0, 255)[:, None]
    return Image.fromarray(pixels)


def test_flat_pictures_are_copies_where_they_are_equal():
    colours = [(255, 255, 255), (254, 254, 254), (200, 0, 0), (255, 255, 255), (0, 0, 0)]
    flat = [Image.new("RGB", (40 + 3 * i, 50), colour) for i, colour in enumerate(colours)]
    assert changed_copies(thumbnails_of(flat), ignored).tolist() == [-1, -1, -1, 0, -1]
    white = thumbnails_of([flat[0]])
    assert copies_of_others(thumbnails_of(flat), white, ignored).tolist() == [0, -1, -1, 0, -1]


def test_slow_changes_of_light_are_no_copies_of_one_another():
    """Of skies at different hours nothing tells which is which."""
    x = np.linspace(0, 1, SIDE)
    skies = [np.outer(60 * x**p + 40 * (1 - x) * q, np.ones(SIDE)) for p in (1, 2) for q in (0, 2)]
    skies = [Image.fromarray(sky.astype(np.uint8)).convert("RGB") for sky in skies]
    thumbnails = thumbnails_of(skies)
    assert is_flat(thumbnails.luma).all() and thumbnails.luma.std(axis=(1, 2)).min() > 5
    assert changed_copies(thumbnails, ignored).tolist() == [-1] * 4


def test_all_of_a_crowd_are_copies_of_the_first(parts, monkeypatch):
    """Of which each is compared with few others, although all are alike."""
    monkeypatch.setattr(duplicates, "_BLOCK", 60)
    rng = np.random.default_rng(0)
    pixels = np.asarray(parts[5]).astype(int)
    crowd = [
        Image.fromarray((pixels + rng.integers(-4, 5, pixels.shape)).clip(0, 255).astype(np.uint8))
        for _ in range(200)
    ]
    originals = changed_copies(thumbnails_of(crowd), ignored)
    assert originals[0] == -1 and (originals[1:] == 0).all()


def test_a_copy_of_a_copy_is_told_of_an_original():
    same = np.array([[1], [2], [1], [1], [2], [3]], np.uint8)
    assert same_bytes(same).tolist() == [-1, -1, 0, 0, 1, -1]
    assert same_bytes(same, np.array([[3], [1], [3]], np.uint8)).tolist() == [1, -1, 1, 1, -1, 0]
    angles = np.array([0.0, 0.3, 0.6, 2.0, 0.1])
    rows = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    least = np.cos(0.35)
    # 2 is near to 1 alone, which is a copy itself.
    assert alike(rows, least, ignored).tolist() == [-1, 0, -1, -1, 0]
    assert alike_others(rows, rows[1:3], least, ignored).tolist() == [0, 0, 0, -1, 0]


def test_cells_find_what_a_comparison_of_all_finds(shown):
    rows = np.concatenate([unit_rows(0, 400, 48), descriptors(shown.luma, 0)]).astype(np.float32)
    moved = rows + 0.03 * unit_rows(1, len(rows), 48)
    moved /= np.linalg.norm(moved, axis=1, keepdims=True)
    cells = Cells(rows, np.arange(len(rows)))
    before = np.arange(len(rows)) + 1
    found = cells.near(moved.astype(np.float32), 0.9, before=before)
    wanted = moved @ rows.T >= 0.9
    wanted &= np.arange(len(rows))[None] < before[:, None]
    pairs = np.zeros_like(wanted)
    pairs[found.query, found.owner] = True
    assert wanted.sum() >= len(rows)
    assert (pairs & wanted).sum() >= 0.99 * wanted.sum()
    products = (moved @ rows.T)[found.query, found.owner]
    np.testing.assert_allclose(found.product, products, atol=2e-3)
    allowed = np.arange(len(rows)) % 2 == 0
    few = cells.near(moved.astype(np.float32), 0.9, before=before, allowed=allowed)
    assert set(few.owner) == set(found.owner[allowed[found.owner]])


# The command


@pytest.fixture(scope="module")
def data(parts, tmp_path_factory):
    """A folder with 40 pictures and everything that may be wrong with them."""
    folder = tmp_path_factory.mktemp("inspected")
    rows = []
    for number, picture in enumerate(parts[:40]):
        picture.save(folder / f"{number}.png")
        rows.append([f"{number}.png", f"part {number}"])
    rows[3][1] = rows[9][1] = rows[21][1] = "untitled"
    rows[5][1] = "a word " * 60
    (folder / "copy.png").write_bytes((folder / "2.png").read_bytes())
    compressed(parts[4]).save(folder / "small.jpg", quality=70)
    cut(parts[6], 4, 4, 0, 0).save(folder / "cut.png")
    Image.new("RGB", (30, 40), "white").save(folder / "white.png")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff no picture")
    rows += [["copy.png", "part 2"], ["small.jpg", "another"], ["cut.png", "and another"]]
    rows += [["white.png", "nothing"], ["broken.jpg", "broken"], ["missing.png", "lost"]]
    rows += [["7.png", " "]]
    validation = [["10.png", "held out"], ["small.jpg", "too"], ["darker.png", "as well"]]
    ImageEnhance.Brightness(parts[11]).enhance(0.8).save(folder / "darker.png")
    parts[60].save(folder / "new.png")
    validation += [["new.png", "new"], ["missing.png", "lost"]]
    for name, content in (("train.csv", rows), ("val.csv", validation)):
        with open(folder / name, "w", newline="") as file:
            csv.writer(file).writerows([["image", "caption"], *content])
    return folder


def run(data, output, *flags, code=0):
    """The files of an inspection, {name: bytes}."""
    arguments = [f"--data={data / 'train.csv'}", f"--output={output}", "--workers=1", *flags]
    assert status_of(door.main, arguments) == code
    return {path.name: path.read_bytes() for path in output.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def inspected(data, tmp_path_factory):
    """(its files, the folder of the list)."""
    folder = tmp_path_factory.mktemp("result")
    flags = [f"--validation={data / 'val.csv'}", f"--clean={folder / 'clean'}"]
    return run(data, folder / "out", *flags), folder / "clean"


def findings_of(files):
    return json.loads(files["inspect.json"])


def numbers(examples):
    return [example["example"] for example in examples]


def test_each_finding_is_told_with_its_examples(inspected):
    files, _ = inspected
    found = findings_of(files)
    assert (found["examples"], found["readable"]) == (47, 44)
    assert {one["name"]: one["reason"] for one in found["unreadable"]["examples"]} == {
        "broken.jpg": "the image cannot be decoded",
        "missing.png": "the file is missing",
        "7.png": "the caption is empty",
    }
    copies = found["copies"]
    assert list(copies) == ["same_file", "changed_copy"]
    assert copies["same_file"] == {
        "count": 1,
        "with_another_caption": 0,
        "groups": [
            {
                "original": {"example": 2, "name": "2.png"},
                "copies": [{"example": 40, "name": "copy.png"}],
            }
        ],
    }
    changed = copies["changed_copy"]
    assert changed["count"] == changed["with_another_caption"] == 2
    groups = {group["original"]["example"]: numbers(group["copies"]) for group in changed["groups"]}
    assert groups == {4: [41], 6: [42]}
    captions = found["captions"]
    assert numbers(captions["cut"]["examples"]) == [5]
    assert captions["cut"]["examples"][0]["tokens"] == 122
    (repeated, of_copy) = captions["repeated"]["most"]
    assert (repeated["caption"], repeated["count"]) == ("untitled", 3)
    assert numbers(repeated["examples"]) == [3, 9, 21]
    assert numbers(of_copy["examples"]) == [2, 40]
    assert captions["tokens"]["least"] == 3 and captions["tokens"]["most"] == 122
    pictures = found["pictures"]
    assert numbers(pictures["flat"]["examples"]) == [43]
    assert pictures["shorter_side"]["least"] == 30 and pictures["width"]["most"] == SIDE
    assert pictures["shapes"][0] == {"width": SIDE, "height": SIDE, "examples": 42}
    assert sum(pictures["bytes"]["histogram"]["counts"]) == 44


def test_pictures_of_the_validation_data_are_found(inspected):
    found = findings_of(inspected[0])["in_validation"]
    pairs = {
        one["example"]: (one["kind"], one["of"]["name"], one["of"]["example"])
        for one in found["examples"]
    }
    assert pairs == {
        4: ("changed_copy", "small.jpg", 1),
        10: ("same_file", "10.png", 0),
        11: ("changed_copy", "darker.png", 2),
        41: ("same_file", "small.jpg", 1),
    }
    assert found["sets"][0]["readable"] == 4 and found["count"] == 4


def test_the_list_leaves_out_what_was_found(data, inspected):
    """An example that is out for two reasons counts for the first of them."""
    files, clean = inspected
    source = create_source(
        "auto", str(data / "train.csv"), config_key="data.train", kept=str(clean)
    )
    out = {44, 45, 46, 4, 10, 11, 41, 40, 42}
    assert source.rows.tolist() == [row for row in range(47) if row not in out]
    assert source.keys([4]) == ["5.png"]
    manifest = json.loads((clean / "manifest.json").read_text())
    assert manifest["left_out"] == {
        "unreadable": 3,
        "in_validation": 4,
        "same_file": 1,
        "changed_copy": 1,
    }
    page = files["inspect.html"].decode()
    assert "38" in page and "examples that stay" in page
    again = findings_of(files)
    assert again["settings"]["validation"] == [str(data / "val.csv")]


def test_a_killed_inspection_goes_on_to_the_same_bytes(data, inspected, tmp_path, monkeypatch):
    """Killed after the first of its blocks, while it compares, and before its numbers are there."""
    flags = [f"--validation={data / 'val.csv'}", f"--clean={tmp_path / 'clean'}"]
    monkeypatch.setattr(inspecting, "BLOCK", 20)
    looked, calls = examples_module._look, []

    def once(rows):
        calls.append(rows)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return looked(rows)

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(examples_module, "_look", once)
    run(data, tmp_path / "out", *flags, code=130)
    for name in ("findings_of", "write_json"):
        monkeypatch.setattr(inspecting, name, interrupted)
        run(data, tmp_path / "out", *flags, code=130)
        monkeypatch.undo()
        monkeypatch.setattr(inspecting, "BLOCK", 20)
        monkeypatch.setattr(examples_module, "_look", once)
    files = run(data, tmp_path / "out", *flags)
    assert [rows.start for rows in calls] == [0, 20, 20, 40, 0]
    assert files == inspected[0]
    assert (tmp_path / "clean" / "kept.npy").read_bytes() == (
        inspected[1] / "kept.npy"
    ).read_bytes()


def test_workers_and_blocks_change_nothing(data, tmp_path, monkeypatch):
    """And a list is the same that is written later, from what was found before."""
    alone = run(data, tmp_path / "alone", f"--clean={tmp_path / 'first'}")
    monkeypatch.setattr(inspecting, "BLOCK", 17)
    assert run(data, tmp_path / "out", "--workers=2") == alone
    monkeypatch.setattr(inspecting, "findings_of", None)
    assert run(data, tmp_path / "out", f"--clean={tmp_path / 'later'}") == alone
    for name in ("kept.npy", "manifest.json"):
        later, first = (tmp_path / folder / name for folder in ("later", "first"))
        assert later.read_bytes() == first.read_bytes()


def test_a_model_finds_what_is_alike_to_it(data, finished, tmp_path):
    """At a cosine of nearly 0 that is most of what is left; the same files count as before."""
    flags = [f"--checkpoint={finished[0]}", f"--validation={data / 'val.csv'}"]
    found = findings_of(run(data, tmp_path / "out", *flags, "--similarity=0.0001"))
    copies = {kind: one["count"] for kind, one in found["copies"].items()}
    assert (copies["same_file"], copies["changed_copy"]) == (1, 2)
    assert 30 < copies["alike"] < 41
    originals = {group["original"]["example"] for group in found["copies"]["alike"]["groups"]}
    copied = [one for group in found["copies"]["alike"]["groups"] for one in group["copies"]]
    assert 0 in originals and not originals & set(numbers(copied))
    kinds = found["in_validation"]["by_kind"]
    assert (kinds["same_file"], kinds["changed_copy"]) == (2, 2) and kinds["alike"] > 20
    assert len(found["settings"]["weights_sum"]) == 64


def test_hostile_captions_and_names_are_text_on_the_page(parts, tmp_path):
    names = ['"><img src=x onerror=alert(1)>.png', "a'b&amp;.png", "‮gnp.exe.png", "$body.png"]
    captions = ["</script><script>alert(2)</script>", "<b>", "]]>", "${title} $style"]
    rows = []
    for number, (name, caption) in enumerate(zip(names, captions, strict=True)):
        name = name.replace("/", "∕")
        parts[number].save(tmp_path / name, "PNG")
        rows += [[name, caption], [name, caption]]
    rows.append(["</title><h1>.png", "gone"])
    with open(tmp_path / "train.csv", "w", newline="") as file:
        csv.writer(file).writerows([["image", "caption"], *rows])
    page = run(tmp_path, tmp_path / "out")["inspect.html"].decode()
    body = page[page.index("<body>") : page.rindex("<script>")]
    assert page.count("<script>") == page.count("</script>") == 1
    assert body.count("<h1>") == 1 and "<b>" not in body
    assert all(image.startswith('<img src="data:image/jpeg;base64,') for image in images(body))
    assert len(images(body)) > 12 and "onerror=alert(1)&gt;" in body
    assert "&lt;/script&gt;&lt;script&gt;alert(2)" in body and "${title} $style" in body
    assert "default-src 'none'" in page and "$body.png" in body


def images(body):
    return re.findall(r"<img [^>]*>", body)


def test_names_that_are_no_text_are_written_all_the_same(tmp_path, monkeypatch):
    name = b"caf\xe9.png".decode(errors="surrogateescape")
    source = create_source("auto", str(write_one(tmp_path)), config_key="data.train")
    source.keys = lambda indices: [name for _ in indices]
    monkeypatch.setattr(inspecting.Input, "open", lambda *_: source)
    files = run(tmp_path, tmp_path / "out")
    assert "caf?.png" in files["inspect.html"].decode()
    assert findings_of(files)["unreadable"]["examples"][0]["name"] == "caf?.png"


def write_one(folder):
    """A CSV of one example, whose picture is missing."""
    (folder / "train.csv").write_text("image,caption\nnone.png,a dog\n")
    return folder / "train.csv"


def test_data_without_a_picture_that_can_be_read_are_told_of(tmp_path, capsys):
    (tmp_path / "train.csv").write_text("image,caption\nmissing.png,a dog\nmissing.png,a cat\n")
    (tmp_path / "val.csv").write_text("image,caption\nmissing.png,a dog\n")
    flags = [f"--validation={tmp_path / 'val.csv'}", f"--clean={tmp_path / 'clean'}"]
    files = run(tmp_path, tmp_path / "out", *flags, code=1)
    assert "none of the 2 examples is left to train on" in capsys.readouterr().err
    assert findings_of(files)["readable"] == 0 and files["inspect.html"]


def test_what_is_wrong_is_said_first(data, tmp_path, capsys):
    def refused(*flags):
        run(data, tmp_path / "out", *flags, code=1)
        return capsys.readouterr().err

    assert "--similarity=2.0 must be above 0 and at most 1" in refused("--similarity=2")
    assert "set --clean to a folder of its own" in refused(f"--clean={tmp_path / 'out'}")
    assert "needs a vocabulary; set --vocabulary" in refused("--tokenizer=sentencepiece")
    assert "/none.csv" in refused("--validation=/none.csv")
    assert not (tmp_path / "out" / "inspect.json").exists()
    run(data, tmp_path / "other")
    run(data, tmp_path / "other", "--context_length=8", code=1)
    assert "--context_length was 77 and is 8" in capsys.readouterr().err


def test_pixels_are_those_of_training(data):
    """A thumbnail is made of what training decodes."""
    encoded = (data / "0.png").read_bytes()
    pixels = pixels_of(encoded)
    small = thumbnail(pixels)
    assert small.luma.shape == (1, 32, 32) and small.chroma.shape == (1, 2, 16, 16)
    grey = thumbnail(np.full((5, 9, 3), 77, np.uint8))
    assert (grey.luma == 77).all() and (grey.chroma == 128).all()
