"""Compares weights of CyCLIP's terms on emoji drawings, whole from the start or grown in.

λ = 0.25 from the first step on is `cyclip` of objectives.py, and λ = 0 is its `clip`: in the same
--workdir the runs of both files lie side by side.
"""

from configs import drawings

GROWN = 380  # steps, half of the run
# {name: (λ of both terms, steps over which they grow in)}
ARMS = {
    "weight0.05": (0.05, 0),
    "weight1": (1.0, 0),
    "weight0.05_grown": (0.05, GROWN),
    "weight0.25_grown": (0.25, GROWN),
    "weight1_grown": (1.0, GROWN),
}
SEEDS = (0, 1, 2)


def get_runs():
    """Returns {name: config}; the arms of a seed come before those of the next seed."""
    return {f"{arm}_seed{seed}": _run(arm, seed) for seed in SEEDS for arm in ARMS}


def _run(arm, seed):
    config = drawings.get_run(seed)
    weight, config.loss.cyclic_warmup_steps = ARMS[arm]
    config.loss.inmodal_weight = config.loss.crossmodal_weight = weight
    return config
