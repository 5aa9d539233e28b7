"""Write the unit with which systemd keeps an agent running."""

import re
import sys
from pathlib import Path

from edgec.compiler.errors import UsageError

_UNIT = """\
[Unit]
Description=Updates of the model in {folder}
After=network-online.target
Wants=network-online.target

[Service]
ExecStart={command}
Restart=always
RestartSec=30
{user}Nice=10
# It writes to its folder only, gains no rights, and does not take the machine with it.
ReadWritePaths={folder}
ProtectSystem=strict
ProtectHome=read-only
PrivateTmp=yes
NoNewPrivileges=yes
CapabilityBoundingSet=
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
LockPersonality=yes
RestrictSUIDSGID=yes
MemoryMax={memory}M
TasksMax=256

[Install]
WantedBy={target}
"""


def service_unit(
    folder: Path, every_seconds: float, user: str | None, most_memory_mb: int = 1024
) -> str:
    """Return the text of a unit file.

    Args:
        folder: of the agent.
        every_seconds: how often it looks for releases, about.
        user: who runs it, in a unit of the system; None gives a unit of the user who has it.
        most_memory_mb: for the agent and what it tests.

    Raises:
        UsageError: the folder's name has characters that unit files read otherwise.
    """
    path = str(folder.absolute())
    for name in (path, sys.executable):
        if not re.fullmatch(r"[A-Za-z0-9/._-]+", name):
            raise UsageError(f"{name}: systemd needs a path of plain letters")
    return _UNIT.format(
        folder=path,
        command=f"{sys.executable} -m edgec.compiler update agent {path} --every {every_seconds:g}",
        user=f"User={user}\n" if user else "",
        memory=most_memory_mb,
        target="multi-user.target" if user else "default.target",
    )
