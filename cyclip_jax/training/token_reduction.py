"""Decides what the towers see of a batch: all, or fewer patches and tokens for cheaper steps."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax

from cyclip_jax.errors import UserError, check_known
from cyclip_jax.models.presets import patch_grid
from cyclip_jax.models.tokens import (
    TEXT_CHOICES,
    check_patch_dropping,
    choose_patches,
    choose_tokens,
    shorten,
)
from cyclip_jax.training.schedules import check_warmup

# Of a batch, each with random draws of its own.
_TEXTS = ("tokens", "second_tokens", "negative_tokens")

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
      image_size: pixels per side of the images that are seen; None is those of the model.
      text_length: how many tokens of a text are seen, both ends included; None is all.
      text_choice: which they are, "first" or as `choose_tokens` has it.
      full_steps: how many steps at the end of the run see everything.
      full_learning_rate: the highest learning rate of these steps, which then have a course of
        their own, as the steps before them; None is one course for the whole run.
      full_warmup_steps: the warm-up of that course.

    Raises:
      UserError: the settings do not suit each other.
    """

    patch_dropping: str
    kept_patches: float
    text_length: int | None
    full_steps: int
    image_size: int | None
    text_choice: str
    full_learning_rate: float | None
    full_warmup_steps: int

    def __post_init__(self) -> None:
        if self.full_steps < 0:
            raise UserError(f"config.tokens.full_steps {self.full_steps} must be at least 0")
        check_known("config.tokens.text_choice", self.text_choice, TEXT_CHOICES)
        if self.text_choice != "first" and self.text_length is None:
            raise UserError(
                f"config.tokens.text_choice {self.text_choice!r} chooses among the tokens of a "
                "text, of which all are seen; set config.tokens.text_length"
            )
        rate = self.full_learning_rate
        if rate is not None and (rate <= 0 or not self.full_steps):
            raise UserError(
                f"config.tokens.full_learning_rate {rate} must be greater than 0, and is that of "
                f"the last config.tokens.full_steps {self.full_steps} steps, which must be too"
            )
        if self.full_warmup_steps and rate is None:
            raise UserError(
                "config.tokens.full_warmup_steps is the warm-up of config.tokens."
                "full_learning_rate; set that too"
            )
        name = "config.tokens.full_warmup_steps"
        check_warmup(self.full_warmup_steps, self.full_steps or None, name)

    @property
    def own_course(self) -> tuple[int, float, int] | None:
        """(steps, highest rate, warm-up) of the full steps, where they have their own course."""
        rate = self.full_learning_rate
        return None if rate is None else (self.full_steps, rate, self.full_warmup_steps)

    def image_size_at(self, step: int, total_steps: int) -> int | None:
        """Pixels per side of the images that a step sees; None is those of the model."""
        return self.image_size if step < self.first_full_step(total_steps) else None

    def first_full_step(self, total_steps: int) -> int:
        """The first step of a run that sees everything; its length where none does."""
        return max(total_steps - self.full_steps, 0)

    def reduced_view(self, sizes: Mapping[str, Any]) -> View | None:
        """The view that leaves out patches and shortens texts.

        Args:
          sizes: the model's sizes (see `resolve_sizes`).

        Returns:
          Function (key, {"images", "tokens", …}) -> the same with fewer tokens of captions and,
          where patches are dropped, "kept_patches" int32 [N, K]; or None where there is nothing to
          leave out. Images of another size come from the data.

        Raises:
          UserError: the settings do not suit the model.
        """
        is_dropping, text_length = self.patch_dropping != "none", self.text_length
        if self.image_size is not None:
            _check_image_size(self.image_size, sizes)
            sizes = {**sizes, "image_size": self.image_size}
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
                for number, name in enumerate(_TEXTS, start=1):
                    if name not in seen:
                        continue
                    elif self.text_choice == "first":
                        seen[name] = shorten(batch[name], text_length)
                    else:
                        own = jax.random.fold_in(key, number)
                        seen[name] = choose_tokens(own, batch[name], text_length, self.text_choice)
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
        first_full_step = self.first_full_step(total_steps)
        if reduced is None and self.image_size is not None:
            reduced = see_everything
        if reduced is None or first_full_step == 0:
            return [(0, see_everything)]
        return [(0, reduced)] + ([(first_full_step, see_everything)] if self.full_steps else [])


def _check_image_size(size, sizes):
    """Raises UserError where a model cannot take images of another size than its own."""
    patch, whole = sizes["patch_size"], sizes["image_size"]
    if patch_grid(sizes) is None:
        raise UserError(
            f"config.tokens.image_size {size} does not apply to a ResNet: its attention pool has "
            "a position for each place of a whole image"
        )
    if not 0 < size < whole or size % patch:
        raise UserError(
            f"config.tokens.image_size {size} must be a multiple of the model's patches of {patch} "
            f"pixels, and less than its images of {whole}"
        )
