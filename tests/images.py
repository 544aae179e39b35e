"""What is drawn on a figure that was saved."""

from pathlib import Path

import numpy as np
from matplotlib.image import imread


def ink(path: Path) -> float:
    """The share of its pixels that are not as the one in its corner: 0 of an empty figure."""
    pixels = imread(path)[..., :3]
    return float(np.mean(np.any(pixels != pixels[0, 0], axis=-1)))
