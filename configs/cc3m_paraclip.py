"""The text tower of a trained model learns paraphrases; its image tower stays (Kim et al. 2024).

After ParaCLIP, which adds three losses: images with a paraphrase T″ of their caption, captions T
with paraphrases T′, and T′ with T″. The last two are rows of one table of sentences here. Its
weights and temperatures are not known to us.
"""

from configs import cc3m


def get_config(paraphrases="paraphrases.csv"):
    """Run with --config=configs/cc3m_paraclip.py:PARAPHRASES, --config.init_from and data.train.

    PARAPHRASES is a table with the columns sent0 and sent1, which has rows of (T, T′) and of
    (T′, T″). The training data have T″ in the column `paraphrase`.
    """
    config = cc3m.get_config()
    config.num_epochs = 1
    config.data.caption_key = "paraphrase"
    config.sentences.train = paraphrases
    config.sentences.hard_negative_weight = 0.0  # the table has none
    config.sentences.batch_size = 128
    config.loss.inmodal_weight = config.loss.crossmodal_weight = 0.0
    config.optimizer.freeze = ("visual/.*",)
    config.optimizer.learning_rate = 1e-6
    config.optimizer.warmup_steps = 200
    return config
