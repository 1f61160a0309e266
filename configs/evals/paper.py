"""Evaluations of the paper, for `python -m cyclip_jax.evaluate`.

`--config=configs/evals/paper.py` takes all of them, `--config=configs/evals/paper.py:cifar10,dtd`
takes those of two data sets, and `…/paper.py:gtsrb=/data/gtsrb` reads a data set from a folder. The
data sets that TensorFlow Datasets lacks need a folder (fgvc_aircraft, gtsrb, rendered_sst2,
objectnet).
"""

from cyclip_jax import defaults

PROBED = (
    *("caltech101", "cifar10", "cifar100", "dtd", "fgvc_aircraft", "flowers102", "food101"),
    *("gtsrb", "imagenet", "oxford_pets", "rendered_sst2", "stanford_cars", "stl10", "svhn"),
)
SHIFTS = ("imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r")
CONSISTENT = {
    "cifar10": None,
    "cifar100": "cifar100",
    "imagenet": None,
}  # {data set: its superclasses}


def get_config(datasets=None):
    """Evaluates zero-shot classification, the published linear probe, consistency@k and shifts.

    Args:
      datasets: names of presets, joined by commas; the default is all that the paper probes. A name
        is followed by "=FOLDER" if its data lie in a folder. For the probe they lie in FOLDER/train
        and FOLDER/test.
    """
    config = defaults.get_config()
    config.evals = {}
    for dataset in PROBED if datasets is None else datasets.split(","):
        name = dataset.partition("=")[0]
        train, test = f"preset:{dataset}@train", f"preset:{dataset}@test"
        if name not in PROBED:
            test = f"preset:{dataset}"
        config.evals[f"zeroshot_{name}"] = defaults.zeroshot(test)
        if name in PROBED:
            config.evals[f"probe_{name}"] = defaults.linear_probe(train, test)
        if name in CONSISTENT:
            config.evals[f"consistency_{name}"] = defaults.consistency(
                train, test, superclasses=CONSISTENT[name]
            )
        if name == "imagenet":
            config.evals.robustness = defaults.robustness(
                {"folder": test}, {shift: {"folder": f"preset:{shift}"} for shift in SHIFTS}
            )
    return config
