"""What the paper measures of a trained model, with `python -m cyclip_jax.evaluate`.

`--config=configs/evals/paper.py` takes everything, `--config=configs/evals/paper.py:cifar10,dtd`
some data sets, `…/paper.py:gtsrb=/data/gtsrb` one in a folder: those want it that TensorFlow
Datasets has not (fgvc_aircraft, gtsrb, rendered_sst2, objectnet).
"""

from cyclip_jax import defaults

PROBED = (
    *("caltech101", "cifar10", "cifar100", "dtd", "fgvc_aircraft", "flowers102", "food101"),
    *("gtsrb", "imagenet", "oxford_pets", "rendered_sst2", "stanford_cars", "stl10", "svhn"),
)
SHIFTS = ("imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r")
CONSISTENT = {"cifar10": None, "cifar100": "cifar100", "imagenet": None}  # their superclasses


def get_config(datasets=None):
    """Zero-shot and the published linear probe of each data set; consistency@k and shifts.

    Args:
      datasets: names of presets, each with "=FOLDER" where its data lie in one (those that are
        probed in FOLDER/train and FOLDER/test), between commas; default all that the paper probes.
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
