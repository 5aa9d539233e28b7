"""Provide the secret keys that decrypt bundles here, and the names of those they are for.

The variable EDGEC_IDENTITY says where the secret is: `file:PATH`, `keyring:NAME` for a key of type
`user` of the kernel's keyring, or `command:WORDS` for what a shell command prints.
`native/identity.c` reads the same.
"""

import ctypes
import os
import subprocess
from pathlib import Path

from edgec.compiler.errors import KeyFileError
from edgec.compiler.trust.age import Identity, Recipient
from edgec.compiler.trust.keys import (
    NAME,
    check_name,
    keys_folder,
    read_key_file,
    write_secret,
)
from edgec.compiler.trust.system_calls import keyring_calls

VARIABLE = "EDGEC_IDENTITY"
COMMAND_SECONDS = 60
_SECRET_BYTES = 1 << 16
_KEYCTL_READ = 11


def new_identity(name: str) -> Identity:
    """Make an identity and write it to NAME.identity, and the recipient to NAME.recipient.

    Raises:
        KeyFileError: the name cannot be, or is taken.
        OutputError: the file cannot be written.
    """
    check_name(name)
    identity = Identity.new()
    text = f"# recipient: {identity.recipient}\n{identity}\n"
    write_secret(keys_folder() / f"{name}.identity", text.encode())
    (keys_folder() / f"{name}.recipient").write_text(f"{identity.recipient}\n")
    return identity


def own_recipients() -> dict[str, Recipient]:
    """Return the public halves of this user's identities, by name."""
    return {path.stem: _recipient(path) for path in sorted(keys_folder().glob("*.recipient"))}


def load_recipient(given: str) -> Recipient:
    """Read a recipient: its text, the name of an own identity, or a file.

    Raises:
        KeyFileError: there is none.
    """
    if given.startswith("age1"):
        return Recipient.parse(given)
    own = keys_folder() / f"{given}.recipient"
    return _recipient(own if NAME.fullmatch(given) and not Path(given).is_file() else Path(given))


def load_identities() -> list[Identity]:
    """Read the secret keys of this machine.

    Raises:
        KeyFileError: none are given, or they cannot be read.
    """
    given = os.environ.get(VARIABLE, "")
    kind, _, where = given.partition(":")
    if kind == "file" and where:
        data = read_key_file(Path(where), f"{VARIABLE}={given}")
    elif kind == "keyring" and where:
        data = _from_keyring(where)
    elif kind == "command" and where:
        data = _from_command(where)
    else:
        raise KeyFileError(
            f"{VARIABLE} is {given!r}; it says where the secret key is: file:PATH, keyring:NAME or "
            "command:WORDS"
        )
    lines = [line.strip() for line in data.decode(errors="replace").splitlines()]
    identities = [Identity.parse(line) for line in lines if line and not line.startswith("#")]
    if not identities:
        raise KeyFileError(f"{VARIABLE}={given} holds no identity; make one: edgec keys new --help")
    return identities


def _recipient(path: Path) -> Recipient:
    hint = "; make one: edgec keys new NAME --encryption"
    data = read_key_file(path, f"recipient {path.stem}", hint)
    return Recipient.parse(data.decode(errors="replace").strip())


def _from_keyring(name: str) -> bytes:
    library = ctypes.CDLL(None, use_errno=True)
    request, control = keyring_calls()
    key = library.syscall(request, b"user", name.encode(), None, 0)
    if key >= 0:
        data = ctypes.create_string_buffer(_SECRET_BYTES)
        size = library.syscall(control, _KEYCTL_READ, key, data, len(data), 0)
        if 0 <= size <= len(data):
            return data.raw[:size]
    reason = os.strerror(ctypes.get_errno())
    raise KeyFileError(f"key {name} of the kernel's keyring cannot be read: {reason}")


def _from_command(words: str) -> bytes:
    try:
        done = subprocess.run(
            ["sh", "-c", words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            timeout=COMMAND_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise KeyFileError(f"command {words!r} gave no key in {COMMAND_SECONDS} s") from None
    if done.returncode != 0:
        raise KeyFileError(f"command {words!r} gave no key: exit code {done.returncode}")
    return done.stdout[:_SECRET_BYTES]
