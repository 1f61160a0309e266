"""CyCLIP as published: RN50 on Conceptual Captions 3M (Goel et al. 2022, section 3)."""

from cyclip_jax import defaults


def get_config():
    """Run with --config.data.train=/data/cc3m/train.csv."""
    config = defaults.get_config()
    config.num_epochs = 64
    config.eval_every_steps = 20_000
    config.checkpoint_every_steps = 5_000
    return config
