"""CyCLIP on CC3M whose text tower is trained on its captions as sentences as well.

After Gao et al. 2021 (SimCSE, unsupervised) as Zhao et al. 2024 apply it to CyCLIP. How they weigh
the two losses, and on which sentences they train, is not known.
"""

from configs import cc3m


def get_config():
    """Run with --config.data.train=/data/cc3m/train.csv."""
    config = cc3m.get_config()
    config.sentences.train = "captions"
    return config
