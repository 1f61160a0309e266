"""CyCLIP with the paper's RN50 on Conceptual Captions 12M (Changpinyo et al. 2021)."""

from configs import cc3m


def get_config():
    """Run with --config.data.train='/data/cc12m/*.tfrecord', or another format's files."""
    config = cc3m.get_config()
    config.batch_size = 1024
    config.num_epochs = 32
    # The published cyclic terms grow with the batch; this keeps the weight that they have at 128.
    config.loss.cyclic_normalization = "batch_size_free"
    config.optimizer.learning_rate = 1e-3
    config.data.augmentation = "random_resized_crop"
    return config
