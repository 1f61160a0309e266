"""`from tests.pytorch import open_clip, timm, torch`: the packages that parity is tested against.

PyPI's torchvision is built for CUDA. Beside a CPU build of torch its operators do not load, and
importing it fails where it registers two of them. Nothing here uses them: declaring them is enough.
"""

import importlib.util

import torch

BOXES = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def declare_missing_operators():
    """Declares what torchvision registers on import; where its own library loads, nothing."""
    folder = importlib.util.find_spec("torchvision").submodule_search_locations[0]
    try:
        torch.ops.load_library(f"{folder}/_C.so")
    except OSError:
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", BOXES)


declare_missing_operators()

import open_clip  # noqa: E402
import timm  # noqa: E402

__all__ = ["open_clip", "timm", "torch"]
