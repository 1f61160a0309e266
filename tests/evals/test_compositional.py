import csv
import dataclasses
import io
import json
import types

import numpy as np
import pytest
from clip_benchmark.metrics import image_caption_selection
from PIL import Image

from cyclip_jax.errors import UserError
from cyclip_jax.evals import Output
from cyclip_jax.evals.compositional import Compositional
from cyclip_jax.evals.flat import flat_numbers
from cyclip_jax.evals.statistics.choices import winoground_scores
from tests.conftest import unit_rows
from tests.evals.data.test_pairs import quick
from tests.evals.fakes import fake_encoders
from tests.pictures import draw, write_pairs
from tests.pytorch import torch


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """24 pictures of shapes, `red_disc.png`, of which the fake encoders know what they show."""
    path = tmp_path_factory.mktemp("pictures")
    write_pairs(path)
    return path


def write(path, content):
    path.parent.mkdir(exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def score(path, images, directory=None, encoders=None, **settings):
    evaluate = Compositional("x", examples=str(path), images=str(images), **settings).open()
    return flat_numbers(evaluate(quick(encoders or fake_encoders(8)), Output(directory)))


def choice(picture, wrong, **fields):
    """An example as ARO has it, of a picture and another's caption."""
    words = [name.replace("_", " ") for name in (picture, wrong)]
    captions = {"true_caption": f"a {words[0]}", "false_caption": f"a {words[1]}"}
    return {"image_path": f"{picture}.png"} | captions | fields


def test_winoground_scores_of_hand_made_similarities():
    similarities = np.array(
        [
            [[0.9, 0.1], [0.2, 0.8]],  # everything is right
            [[0.9, 0.1], [0.95, 0.96]],  # caption 0 prefers the wrong picture
            [[0.5, 0.6], [0.1, 0.8]],  # picture 0 prefers the wrong caption
            [[0.5, 0.5], [0.1, 0.8]],  # a tie loses: between captions
            [[0.5, 0.1], [0.5, 0.8]],  # between pictures
            [[0.1, 0.9], [0.8, 0.2]],  # everything is wrong
            [[np.nan, np.nan], [0.1, 0.8]],
        ]
    )
    text = [True, True, False, False, True, False, False]
    image = [True, False, True, True, False, False, False]
    both = [True] + 6 * [False]
    np.testing.assert_array_equal(winoground_scores(similarities).T, [text, image, both])


def test_chance_of_winoground_is_that_of_random_similarities():
    scores = winoground_scores(np.random.default_rng(0).normal(size=(200_000, 2, 2)))
    np.testing.assert_allclose(scores.mean(axis=0), [1 / 4, 1 / 4, 1 / 6], atol=4e-3)


def winoground_row(number, first, second, tag):
    names = {"image_0": first, "image_1": f"{second}.png"}  # the ending is added where it lacks
    words = [name.replace("_", " ") for name in (first, second)]
    captions = {f"caption_{i}": f"a {words[i]}" for i in range(2)}
    return {"id": number, "tag": "x", "collapsed_tag": tag} | names | captions


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv"])
def test_winoground_files_are_scored_by_tag(folder, tmp_path, ending):
    rows = [
        winoground_row(0, "red_disc", "green_disc", "Object"),
        winoground_row(1, "red_ring", "blue_ring", "Relation"),  # taken for each other
        winoground_row(2, "red_bar", "green_cross", "Relation"),  # the bar is taken for blue
    ]
    path = tmp_path / f"examples.{ending}"
    if ending == "csv":
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    else:
        write(path, "\n".join(map(json.dumps, rows)) if ending == "jsonl" else rows)
    swap = {"red": "blue", "blue": "red"}
    encoders = fake_encoders(8, misread=lambda colour: swap.get(colour, colour))
    results = score(path, folder, tmp_path, encoders, layout="winoground")
    # A picture that fits neither caption ties.
    for name, chance in (("text_score", 1 / 4), ("image_score", 1 / 4), ("group_score", 1 / 6)):
        assert results[name] == 0.0
        assert results[f"chance_{name}"] == chance
    assert results["examples"] == 3 and results["images"] == results["captions"] == 6
    right = score(path, folder, tmp_path, layout="winoground")
    assert right["text_score"] == right["image_score"] == right["group_score"] == 1.0
    table = json.loads((tmp_path / "categories.json").read_text())
    assert [(row["category"], row["examples"]) for row in table] == [("Object", 1), ("Relation", 2)]
    assert table[1]["group_score"] == table[1]["group_score_ci_low"] == 1.0
    by_tag = Compositional(
        "x", examples=str(path), images=str(folder), layout="winoground", category_key="tag"
    ).open()
    by_tag(quick(fake_encoders(8)), Output(tmp_path))
    assert [row["category"] for row in json.loads((tmp_path / "categories.json").read_text())] == [
        "x"
    ]


def test_accuracy_by_category_of_aros_file(folder, tmp_path):
    rows = [
        choice("red_disc", "green_disc", relation_name="on"),
        choice("green_disc", "red_disc", relation_name="on"),
        choice("green_bar", "green_ring", relation_name="on"),
        choice("red_bar", "blue_bar", relation_name="under"),  # wrong
        choice("grey_bar", "grey_bar", relation_name="under"),  # a tie is a miss
    ]
    swap = {"red": "blue", "blue": "red"}
    encoders = fake_encoders(8, misread=lambda colour: swap.get(colour, colour))
    path = write(tmp_path / "visual.json", rows)
    results = score(path, folder, tmp_path, encoders)
    # The red disc fits neither of its captions.
    assert results["accuracy"] == 2 / 5
    assert results["macro_accuracy"] == pytest.approx((2 / 3 + 0 / 2) / 2)
    assert results["chance_accuracy"] == results["chance_macro_accuracy"] == 1 / 2
    assert results["accuracy_ci_low"] < 2 / 5 < results["accuracy_ci_high"]
    assert results["macro_accuracy_ci_low"] < 1 / 3 < results["macro_accuracy_ci_high"]
    assert [results[name] for name in ("examples", "images", "captions")] == [5, 5, 7]
    table = json.loads((tmp_path / "categories.json").read_text())
    expected = [("on", 3, 2 / 3, 1 / 2), ("under", 2, 0.0, 1 / 2)]
    keys = ("category", "examples", "accuracy", "chance")
    assert [tuple(row[key] for key in keys) for row in table] == expected
    assert table[0]["low"] < 2 / 3 < table[0]["high"]
    one_by_one = [score(write(tmp_path / "o.json", [row]), folder, None, encoders) for row in rows]
    assert [result["accuracy"] for result in one_by_one] == [0, 1, 1, 0, 0]


def test_order_tasks_have_several_wrong_captions(folder, tmp_path):
    rows = [
        {"image": "red_disc.png", "caption_options": ["a red disc", "disc red a", "a disc red"]},
        {"image": "red_ring.png", "caption_options": ["disc red a", "a red ring"]},
    ]
    results = score(write(tmp_path / "order.json", rows), folder)
    assert results["accuracy"] == 1 / 2
    assert results["chance_accuracy"] == pytest.approx((1 / 3 + 1 / 2) / 2)
    lists = [choice("red_disc", "x") | {"false_caption": ["disc red a", "a red disc"]}]
    assert score(write(tmp_path / "lists.json", lists), folder)["accuracy"] == 0.0  # a tie


def test_a_wrong_caption_that_is_listed_again_is_one_for_chance(folder, tmp_path):
    options = ["a red disc", "disc red a", "disc red a", "a disc red", "disc red a"]
    rows = [{"image": "red_disc.png", "caption_options": options}]
    results = score(write(tmp_path / "again.json", rows), folder)
    assert results["chance_accuracy"] == results["chance_macro_accuracy"] == pytest.approx(1 / 3)
    assert (results["accuracy"], results["captions"]) == (1.0, 3)


def test_who_does_not_see_the_picture_is_right_by_the_text_alone(folder, tmp_path):
    """Captions that are right once and wrong once tell nothing; others may tell everything."""
    swapped = [choice("red_disc", "blue_bar"), choice("blue_bar", "red_disc")]
    results = score(write(tmp_path / "swapped.json", swapped), folder)
    assert (results["accuracy"], results["blind_accuracy"]) == (1.0, 0.0)  # ties are misses
    telling = [choice("red_disc", "x"), choice("blue_bar", "x")]
    results = score(write(tmp_path / "telling.json", telling), folder)
    assert (results["accuracy"], results["blind_accuracy"]) == (1.0, 1.0)


def test_intervals_draw_pictures_with_all_their_examples(folder, tmp_path):
    """The same intervals as with one example a picture, however often and with what boxes."""
    names = ["red_disc", "green_bar", "grey_ring", "blue_bar", "red_ring", "blue_cross"]
    once = [
        choice(name, "x" if number % 3 else name, category=f"{number % 2}")
        for number, name in enumerate(names)
    ]
    metrics = [f"{macro}accuracy{e}" for macro in ("", "macro_") for e in ("_ci_low", "_ci_high")]
    expected = score(write(tmp_path / "once.json", once), folder, tmp_path)
    table = json.loads((tmp_path / "categories.json").read_text())
    whole = dict(zip(("bbox_x", "bbox_y", "bbox_w", "bbox_h"), (0, 0, 40, 40), strict=True))
    four = [*once, *[row | whole for row in once], *once, *once]
    found = score(write(tmp_path / "four.json", four), folder, tmp_path)
    assert (found["examples"], found["accuracy"]) == (24, expected["accuracy"])
    for name in metrics:
        assert found[name] == pytest.approx(expected[name], abs=1e-12)
    by_category = json.loads((tmp_path / "categories.json").read_text())
    assert [(row["low"], row["high"]) for row in by_category] == [
        pytest.approx((row["low"], row["high"]), abs=1e-12) for row in table
    ]


def test_a_folder_of_sugarcrepe_has_a_category_a_file(folder, tmp_path):
    def entry(picture, wrong):
        own, other = (name.replace("_", " ") for name in (picture, wrong))
        return {"filename": f"{picture}.png", "caption": own, "negative_caption": other}

    data = tmp_path / "data"
    write(data / "swap_att.json", {"0": entry("red_disc", "red_disc")})
    write(data / "add_obj.json", {"4": entry("red_bar", "blue_bar"), "9": entry("red_bar", "x")})
    (data / "readme.txt").write_text("no examples")
    results = score(data, folder, tmp_path)
    assert results["accuracy"] == 2 / 3 and results["macro_accuracy"] == 1 / 2
    table = json.loads((tmp_path / "categories.json").read_text())
    assert [(row["category"], row["accuracy"]) for row in table] == [
        ("add_obj", 1.0),
        ("swap_att", 0.0),
    ]
    (single,) = [score(data / "add_obj.json", folder)]
    assert single["accuracy"] == 1.0 and single["images"] == 1


def test_boxes_are_cut_out_before_anything_else(tmp_path):
    scene = np.full((60, 120, 3), 255, np.uint8)
    scene[10:50, 5:45], scene[15:55, 70:110] = draw("disc", "red"), draw("bar", "blue")
    Image.fromarray(scene).save(tmp_path / "scene.png")
    box = dict(zip(("bbox_x", "bbox_y", "bbox_w", "bbox_h"), (5, 10, 40, 40), strict=True))
    other = box | {"bbox_x": 70, "bbox_y": 15}
    rows = [
        choice("scene", "x") | {"true_caption": "a red disc", "false_caption": "a blue bar"} | box,
        choice("scene", "x")
        | {"true_caption": "a blue bar", "false_caption": "a red disc"}
        | other,
    ]
    evaluate = Compositional("x", examples=str(write(tmp_path / "boxes.json", rows))).open()
    results = flat_numbers(evaluate(fake_encoders(8), Output()))
    assert (results["accuracy"], results["images"]) == (1.0, 2)
    for row in rows:
        for key in box:
            del row[key]
    results = score(write(tmp_path / "whole.json", rows), tmp_path)
    assert (results["accuracy"], results["images"]) == (0.0, 1)


def test_an_example_without_its_picture_is_left_out_of_the_count(folder, tmp_path):
    file = io.BytesIO()
    Image.fromarray(draw("disc", "red")).save(file, "PNG")
    (tmp_path / "red_disc.png").write_bytes(file.getvalue())
    (tmp_path / "red_bar.png").write_bytes(b"no picture")
    box = {"bbox_x": 0, "bbox_y": 0, "bbox_w": 9, "bbox_h": 9}
    rows = [choice("red_disc", "x"), choice("red_bar", "x"), choice("red_bar", "x", **box)]
    evaluate = Compositional("x", examples=str(write(tmp_path / "some.json", rows))).open()
    results = flat_numbers(evaluate(fake_encoders(8), Output()))
    assert (results["examples"], results["accuracy"]) == (1, 1.0)
    evaluate = Compositional("x", examples=str(write(tmp_path / "none.json", rows[1:]))).open()
    with pytest.raises(UserError, match=r"none of the images of .*none.json can be read"):
        evaluate(fake_encoders(8), Output())


def prescribed_encoders(image_embeds, text_embeds):
    """Encoders of the pictures of write_pairs as these rows, and of a caption "7 …" as row 7."""
    known = fake_encoders(8)
    return dataclasses.replace(
        known,
        encode_features=lambda images: known.encode_features(images)[:, :24] @ image_embeds,
        encode_text=lambda tokens: text_embeds[tokens[:, 0]],
        tokenize=lambda texts: np.array([[int(text.split()[0])] for text in texts]),
    )


def test_scores_are_clip_benchmarks(folder, tmp_path):
    image_embeds, text_embeds = unit_rows(0, 24, 5, np.float32), unit_rows(1, 24, 5, np.float32)
    text_embeds += 0.5 * image_embeds
    text_embeds /= np.linalg.norm(text_embeds, axis=1, keepdims=True)
    # A tensor of one number stands for the picture or caption of that number.
    model = types.SimpleNamespace(
        encode_image=lambda images: torch.tensor(image_embeds)[images[:, 0, 0, 0]],
        encode_text=lambda tokens: torch.tensor(text_embeds)[tokens],
    )

    def theirs(images, texts):
        batches = [(torch.tensor(images)[..., None, None, None], texts)]
        return image_caption_selection.evaluate(model, batches, torch.tensor, "cpu", amp=False)

    names = [path.split(",")[0] for path in (folder / "train.csv").read_text().splitlines()[1:]]
    encoders = prescribed_encoders(image_embeds, text_embeds)
    couples = [[first, (5 * first + 7) % 24] for first in range(24)]
    rows = [
        {f"image_{i}": names[couple[i]] for i in range(2)}
        | {f"caption_{i}": f"{couple[i]} words" for i in range(2)}
        for couple in couples
    ]
    path = write(tmp_path / "winoground.json", rows)
    found = score(path, folder, None, encoders, layout="winoground")
    expected = theirs(couples, couples)
    assert 0.2 < expected["acc"] < expected["text_acc"] < 1
    for ours, name in (("text_score", "text_acc"), ("image_score", "image_acc")):
        assert found[ours] == pytest.approx(expected[name], abs=1e-6)
    assert found["group_score"] == pytest.approx(expected["acc"], abs=1e-6)

    rows = {
        str(own): {
            "filename": names[own],
            "caption": f"{own} words",
            "negative_caption": f"{wrong} words",
        }
        for own, wrong in couples
    }
    found = score(write(tmp_path / "crepe.json", rows), folder, None, encoders)
    expected = theirs([[own] for own, _ in couples], couples)
    assert 0.3 < expected["text_acc"] < 1
    assert found["accuracy"] == pytest.approx(expected["text_acc"], abs=1e-6)


@pytest.mark.parametrize(
    "content, settings, message",
    [
        (None, {}, r"no folder with files that end in .json.*set config.evals.x.examples"),
        ("[", {}, r"a.json cannot be read as .json"),
        ("[]", {}, r"a.json holds no list of examples"),
        ('["a"]', {}, r"a.json holds no list of examples"),
        ([choice("a", "b")], {"layout": "aro"}, r"config.evals.x.layout is 'aro'; choose one of"),
        ([choice("a", "b")], {"layout": "winoground"}, r"example 1: .* 'image_0' \(fields: image"),
        ([choice("a", "b"), {"image": "a"}], {}, r"example 2: .* false_caption or negative_cap"),
        ([choice("a", "b") | {"true_caption": " "}], {}, r"a caption is empty or no text"),
        ([choice("a", "b", bbox_x=1)], {}, r"example 1: .* 'bbox_y'"),
        ([{"image": "a", "caption_options": ["b"]}], {}, r"example 1: it has no wrong caption"),
        ([choice("a", "b")], {"category_key": "kind"}, r"'kind' .*set config.evals.x.category_key"),
    ],
)
def test_wrong_files_are_refused_before_any_picture_is_read(tmp_path, content, settings, message):
    path = tmp_path / "a.json"
    if content is not None:
        write(path, content)
    with pytest.raises(UserError, match=message):
        Compositional("x", examples=str(path), **settings).open()
