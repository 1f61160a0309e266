"""CyCLIP on CC3M with wrong captions and pictures of them, as in TripletCLIP (Patel et al. 2024).

TripletCLIP was trained from scratch at batch 1,024 and learning rate 5e-4 for 10 epochs.
"""

from configs import cc3m


def get_config():
    """Run with --config.data.train=/data/cc3m/triplets.csv, which has these columns."""
    config = cc3m.get_config()
    config.data.negative_caption = "given"
    config.data.negative_caption_key = "negative_caption"
    config.data.negative_image_key = "negative_image"
    return config
