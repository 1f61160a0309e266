"""CyCLIP with ViT-B/16 on Conceptual Captions 12M, mostly on small images (CLIPA, Li et al. 2023).

The sizes, the rate for each pair, the warm-ups, the decay and the crops are those of the authors'
recipe for ViT-B/16, whose batch has 32,768 pairs. Its last 4,000 steps see whole images and texts.
"""

from configs import vitb32_cc12m


def get_config():
    """Run with --config.data.train='/data/cc12m/*.tfrecord', or another format's files."""
    config = vitb32_cc12m.get_config()
    config.model.name = "ViT-B/16"
    config.tokens.image_size = 64
    config.tokens.text_length = 32
    config.tokens.text_choice = "block"
    config.tokens.full_steps = 4_000
    config.tokens.full_warmup_steps = 800

    config.optimizer.learning_rate = 8e-6 / 256 * config.batch_size
    config.tokens.full_learning_rate = config.optimizer.learning_rate / 10
    config.optimizer.warmup_steps = 1_600
    config.optimizer.beta2 = 0.95
    config.data.crop_scale = (0.4, 1.0)
    return config
