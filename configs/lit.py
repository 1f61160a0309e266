"""LiT: a text tower learns to suit a locked image tower (Zhai et al. 2022).

The image tower comes from a checkpoint, and so do its sizes. The rate, the decay, the clipping and
the batch are those of the authors' published configuration.
"""

from cyclip_jax import defaults
from cyclip_jax.errors import UserError
from cyclip_jax.interop.folders import CLIP_VOCAB_SIZE
from cyclip_jax.interop.pretrained import completed, open_checkpoint

EXAMPLE = "--config=configs/lit.py:CHECKPOINT"


def get_config(checkpoint=""):
    """Run with --config=configs/lit.py:CHECKPOINT and --config.data.train.

    CHECKPOINT is anything that config.init_from may be, such as a folder of open_clip. The text
    tower has the sizes of the checkpoint's, random weights, and CLIP's vocabulary.
    """
    if not checkpoint:
        raise UserError(f"name the model whose image tower is to be locked: {EXAMPLE}")
    given = completed(open_checkpoint(checkpoint))
    config = defaults.get_config()
    config.init_from, config.init_parts = str(checkpoint), ("visual",)
    config.optimizer.freeze = ("visual/.*",)

    config.model.update(given.model)
    config.model.vocab_size = CLIP_VOCAB_SIZE
    config.data.image_mean = tuple(given.preprocess["image_mean"])
    config.data.image_std = tuple(given.preprocess["image_std"])

    config.batch_size = 4096
    config.total_steps = 5_000
    config.loss.inmodal_weight = config.loss.crossmodal_weight = 0.0
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 150
    config.optimizer.weight_decay = 0.01
    config.optimizer.gradient_clip_norm = 1.0
    return config
