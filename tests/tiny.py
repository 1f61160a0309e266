"""A configuration that trains in seconds, with BatchNorm and random crops."""

from cyclip_jax import defaults


def get_config():
    """Run with --config.data.train and --config.data.validation."""
    config = defaults.get_config()
    config.batch_size = 8
    config.total_steps = 120
    config.log_every_steps = 1
    config.eval_every_steps = 40
    config.checkpoint_every_steps = 20

    config.model.name = "RN-tiny"
    config.model.image_size = 32
    config.model.vision_width = 8
    config.model.vision_heads = 4
    config.model.embed_dim = 16
    config.model.text_width = 16
    config.model.text_layers = 1
    config.model.context_length = 8
    config.model.vocab_size = 64

    config.optimizer.learning_rate = 5e-3
    config.optimizer.warmup_steps = 10

    config.data.tokenizer = "sentencepiece"
    config.data.augmentation = "random_resized_crop"
    config.data.max_bad_share = 0.1
    return config
