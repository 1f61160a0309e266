"""Long-CLIP: a trained model learns to read texts of 248 tokens (Zhang et al. 2024).

The model comes from a checkpoint, and so do its sizes but for the length of texts. The batch, the
rate, the decay and the length are those that the authors recommend, and the label smoothing is that
of their code. Beside the loss of long captions stands that of each caption's first sentence against
the primary components of the pictures.
"""

from cyclip_jax import defaults
from cyclip_jax.errors import UserError
from cyclip_jax.interop.pretrained import completed, described_by, open_checkpoint

EXAMPLE = "--config=configs/long_clip.py:CHECKPOINT"
# So many positions stay as they are, and each of the others becomes so many.
KEPT, FACTOR = 20, 4


def get_config(checkpoint=""):
    """Run with --config=configs/long_clip.py:CHECKPOINT and --config.data.train.

    CHECKPOINT is anything that config.init_from may be, such as a folder of open_clip.
    """
    if not checkpoint:
        raise UserError(f"name the model that is to read longer texts: {EXAMPLE}")
    given = completed(open_checkpoint(checkpoint))
    length = given.model["context_length"]
    if length < KEPT + 2:
        raise UserError(f"{checkpoint} reads {length} tokens, too few to keep {KEPT} and stretch")
    config = described_by(given, defaults.get_config())
    config.init_from, config.init_keep_positions = str(checkpoint), KEPT
    config.model.context_length = KEPT + FACTOR * (length - KEPT)

    config.batch_size = 2048
    config.num_epochs = 6
    config.loss.inmodal_weight = config.loss.crossmodal_weight = 0.0
    config.loss.label_smoothing = 0.1
    config.data.second_caption = "first_sentence"
    config.loss.second_view_weight = 0.0  # The sentence is no view that a caption has to find.
    config.loss.primary_components_weight = 1.0
    config.optimizer.learning_rate = 1e-6
    config.optimizer.warmup_steps = 200
    config.optimizer.weight_decay = 0.01
    return config
