"""Compares fine-tuning with zero-shot, linear probe, few shots and GDA on small labelled pictures.

    python -m benchmarks.fine_tuning --model=runs/drawings --output=/tmp/fine_tuning

The model is any that learned on configs/drawings.py. Three data sets come from packages: `digits`
of scikit-learn, `clothes` of Fashion-MNIST (Debian's dataset-fashion-mnist), and `kinds` of the
quickstart's drawings. The first two have a shift besides, the same test pictures with their greys
turned over. 500 pictures train, and 500 test (316 of kinds).

Each of three seeds is another draw of the training pictures, and the seed of the run. The learning
rate is one of RATES, chosen by a fifth of the training pictures of the first seed's digits with
`linear`, and serves all. Nothing else was chosen. It goes on where it was stopped.

It needs the extras `quickstart` and `test`.
"""

import argparse
import csv
import dataclasses
import gzip
import pathlib

import numpy as np
import sklearn.datasets
from etils import epath
from PIL import Image

from benchmarks.report import table
from cyclip_jax import defaults, evals
from cyclip_jax.data import emoji
from cyclip_jax.report.runs import student_interval
from cyclip_jax.train import train
from cyclip_jax.training.choosing import train_candidates
from cyclip_jax.training.finetuning import METHODS, FineTuning, fine_tuning_config
from cyclip_jax.training.opened_model import open_model
from cyclip_jax.training.wise_ft import accuracies, evaluations_of, open_path, weights_of_run

FASHION = pathlib.Path("/usr/share/datasets/fashion-mnist")
CLOTHES = (
    *("T-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "running shoe"),
    *("handbag", "boot"),
)
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TRAINED, TESTED = 500, 500
SEEDS = (0, 1, 2)
RATES, HELD_OUT_SHARE = (3e-4, 1e-3, 3e-3), 0.2
EPOCHS, SHOTS = 10, (1, 2, 4, 8, 16)


def digits():
    """(pictures uint8 [n, h, w], labels, names)."""
    data = sklearn.datasets.load_digits()
    return (data.images / 16 * 255).astype(np.uint8), data.target, DIGITS


def clothes():
    """The same of Fashion-MNIST's training set, of which a part is enough."""
    with gzip.open(FASHION / "train-images-idx3-ubyte.gz") as file:
        pictures = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 28, 28)
    with gzip.open(FASHION / "train-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(), np.uint8, offset=8)
    return pictures, labels, CLOTHES


def write_table(path, rows):
    """Writes a CSV of pictures and labels, with the prompt of a class beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(["image,label", *(",".join(row) for row in rows)]) + "\n")
    (path.parent / "classes.json").write_text('{"templates": ["{}"]}')


def write_pictures(folder, make):
    """Writes all pictures that are used, as they are and with their greys turned over.

    Returns:
      ([(path, label)] of those that may train, [(path, label)] to test on).
    """
    pictures, labels, names = make()
    chosen = np.random.default_rng(0).permutation(len(labels))
    chosen = chosen[: len(SEEDS) * TRAINED + TESTED]
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in chosen:
        for kind, pixels in (("", pictures[number]), ("_shifted", 255 - pictures[number])):
            path = folder / f"{number}{kind}.png"
            if not path.exists():
                Image.fromarray(pixels).resize((64, 64), Image.Resampling.BICUBIC).save(path)
        rows.append((str(folder / f"{number}.png"), names[labels[number]]))
    return rows[TESTED:], rows[:TESTED]


def data_sets(output):
    """{name: ([pairs to train on for each seed], {evaluation: test})} as files."""
    found = {}
    for name, make in {"digits": digits, "clothes": clothes}.items():
        folder = output / "data" / name
        pool, test = write_pictures(folder / "pictures", make)
        shifted = [(path.replace(".png", "_shifted.png"), label) for path, label in test]
        write_table(folder / "test.csv", test)
        write_table(folder / "shifted.csv", shifted)
        tests = {"test": str(folder / "test.csv"), "shifted": str(folder / "shifted.csv")}
        found[name] = written_draws(folder, pool), tests
    drawings = output / "data" / "drawings"
    emoji.build(str(drawings))
    with open(drawings / "kinds_train.csv") as file:
        pool = [(str(drawings / row["image"]), row["label"]) for row in csv.DictReader(file)]
    (drawings / "classes.json").write_text('{"templates": ["{}"]}')
    tests = {"test": str(drawings / "kinds_held_out.csv")}
    found["kinds"] = written_draws(output / "data" / "kinds", pool), tests
    return found


def written_draws(folder, pool):
    """Tables of TRAINED pictures, one for each seed, in which every class is."""
    tables = []
    for seed in SEEDS:
        order = np.random.default_rng(seed).permutation(len(pool))
        _, firsts = np.unique([pool[place][1] for place in order], return_index=True)
        order = [*order[firsts], *np.delete(order, firsts)][:TRAINED]
        tables.append(str(folder / f"train_{seed}.csv"))
        write_table(folder / f"train_{seed}.csv", [pool[place] for place in order])
    return tables


def without_training(model, train, tests):
    """{row: {evaluation: top1}} of what trains no tower."""
    asked = {name: defaults.zeroshot(place) for name, place in tests.items()}
    for name, place in tests.items():
        asked[f"{name}_probe"] = defaults.linear_probe(train, place)
        asked[f"{name}_shots"] = defaults.few_shot(train, place, shots=SHOTS, seeds=1)
        asked[f"{name}_gda"] = defaults.gda(train, place)
    opened = open_model(model, batch_size=128)
    evaluators = evals.create_evaluators({name: own.to_dict() for name, own in asked.items()})
    results = evals.evaluate(evaluators, opened.encoders, directory=None)
    most = max(int(name.partition("@")[2]) for name in results["test_shots"] if "top1@" in name)
    print(f"{train}: {most} shots", flush=True)
    kinds = {
        "zero-shot": ("", "top1"),
        "few shots": ("_shots", f"top1@{most}"),
        "linear probe": ("_probe", "top1"),
        "zero-shot and GDA": ("_gda", "ensemble_top1"),
    }
    return {
        row: {name: results[f"{name}{ending}"][metric].value for name in tests}
        for row, (ending, metric) in kinds.items()
    }


def chosen_rate(wanted, opened, pictures, output):
    """The rate with the best accuracy on held-out training pictures."""
    options = {
        epath.Path(output / f"rate_{rate:g}"): {"optimizer.learning_rate": rate} for rate in RATES
    }
    trained = train_candidates(
        wanted, opened, pictures, options, held_out=HELD_OUT_SHARE, train=train
    )
    if trained is None:
        raise SystemExit("stopped; the same command goes on")
    return RATES[int(np.argmax(trained[1]))]


def fine_tuned(wanted, method, output, chosen):
    """{row: {evaluation: top1}} of a method; `chosen` keeps the rate that was chosen first."""
    wanted = dataclasses.replace(wanted, method=method)
    opened, pictures = wanted.open_model(), wanted.open_pictures()
    if not chosen:
        chosen.append(chosen_rate(wanted, opened, pictures, output))
    settings = {**wanted.settings, "optimizer.learning_rate": chosen[0]}
    wanted = dataclasses.replace(wanted, settings=settings)
    config = fine_tuning_config(wanted, opened, pictures)
    train(config, output)
    path = open_path(opened, output, pictures, weights=weights_of_run(config))
    rows = accuracies(path, evaluations_of(config, epath.Path(output)), (0.5, 1.0))
    return {
        f"{method}, α = {row['alpha']:g}": {name: top1[0] for name, top1 in row["top1"].items()}
        for row in reversed(rows)
    }


def mean_and_interval(values):
    """Percent: the mean over seeds with its 95 % interval by Student's t."""
    low, high = student_interval(values)
    return f"{100 * np.mean(values):.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True, help="a model of the drawings")
    parser.add_argument("--output", required=True, type=pathlib.Path)
    arguments = parser.parse_args()
    found, chosen, output = {}, [], arguments.output.absolute()
    for data, (tables, tests) in data_sets(output).items():
        for seed, table_of_seed in zip(SEEDS, tables, strict=True):
            wanted = FineTuning(
                model=arguments.model,
                train=table_of_seed,
                tests=tests,
                epochs=EPOCHS,
                batch_size=50,
                seed=seed,
                settings={"compilation_cache": str(output / "cache")},
            )
            rows = without_training(arguments.model, table_of_seed, tests)
            for method in METHODS:
                rows |= fine_tuned(wanted, method, output / data / f"{method}_{seed}", chosen)
            for row, values in rows.items():
                for test, value in values.items():
                    found.setdefault(row, {}).setdefault(f"{data}, {test}", []).append(value)
    columns = list(dict.fromkeys(column for values in found.values() for column in values))
    rows = [
        {"": row} | {column: mean_and_interval(values[column]) for column in values}
        for row, values in found.items()
    ]
    print(table(rows, {column: (column, "") for column in ("", *columns)}))


if __name__ == "__main__":
    main()
