"""The sizes of published models, and of small ones of ours, by name."""

from typing import Any

_TEXT = {"context_length": 77, "vocab_size": 49408, "text_width": 512, "text_layers": 12}

_SMALL = {  # as open_clip has it
    "image_size": 224,
    "embed_dim": 384,
    "vision_tower": "vit",
    "vision_layers": 12,
    "vision_width": 384,
    **_TEXT,
    "text_width": 384,
}
_LARGE = {
    "image_size": 224,
    "embed_dim": 768,
    "vision_tower": "vit",
    "vision_layers": 24,
    "vision_width": 1024,
    "patch_size": 14,
    **_TEXT,
    "text_width": 768,
}
_SIGLIP = {
    "vision_tower": "siglip",
    "patch_size": 16,
    "context_length": 64,
    "vocab_size": 32_000,
    "text_attention": "full",
    "text_pool": "last",
    "text_projection_bias": True,
    "text_epsilon": 1e-6,
}

# Radford et al. 2021, tables 19 and 20.
# Heads that are not named follow from the width, 64 channels each.
PRESETS: dict[str, dict[str, Any]] = {
    "RN50": {
        "image_size": 224,
        "embed_dim": 1024,
        "vision_tower": "resnet",
        "vision_layers": (3, 4, 6, 3),
        "vision_width": 64,
        **_TEXT,
    },
    "RN101": {
        "image_size": 224,
        "embed_dim": 512,
        "vision_tower": "resnet",
        "vision_layers": (3, 4, 23, 3),
        "vision_width": 64,
        **_TEXT,
    },
    "RN50x4": {
        "image_size": 288,
        "embed_dim": 640,
        "vision_tower": "resnet",
        "vision_layers": (4, 6, 10, 6),
        "vision_width": 80,
        **_TEXT,
        "text_width": 640,
    },
    "RN50x16": {
        "image_size": 384,
        "embed_dim": 768,
        "vision_tower": "resnet",
        "vision_layers": (6, 8, 18, 8),
        "vision_width": 96,
        **_TEXT,
        "text_width": 768,
    },
    "RN50x64": {
        "image_size": 448,
        "embed_dim": 1024,
        "vision_tower": "resnet",
        "vision_layers": (3, 15, 36, 10),
        "vision_width": 128,
        **_TEXT,
        "text_width": 1024,
    },
    "ViT-S/32": {**_SMALL, "patch_size": 32},
    "ViT-S/16": {**_SMALL, "patch_size": 16},
    "ViT-B/32": {
        "image_size": 224,
        "embed_dim": 512,
        "vision_tower": "vit",
        "vision_layers": 12,
        "vision_width": 768,
        "patch_size": 32,
        **_TEXT,
    },
    "ViT-B/16": {
        "image_size": 224,
        "embed_dim": 512,
        "vision_tower": "vit",
        "vision_layers": 12,
        "vision_width": 768,
        "patch_size": 16,
        **_TEXT,
    },
    "ViT-L/14": _LARGE,
    "ViT-L/14-336": {**_LARGE, "image_size": 336},
    # Zhai et al. 2023; the sizes are those of open_clip's models of these names.
    "ViT-B/16-SigLIP": {
        "image_size": 224,
        "embed_dim": 768,
        "vision_layers": 12,
        "vision_width": 768,
        **_SIGLIP,
        "text_width": 768,
        "text_layers": 12,
    },
    "ViT-L/16-SigLIP-256": {
        "image_size": 256,
        "embed_dim": 1024,
        "vision_layers": 24,
        "vision_width": 1024,
        **_SIGLIP,
        "text_width": 1024,
        "text_layers": 24,
    },
    # Sizes of ours, for two cores: a first run, and tests.
    "RN-tiny": {
        "image_size": 64,
        "embed_dim": 64,
        "vision_tower": "resnet",
        "vision_layers": (1, 1, 1, 1),
        "vision_width": 16,
        "context_length": 16,
        "vocab_size": 512,
        "text_width": 64,
        "text_layers": 2,
        "text_heads": 2,
    },
    "ViT-tiny": {
        "image_size": 32,
        "embed_dim": 64,
        "vision_tower": "vit",
        "vision_layers": 2,
        "vision_width": 64,
        "vision_heads": 2,
        "patch_size": 8,
        "context_length": 16,
        "vocab_size": 512,
        "text_width": 64,
        "text_layers": 2,
        "text_heads": 2,
    },
}
