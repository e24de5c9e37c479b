"""Convert the pixels of a canvas back to values, independently of the page's code.

The square root of a fraction maps to a path of colours. Signed values map to a path from paper to a hue, or to graphite
below zero; the largest absolute value maps to the end.
"""

from itertools import pairwise

import numpy as np

INK = np.array([[250, 249, 246], [206, 212, 222], [133, 148, 172], [66, 80, 112], [20, 26, 46]], float)
PAPER, GRAPHITE = INK[0], np.array([72, 74, 80], float)
HUE = {
    "query": (0, 84, 158), "key": (182, 66, 0), "value": (0, 106, 78), "residual": (156, 110, 0),
    "forward": (132, 46, 140), "plain": (20, 26, 46),
}  # fmt: skip
FRACTION_BOUND = 0.01  # a colour channel has 256 levels, about 60 between two stops
SIGNED_BOUND = 0.02  # relative to the largest value


def pixels(canvas) -> np.ndarray:
    """Return the pixels of a canvas as [rows, columns, RGBA]."""
    data = canvas.evaluate(
        "c => ({w: c.width, h: c.height, d: [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]})"
    )
    return np.array(data["d"], float).reshape(data["h"], data["w"], 4)


def project(stops: np.ndarray, colours: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Project colours onto a path: return the position on it (0 to 1) and the distance from it."""
    best, off = np.zeros(len(colours)), np.full(len(colours), np.inf)
    for i, (a, b) in enumerate(pairwise(stops)):
        t = np.clip((colours - a) @ (b - a) / ((b - a) @ (b - a)), 0, 1)
        beside = np.linalg.norm(colours - (a + t[:, None] * (b - a)), axis=1)
        nearer = beside < off
        best[nearer], off[nearer] = ((i + t) / (len(stops) - 1))[nearer], beside[nearer]
    return best, off


def drawn_fractions(canvas) -> np.ndarray:
    """Return the fractions drawn on a canvas as [rows, columns]; NaN for transparent pixels."""
    image = pixels(canvas)
    values = project(INK, image[..., :3].reshape(-1, 3))[0].reshape(image.shape[:2]) ** 2
    return np.where(image[..., 3] == 0, np.nan, values)


def drawn_values(canvas, meaning: str, top: float) -> np.ndarray:
    """Return the signed values drawn on a canvas as [rows, columns]; `top` is the largest absolute value."""
    colours = pixels(canvas)[..., :3]
    flat = colours.reshape(-1, 3)
    up, beside_up = project(np.stack([PAPER, np.array(HUE[meaning], float)]), flat)
    down, beside_down = project(np.stack([PAPER, GRAPHITE]), flat)
    return (top * np.where(beside_down < beside_up, -(down**2), up**2)).reshape(colours.shape[:2])
