"""The quickstart with five seeds, each evaluated at its end."""

from configs import quickstart

SEEDS = (0, 1, 2, 3, 4)


def get_runs():
    """Returns {name: config}."""
    return {f"quickstart_seed{seed}": _run(seed) for seed in SEEDS}


def _run(seed):
    config = quickstart.get_config(data="{workdir}/../data")
    config.seed = seed
    config.eval_every_steps = 0
    return config
