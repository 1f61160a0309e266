"""Re-exports the defaults of cyclip_jax/defaults.py, so that old config files go on working."""

from cyclip_jax.defaults import *  # noqa: F403
