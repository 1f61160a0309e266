"""What the towers see of a batch: all of it, or fewer patches and tokens for cheaper steps."""

from cyclip_jax.errors import UserError
from cyclip_jax.models.presets import patch_grid
from cyclip_jax.models.tokens import check_patch_dropping, choose_patches, shorten


def see_everything(key, batch):
    """The view of a batch that leaves nothing out."""
    del key
    return batch


def reduced_view(sizes, *, patch_dropping, kept_patches, text_length):
    """Makes a view that leaves out patches and shortens texts.

    Args:
      sizes: of the model (see `resolve_sizes`).
      patch_dropping: "none", or how patches are chosen (see `choose_patches`).
      kept_patches: share of the patches that is seen.
      text_length: tokens of a text that are seen, both ends included; None is all.

    Returns:
      Function (key, {"images", "tokens"}) -> the same with fewer tokens and, where patches are
      dropped, "kept_patches" int32 [N, K]; or None where there is nothing to leave out.

    Raises:
      UserError: settings that the model cannot follow.
    """
    is_dropping = patch_dropping != "none"
    grid = patch_grid(sizes)
    check_patch_dropping(patch_dropping, kept_patches, grid)
    if text_length is not None and not 2 <= text_length <= sizes["context_length"]:
        raise UserError(
            f"config.tokens.text_length {text_length} must be from 2 to the model's "
            f"context_length {sizes['context_length']}"
        )
    if not is_dropping and text_length is None:
        return None

    def view(key, batch):
        seen = dict(batch)
        if text_length is not None:
            seen["tokens"] = shorten(batch["tokens"], text_length)
        if is_dropping:
            images = batch["images"].shape[0]
            seen["kept_patches"] = choose_patches(key, images, grid, kept_patches, patch_dropping)
        return seen

    return view


def views_of_run(sizes, total_steps, *, full_steps, **reduction):
    """What the towers see in the course of a run.

    Args:
      sizes: of the model.
      total_steps: length of the run.
      full_steps: so many steps at the end of the run see everything.
      **reduction: of the steps before, arguments of `reduced_view`.

    Returns:
      [(first step, view)], in the order of the steps.
    """
    reduced = reduced_view(sizes, **reduction)
    if full_steps < 0:
        raise UserError(f"config.tokens.full_steps {full_steps} must be at least 0")
    first_full_step = max(total_steps - full_steps, 0)
    if reduced is None or first_full_step == 0:
        return [(0, see_everything)]
    return [(0, reduced)] + ([(first_full_step, see_everything)] if full_steps else [])
