"""CyCLIP on CC3M with second views of pictures and captions, the official code's option --inmodal.

No published table is known to be of a run with it.
"""

from configs import cc3m


def get_config():
    """Run with --config.data.train=/data/cc3m/train.csv; it needs the extra `sentences`."""
    config = cc3m.get_config()
    config.data.second_image = "autoaugment"
    config.data.second_caption = "eda"
    config.data.second_caption_draws = "once"
    return config
