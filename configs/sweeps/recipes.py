"""The recipes that were tried for the quickstart, on a part of its training data.

They are judged by the tables tuning_*.csv, which divide the training part as the whole is divided:
the quickstart's two held-out sets are not looked at.
"""

from configs import drawings
from cyclip_jax import defaults

_SMALL = {"model.image_size": 32}
_MUON = {"optimizer.name": "muon"}
_SHORT_MUON = {**_MUON, "optimizer.muon.steps": 3}
_DISTORTED = {"data.crop_scale": (0.4, 1.0), "data.colour_jitter": 0.4}
_LESS_CROPPED = {"data.crop_scale": (0.8, 1.0)}
_WIDE_TEXT = {"model.text_width": 128, "model.embed_dim": 128}
_SENTENCES = {"sentences.train": "captions", "sentences.batch_size": 128}
# What each arm changes.
ARMS = {
    "drawings": {},
    "small": _SMALL,
    "small_muon": {**_SMALL, **_MUON},
    "small_short_muon": {**_SMALL, **_SHORT_MUON},
    "small_muon_distorted": {**_SMALL, **_MUON, **_DISTORTED},
    "small_muon_less_cropped": {**_SMALL, **_MUON, **_LESS_CROPPED},
    "small_muon_sentences": {**_SMALL, **_MUON, **_SENTENCES},
    "small_muon_wide_text": {**_SMALL, **_SHORT_MUON, **_LESS_CROPPED, **_WIDE_TEXT},
    "muon": _MUON,
    "muon_sentences": {**_SHORT_MUON, **_SENTENCES},
    "quickstart": {**_SHORT_MUON, **_LESS_CROPPED, **_WIDE_TEXT, "total_steps": 640},
}
SEEDS = (0,)


def get_runs():
    """Returns {name: config}."""
    return {f"{arm}_seed{seed}": _run(arm, seed) for seed in SEEDS for arm in ARMS}


def _run(arm, seed):
    config = drawings.get_run(seed)
    data = "{workdir}/../data"
    config.data.train = f"{data}/tuning_train.csv"
    config.evals = {
        name: defaults.retrieval(config, f"{data}/tuning_{name}.csv")
        for name in ("new_drawings", "unseen_concepts")
    }
    config.update_from_flattened_dict(ARMS[arm])
    return config
