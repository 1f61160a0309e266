"""Compares CyCLIP on emoji drawings with and without training of the text tower on sentences."""

from configs import drawings
from cyclip_jax import defaults
from cyclip_jax.data.packages import package_folder

# Words of WordNet with their glosses. Without hard negatives a young text tower learns faster.
GLOSSES = {"train": "wordnet", "hard_negative_weight": 0.0, "batch_size": 128}
# What each arm changes in config.sentences.
ARMS = {
    "cyclip": {},
    "unsupervised": {"train": "captions", "batch_size": 128},
    "supervised": GLOSSES,
    "supervised_before": {**GLOSSES, "only_steps": 3_800, "until_step": 3_800},
}
SEEDS = (0, 1, 2, 3, 4)


def get_runs():
    """Returns {name: config}; the arms of a seed come before those of the next seed."""
    return {f"{arm}_seed{seed}": _run(arm, seed) for seed in SEEDS for arm in ARMS}


def _run(arm, seed):
    config = drawings.get_run(seed)
    config.sentences.update(ARMS[arm])
    config.total_steps += config.sentences.only_steps
    judged = package_folder("gensim", "test/test_data", install="-e '.[sentences]'")
    words = {"sentence1_key": "Word 1", "sentence2_key": "Word 2", "score_key": "Human (mean)"}
    config.evals.simlex = defaults.sts(str(judged / "simlex999.txt"), **words)
    config.evals.wordsim = defaults.sts(str(judged / "wordsim353.tsv"), **words)
    config.evals.lee = defaults.sts(
        str(judged / "lee.cor"), similarities=str(judged / "similarities0-1.txt")
    )
    return config
