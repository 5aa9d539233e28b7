"""Provide numbers of Linux system calls that the C library has no functions for."""

import platform

# request_key(2) and keyctl(2): other architectures than these have the generic numbers.
_KEYRING = {"x86_64": (249, 250), "armv7l": (310, 311)}
_GENERIC_KEYRING = (218, 219)


def keyring_calls() -> tuple[int, int]:
    """Return the numbers of request_key and keyctl on this machine."""
    return _KEYRING.get(platform.machine(), _GENERIC_KEYRING)
