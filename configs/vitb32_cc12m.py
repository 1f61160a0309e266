"""CyCLIP with ViT-B/32 on Conceptual Captions 12M, in large batches and bfloat16."""

from configs import cc12m


def get_config():
    """Run with --config.data.train='/data/cc12m/*.tfrecord', or another format's files."""
    config = cc12m.get_config()
    config.batch_size = 4096
    config.eval_every_steps = 5_000
    config.checkpoint_every_steps = 1_000
    config.model.name = "ViT-B/32"
    config.model.dtype = "bfloat16"
    # These are CLIP's values for its vision transformers (Radford et al. 2021, table 19).
    config.optimizer.warmup_steps = 2_000
    config.optimizer.beta2 = 0.98
    config.optimizer.eps = 1e-6
    config.optimizer.weight_decay = 0.2
    config.data.decoder = "fast"
    return config
