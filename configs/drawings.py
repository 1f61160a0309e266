"""CyCLIP on emoji drawings and their names; our tables and configs/sweeps are based on it."""

from cyclip_jax import defaults


def get_config(data="{workdir}/data"):
    """The drawings come from `pip install -e '.[quickstart]'` and are built into `data`."""
    config = defaults.get_config()
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
    config.data.train = f"{data}/train.csv"
    config.data.tokenizer = "sentencepiece"
    config.data.augmentation = "random_resized_crop"
    config.data.crop_scale = (0.6, 1.0)
    config.data.colour_jitter = 0.2

    superclasses = f"{data}/superclasses.json"
    config.evals = {
        name: defaults.retrieval(config, f"{data}/{name}.csv", gallery_captions=8)
        for name in ("new_drawings", "unseen_concepts")
    }
    config.evals.geometry = defaults.geometry(
        f"{data}/new_drawings.csv", reference=f"{data}/train.csv", superclasses=superclasses
    )
    # Which of all drawings that were trained on is it, and of which kind: a flag, a face, a clock?
    config.evals.concepts = defaults.consistency(
        f"{data}/train.csv",
        f"{data}/new_drawings.csv",
        label_key="caption",
        templates=("{}",),
        superclasses=superclasses,
    )
    config.evals.kinds = defaults.consistency(
        f"{data}/kinds_train.csv", f"{data}/kinds_held_out.csv", templates=("{}",)
    )
    return config


def get_run(seed):
    """One of several runs that share a folder, and the drawings in it; evaluated at its end."""
    config = get_config(data="{workdir}/../data")
    config.seed = seed
    config.eval_every_steps = 0
    return config
