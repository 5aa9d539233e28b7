"""Sounds that a speech detector takes for speech, made of nothing."""

import numpy as np

RATE = 16000
# Centre and width [Hz] of the three lowest formants of five vowels (Peterson and Barney 1952).
_VOWELS = (
    (730, 1090, 2440),
    (270, 2290, 3010),
    (300, 870, 2240),
    (530, 1840, 2480),
    (570, 840, 2410),
)
_WIDTHS = (90, 110, 170)


def speech(seconds: float, seed: int = 0) -> np.ndarray:
    """Return float32 samples: words of some vowels, with pauses and a little noise."""
    random = np.random.default_rng(seed)
    parts: list[np.ndarray] = []
    count, wanted = 0, int(seconds * RATE)
    while count < wanted:
        word = [_vowel(random) for _ in range(random.integers(2, 6))]
        pause = np.zeros(int(RATE * random.uniform(0.2, 1.2)))
        parts += [*word, pause]
        count += sum(map(len, word)) + len(pause)
    sound = np.concatenate(parts)[:wanted]
    return (sound + 0.002 * random.standard_normal(wanted)).astype(np.float32)


def _vowel(random: np.random.Generator) -> np.ndarray:
    """Return pulses of a voice through resonances of second order (Klatt 1980, equation 1)."""
    length = int(RATE * random.uniform(0.1, 0.25))
    pitch = random.uniform(100, 180) * (1 + 0.1 * np.sin(np.linspace(0, np.pi, length)))
    phase = np.cumsum(pitch / RATE)
    spectrum = np.fft.rfft(np.diff(np.floor(phase), prepend=0), 2 * length)
    turn = np.exp(-2j * np.pi * np.fft.rfftfreq(2 * length))
    for centre, width in zip(_VOWELS[random.integers(len(_VOWELS))], _WIDTHS, strict=True):
        radius = np.exp(-np.pi * width / RATE)
        first, second = 2 * radius * np.cos(2 * np.pi * centre / RATE), -(radius**2)
        spectrum *= (1 - first - second) / (1 - first * turn - second * turn**2)
    sound = np.fft.irfft(spectrum)[:length]
    return np.asarray(0.3 * np.hanning(length) * sound / np.abs(sound).max())
