"""How far apart two pictures are."""

import math

import numpy as np


def psnr_db(a: np.ndarray, b: np.ndarray, *, peak: float) -> float:
    """Peak signal-to-noise ratio in dB; infinity for equal arrays."""
    error = float(np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2))
    return math.inf if error == 0 else 10 * math.log10(peak**2 / error)
