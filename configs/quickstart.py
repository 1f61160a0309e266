"""A first run: CyCLIP on emoji drawings and their names takes minutes on two cores."""

from configs import drawings


def get_config():
    """The drawings come from `pip install -e '.[quickstart]'` and are built into the workdir."""
    return drawings.get_config()
