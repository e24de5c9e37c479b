"""Convert the PNG of `glassformer inspect` back to numbers."""

import io
import json

import numpy as np
from e2e.pixels import GRAPHITE, HUE, INK, PAPER, project
from PIL import Image


def decoded(data: bytes) -> list[tuple[dict, np.ndarray]]:
    """Return each matrix of a PNG: its description, and the numbers that its colours stand for."""
    image = Image.open(io.BytesIO(data))
    pixels, found = np.array(image.convert("RGB"), float), []
    for one in json.loads(image.text["glassformer"])["matrices"]:
        middle = one["field"] // 2
        ys = one["top"] + middle + one["field"] * np.arange(one["rows"])
        xs = one["left"] + middle + one["field"] * np.arange(one["columns"])
        colours = pixels[np.ix_(ys, xs)].reshape(-1, 3)
        if one["probs"]:
            values = project(INK, colours)[0] ** 2
        else:
            up, beside_up = project(np.stack([PAPER, np.array(HUE[one["hue"]], float)]), colours)
            down, beside_down = project(np.stack([PAPER, GRAPHITE]), colours)
            values = one["scale"] * np.where(beside_down < beside_up, -(down**2), up**2)
        found.append((one, values.reshape(one["rows"], one["columns"])))
    return found
