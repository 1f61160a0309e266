"""The baseline of cc3m.py is CLIP: the same run without the cyclic terms."""

from configs import cc3m


def get_config():
    """Run with --config.data.train=/data/cc3m/train.csv."""
    config = cc3m.get_config()
    config.loss.inmodal_weight = 0.0
    config.loss.crossmodal_weight = 0.0
    return config
