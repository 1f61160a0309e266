"""SimCSE on the text tower of any model: no pairs, the image tower stays as it is.

Hyper-parameters are those of Gao et al. 2021 (tables A.1 and D.1, and their scripts) for BERT-base.
Their learning rate falls along a line, ours along a cosine.
"""

from cyclip_jax import defaults
from cyclip_jax.data.sentences import is_supervised


def get_config(train="wiki1m_for_simcse.txt"):
    """Run with --config=configs/sentences_only.py:FILE and --config.init_from=WORKDIR or export.

    The model of the config must be that of init_from. A .txt is trained on without supervision, a
    .csv, .tsv or .jsonl with it.
    """
    config = defaults.get_config()
    config.sentences.train = train
    if is_supervised(train):
        config.sentences.batch_size = 512
        config.total_steps = 3 * 275_601 // 512
        config.optimizer.learning_rate = 5e-5
    else:
        config.sentences.batch_size = 64
        config.sentences.head = "mlp"
        config.total_steps = 1_000_000 // 64
        config.optimizer.learning_rate = 3e-5
    config.sentences.only_steps = config.get_ref("total_steps")
    config.optimizer.warmup_steps = 0
    config.optimizer.weight_decay = 0.0
    config.optimizer.gradient_clip_norm = 1.0
    return config
