"""Digits of scikit-learn as a user's labelled data."""

from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

IMAGES = 60


def write_digits(folder: Path) -> Path:
    """Write digits with labels, one label of six made wrong, and `bare.npz` without; the first."""
    digits = load_digits()
    labels = digits.target[:IMAGES].copy()
    labels[::6] = (labels[::6] + 1) % 10
    path = folder / "digits.npz"
    images = (digits.images[:IMAGES, None] / 16).astype(np.float32)
    np.savez(path, image=images, labels=labels)
    np.savez(path.with_name("bare.npz"), image=images)
    return path
