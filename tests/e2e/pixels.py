"""What a picture's pixels say: the page's colours turned back into numbers, written from their description alone.

Shares run along a line of colours by their square root; signed numbers from paper to a hue (graphite below zero), the
largest at its end.
"""

from itertools import pairwise

import numpy as np

INK = np.array([[250, 249, 246], [206, 212, 222], [133, 148, 172], [66, 80, 112], [20, 26, 46]], float)
PAPER, GRAPHITE = INK[0], np.array([72, 74, 80], float)
HUE = {
    "query": (0, 84, 158), "key": (182, 66, 0), "value": (0, 106, 78), "residual": (156, 110, 0),
    "forward": (132, 46, 140), "plain": (20, 26, 46),
}  # fmt: skip
SHARE_BOUND = 0.01  # a colour channel has 256 steps, and the line between two stops about 60
SIGNED_BOUND = 0.02  # of the largest


def pixels(canvas) -> np.ndarray:
    """[rows, columns, RGBA] of a canvas, one field for each number."""
    data = canvas.evaluate(
        "c => ({w: c.width, h: c.height, d: [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]})"
    )
    return np.array(data["d"], float).reshape(data["h"], data["w"], 4)


def along(stops: np.ndarray, colours: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How far along a line of colours each one lies, 0 to 1, and how far beside it."""
    best, off = np.zeros(len(colours)), np.full(len(colours), np.inf)
    for i, (a, b) in enumerate(pairwise(stops)):
        t = np.clip((colours - a) @ (b - a) / ((b - a) @ (b - a)), 0, 1)
        beside = np.linalg.norm(colours - (a + t[:, None] * (b - a)), axis=1)
        nearer = beside < off
        best[nearer], off[nearer] = ((i + t) / (len(stops) - 1))[nearer], beside[nearer]
    return best, off


def shares(canvas) -> np.ndarray:
    """[rows, columns] of shares; NaN where nothing is drawn."""
    image = pixels(canvas)
    values = along(INK, image[..., :3].reshape(-1, 3))[0].reshape(image.shape[:2]) ** 2
    return np.where(image[..., 3] == 0, np.nan, values)


def signed(canvas, meaning: str, top: float) -> np.ndarray:
    """[rows, columns] of signed numbers, the largest of size `top`."""
    colours = pixels(canvas)[..., :3]
    flat = colours.reshape(-1, 3)
    up, beside_up = along(np.stack([PAPER, np.array(HUE[meaning], float)]), flat)
    down, beside_down = along(np.stack([PAPER, GRAPHITE]), flat)
    return (top * np.where(beside_down < beside_up, -(down**2), up**2)).reshape(colours.shape[:2])
