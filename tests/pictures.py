"""Small pictures of shapes, and pairs of them with captions."""

import csv

import numpy as np
from PIL import Image

COLOURS = {"red": (220, 30, 30), "green": (20, 160, 40), "blue": (30, 60, 210), "grey": (128,) * 3}
SHAPES = ("square", "disc", "cross", "ring", "bar", "frame")


def draw(shape, colour, size=40):
    """A shape on white, uint8 [size, size, 3]."""
    y, x = np.mgrid[:size, :size] / (size - 1) * 2 - 1
    radius, square = np.hypot(x, y), np.maximum(abs(x), abs(y))
    mask = {
        "square": square < 0.6,
        "disc": radius < 0.7,
        "cross": (abs(x) < 0.2) | (abs(y) < 0.2),
        "ring": (radius < 0.8) & (radius > 0.45),
        "bar": abs(y) < 0.3,
        "frame": (square < 0.9) & (square > 0.6),
    }[shape]
    return np.where(mask[..., None], COLOURS[colour], 255).astype(np.uint8)


def write_pairs(folder, name="train.csv"):
    """Writes 24 pictures and a CSV of their captions; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / name, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "caption"])
        for shape in SHAPES:
            for colour in COLOURS:
                path = folder / f"{colour}_{shape}.png"
                Image.fromarray(draw(shape, colour)).save(path)
                writer.writerow([path.name, f"a {colour} {shape}"])
    return folder / name
