"""CyCLIP on CC3M whose text tower is trained on entailed sentences, before pairs and beside them.

After Gao et al. 2021 (SimCSE, supervised) as Zhao et al. 2024 apply it to CyCLIP. Their weights,
lengths and data are not known.
"""

from configs import cc3m

TRIPLETS = 275_601  # rows of nli_for_simcse.csv


def get_config(train="nli_for_simcse.csv"):
    """Run with --config=configs/cc3m_nli.py:/data/nli_for_simcse.csv and --config.data.train=…."""
    config = cc3m.get_config()
    config.sentences.train = train
    config.sentences.batch_size = 512
    config.sentences.only_steps = 3 * TRIPLETS // 512  # three epochs, as SimCSE
    return config
