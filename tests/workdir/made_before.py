"""A config file as written before 0.2.0; made_before.tar.xz is its run, cut off at step 3."""

from configs import common


def get_config():
    config = common.get_config()
    config.batch_size = 8
    config.total_steps = 6
    config.log_every_steps = 1
    config.checkpoint_every_steps = 3
    config.model.name = "RN-tiny"
    config.model.image_size = 32
    config.model.vision_width = 2
    config.model.vision_heads = 2
    config.model.embed_dim = 8
    config.model.text_width = 8
    config.model.text_heads = 2
    config.model.text_layers = 1
    config.model.context_length = 8
    config.model.vocab_size = 64
    config.optimizer.warmup_steps = 2
    config.optimizer.learning_rate = 5e-3
    config.data.train = "{workdir}/../pairs/train.csv"
    config.data.validation = "{workdir}/../pairs/train.csv"
    config.data.tokenizer = "sentencepiece"
    config.evals.probe = common.linear_probe(
        "{workdir}/../pairs/labels_train.csv",
        "{workdir}/../pairs/labels_test.csv",
        method="lbfgs",
        regularization=0.1,
    )
    return config
