"""CyCLIP on CC3M with wrong captions, as NegCLIP has them (Yuksekgonul et al. 2023).

NegCLIP was fine-tuned from OpenAI's ViT-B/32; set config.init_from and the model for that.
"""

from configs import cc3m


def get_config():
    """Run with --config.data.train=/data/cc3m/train.csv; it needs the extra `sentences`."""
    config = cc3m.get_config()
    config.data.negative_caption = "swap"
    return config
