"""This is cc3m.py with every quirk of the official code; it reproduces the published run."""

from ml_collections.config_dict import placeholder

from configs import cc3m
from cyclip_jax import defaults


def get_config():
    """Run with --config.data.train=/data/cc3m/train.csv.

    COCO and the linear probe are scored if you name their data: --config.evals.coco.pairs=…,
    --config.evals.linear_probe.train=… and --config.evals.linear_probe.test=….
    """
    config = cc3m.get_config()

    # The official code counts epochs from 1, and the schedule's step is epoch·batches + i. At the
    # size of CC3M this skips the warm-up, and in the last epoch, past its end, the cosine rises.
    config.optimizer.schedule_offset_epochs = 1
    # Weight decay spares parameters with "bn", "ln", "bias" or "logit_scale" in their PyTorch name.
    # It does not spare down-sampling BatchNorms ("downsample.1.weight") and positional embeddings.
    config.optimizer.weight_decay_rule = "official_names"

    # Embeddings are gathered from 4 GPUs without their gradient. The towers get a quarter of the
    # true one. Adam divides by its size, so that without clipping only eps shows the difference.
    config.loss.detached_gather_devices = 4

    # BatchNorm sees the 32 images of one GPU.
    config.model.batch_norm_group_size = 32
    # Weights of convolutions, linear layers and projections start as float16 numbers.
    config.model.initial_weights_dtype = "float16"

    # A caption of more than 77 tokens loses its end-of-text, at which the model reads it.
    config.data.keep_end_of_text = False

    config.evals.coco = defaults.retrieval(
        config,
        placeholder(str),
        captions_per_image=1,  # the script that writes COCO's csv keeps one of five captions
        published_recall=True,  # text retrieval counts four hits besides each image's true rank
    )
    config.evals.linear_probe = defaults.linear_probe(
        placeholder(str),
        placeholder(str),
        batch_size=128,  # the official trainer's value; the probe script has 16
    )
    return config
