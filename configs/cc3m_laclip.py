"""CyCLIP on CC3M with four rewritten texts per picture, as LaCLIP has them (Fan et al. 2023).

Each step sees one of the five texts of a picture, all equally often. A rewrite that is missing
leaves its share to the others.
"""

from configs import cc3m

REWRITES = ("chatgpt", "bard", "mscoco", "human")


def get_config():
    """Run with --config.data.train=train.csv, which has a column for each text."""
    config = cc3m.get_config()
    config.data.caption_key = ("caption", *REWRITES)
    config.data.augmentation = "random_resized_crop"
    config.data.crop_scale = (0.5, 1.0)
    return config
