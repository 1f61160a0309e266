"""The defaults of every experiment: see cyclip_jax/defaults.py."""

from cyclip_jax.defaults import *  # noqa: F403
