"""A strong CLIP on Conceptual Captions 3M: the recipe that open_clip's users came furthest with."""

from configs import cc3m_clip


def get_config():
    """Run with --config.data.train=/data/cc3m/train.csv; docs/paper.md has the sources."""
    config = cc3m_clip.get_config()
    config.batch_size = 1024
    config.num_epochs = 30
    config.eval_every_steps = 5_000
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 2_000
    config.data.augmentation = "random_resized_crop"
    config.data.crop_scale = (0.5, 1.0)
    config.loss.label_smoothing = 0.1
    # Both cyclic weights are 0. Where they are not, they weigh what they do at a batch of 128.
    config.loss.cyclic_normalization = "batch_size_free"
    return config
