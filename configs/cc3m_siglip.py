"""CyCLIP's terms beside SigLIP's sigmoid loss on CC3M (Zhai et al. 2023).

The paper of CyCLIP chose its weights beside a softmax at 128 pairs. They are kept in the form that
weighs the same at any batch size.
"""

from configs import cc3m


def get_config():
    """Run with --config.data.train=/data/cc3m/train.csv."""
    config = cc3m.get_config()
    config.loss.contrastive = "sigmoid"
    config.loss.cyclic_normalization = "batch_size_free"
    config.model.logit_bias = True
    return config
