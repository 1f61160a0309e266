"""Every evaluator at once, on small data: settings that name all of them."""

import json

from tests.pictures import COLOURS, SHAPES, write_pairs

# Of a group of batch_size pairs, as in training.
OF_BATCHES = {
    f"pairs/{name}"
    for name in (
        "loss",
        "contrastive_loss",
        "inmodal_cyclic_loss",
        "crossmodal_cyclic_loss",
        "image_to_text_accuracy",
        "text_to_image_accuracy",
    )
}


def every_evaluation(folder):
    """Settings of every evaluator, on 24 pictures and one that cannot be read, drawn there."""
    pairs = write_pairs(folder)
    with open(pairs, "a") as file:
        file.write("broken.png,a red disc\n")
    (folder / "broken.png").write_bytes(b"no picture")
    labels = [f"{c}_{s}.png,{s}" for s in SHAPES for c in COLOURS]
    (folder / "labels.csv").write_text("\n".join(["image,label", *labels, "broken.png,disc"]))
    few = "\n".join(["image,label", *labels[::3]])
    (folder / "test").mkdir()
    for name in labels[::3]:
        picture = name.partition(",")[0]
        (folder / "test" / picture).write_bytes((folder / picture).read_bytes())
    (folder / "test" / "labels.csv").write_text(few)
    choices = [
        {"image": f"red_{s}.png", "caption": f"a red {s}", "negative_caption": f"a blue {s}"}
        for s in SHAPES
    ]
    (folder / "choices.json").write_text(json.dumps(choices))
    write_sentences(folder)
    write_scenes(folder / "scenes.json")
    labelled = {"train": str(folder), "test": str(folder / "test")}
    zeroshot = {"folder": str(folder)}
    return {
        "zeroshot": {"type": "zeroshot", **zeroshot},
        "pairs": {"type": "retrieval", "pairs": str(pairs)},
        "adamw": {"type": "linear_probe", **labelled, "epochs": 2},
        "lbfgs": {
            "type": "logistic_probe",
            **labelled,
            "regularization": 1.0,
        },
        "few_shot": {"type": "few_shot", **labelled, "shots": (1,), "seeds": 2},
        "gda": {"type": "gda", **labelled, "alpha": 1.0},
        "consistency": {"type": "consistency", **labelled, "pairs": str(pairs)},
        "geometry": {"type": "geometry", "pairs": str(pairs)},
        "robustness": {
            "type": "robustness",
            "reference": zeroshot,
            "shifts": {"imagenetv2": {"folder": str(folder / "test")}},
        },
        "sts": {"type": "sts", "sentences": str(folder / "senteval")},
        "sentences": {
            "type": "sts",
            "sentences": str(folder / "sentences.csv"),
            "positive_from": 3.0,
        },
        "choices": {"type": "compositional", "examples": str(folder / "choices.json")},
        "binding": {
            "type": "binding",
            **dict.fromkeys(("train", "test"), str(folder / "scenes.json")),
        },
        "labclip": {
            "type": "labclip",
            "train": str(pairs),
            "examples": str(folder / "choices.json"),
            "negatives": "none",
            "epochs": 2,
        },
    }


def write_scenes(path, noun=SHAPES[0]):
    """Writes what else might be in pictures of one shape."""
    colours = list(COLOURS)
    scenes = [
        {
            "image": f"{colour}_{noun}.png",
            "things": [[colour, noun], [colours[number - 1], "background"]],
        }
        for number, colour in enumerate(colours)
    ]
    path.write_text(json.dumps(scenes))


def write_sentences(folder):
    """Writes senteval/, with a year of three subsets and STS-B, and sentences.csv."""
    names = [f"a {colour} {shape}" for shape in SHAPES for colour in COLOURS]
    pairs = [(names[n], names[(5 * n + 3) % 24], str(n % 6)) for n in range(24)]
    year, benchmark = folder / "senteval/STS/STS13-en-test", folder / "senteval/STS/STSBenchmark"
    year.mkdir(parents=True)
    benchmark.mkdir()
    for number, subset in enumerate(("FNWN", "headlines", "OnWN")):
        own = pairs[8 * number :][:8]
        (year / f"STS.input.{subset}.txt").write_text("".join(f"{a}\t{b}\n" for a, b, _ in own))
        (year / f"STS.gs.{subset}.txt").write_text("".join(f"{score}\n" for *_, score in own))
    for split, own in (("train", pairs[::2]), ("test", pairs[1::2])):
        rows = [f"main\tfile\t2012\t1\t{score}\t{a}\t{b}\n" for a, b, score in own]
        (benchmark / f"sts-{split}.csv").write_text("".join(rows))
    rows = ["sentence1,sentence2,score", *map(",".join, pairs)]
    (folder / "sentences.csv").write_text("\n".join(rows))
