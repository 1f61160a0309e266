"""Decides what the towers see of a batch: all, or fewer patches and tokens for cheaper steps."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax

from cyclip_jax.errors import UserError
from cyclip_jax.models.presets import patch_grid
from cyclip_jax.models.tokens import check_patch_dropping, choose_patches, shorten

View: TypeAlias = Callable[[jax.Array, Mapping[str, jax.Array]], Mapping[str, jax.Array]]


def see_everything(key: jax.Array, batch: Mapping[str, jax.Array]) -> Mapping[str, jax.Array]:
    """The view of a batch that leaves nothing out."""
    del key
    return batch


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenReduction:
    """config.tokens.

    Attributes:
      patch_dropping: "none", or how patches are chosen (see `choose_patches`).
      kept_patches: share of the patches that is seen where some are dropped.
      text_length: how many tokens of a text are seen, both ends included; None is all.
      full_steps: how many steps at the end of the run see everything.

    Raises:
      UserError: full_steps is negative.
    """

    patch_dropping: str
    kept_patches: float
    text_length: int | None
    full_steps: int

    def __post_init__(self) -> None:
        if self.full_steps < 0:
            raise UserError(f"config.tokens.full_steps {self.full_steps} must be at least 0")

    def reduced_view(self, sizes: Mapping[str, Any]) -> View | None:
        """The view that leaves out patches and shortens texts.

        Args:
          sizes: the model's sizes (see `resolve_sizes`).

        Returns:
          Function (key, {"images", "tokens", …}) -> the same with fewer tokens of captions and,
          where patches are dropped, "kept_patches" int32 [N, K]; or None where there is nothing to
          leave out.

        Raises:
          UserError: the settings do not suit the model.
        """
        is_dropping, text_length = self.patch_dropping != "none", self.text_length
        grid = patch_grid(sizes)
        check_patch_dropping(self.patch_dropping, self.kept_patches, grid)
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
                for name in {"tokens", "second_tokens", "negative_tokens"} & seen.keys():
                    seen[name] = shorten(batch[name], text_length)
            if is_dropping and grid is not None:
                seen["kept_patches"] = choose_patches(
                    key, batch["images"].shape[0], grid, self.kept_patches, self.patch_dropping
                )
            return seen

        return view

    def views_of_run(self, sizes: Mapping[str, Any], total_steps: int) -> list[tuple[int, View]]:
        """What the towers see in the course of a run.

        Args:
          sizes: the model's sizes.
          total_steps: length of the run.

        Returns:
          [(first step, view)], in the order of the steps.

        Raises:
          UserError: as `reduced_view`.
        """
        reduced = self.reduced_view(sizes)
        first_full_step = max(total_steps - self.full_steps, 0)
        if reduced is None or first_full_step == 0:
            return [(0, see_everything)]
        return [(0, reduced)] + ([(first_full_step, see_everything)] if self.full_steps else [])
