"""Compares cheap phases of training, on small images and short captions, on emoji drawings."""

from configs import drawings

# So many of the 760 steps see whole images and texts at the end, with a third of the rate.
FULL_STEPS = 190
_THEN_FULL = {"full_steps": FULL_STEPS, "full_learning_rate": 1e-3, "full_warmup_steps": 20}
# What each arm changes in config.tokens. Captions have up to 16 tokens.
ARMS = {
    "whole": {},
    "small": {"image_size": 32, **_THEN_FULL},
    "dropped": {"patch_dropping": "random", "kept_patches": 0.25, **_THEN_FULL},
}
SEEDS = (0, 1, 2)


def get_runs():
    """Returns {name: config}; the arms of a seed come before those of the next seed."""
    return {f"{arm}_seed{seed}": _run(arm, seed) for seed in SEEDS for arm in ARMS}


def _run(arm, seed):
    config = drawings.get_run(seed)
    # A ResNet takes whole images alone.
    config.model.name, config.model.image_size = "ViT-tiny", 64
    config.loss.cyclic_warmup_steps = 150  # A small ViT does not begin to learn without.
    config.tokens.update(ARMS[arm])
    return config
