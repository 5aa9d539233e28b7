"""Provide stage places: where the stages of a plan are, and what starts those that are here."""

import dataclasses
import socket
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from edgec.compiler.bundle.bundle import Bundle
from edgec.compiler.bundle.manifest import MANIFEST
from edgec.compiler.distribute.connection import new_key, read_key, split_address
from edgec.compiler.distribute.http_stage import HttpStage, is_http
from edgec.compiler.distribute.stage_process import AttachedStage, StageProcess
from edgec.compiler.distribute.stages import StageAddress, digest_of
from edgec.compiler.errors import UsageError, did_you_mean
from edgec.compiler.split.plan import Plan
from edgec.compiler.support.addresses import is_loopback
from edgec.compiler.support.progress import Progress

if TYPE_CHECKING:
    from edgec.compiler.boards.config import Board

SPARE_SLOTS = 2
# Each costs memory; of more stages many work at the same time, for one request.
MOST_SLOTS = 6
# What stands before the name of a board that edgec knows.
BOARD = "board:"


@dataclass(frozen=True)
class StageOptions:
    """Stage options say how stages that are started here run.

    Attributes:
        threads: to compute on, each.
        slots: requests that each has memory for; 0: two more than there are stages, 8 at most.
        key_file: what host and stages share; None: plain, on this machine only.
        cores: by the name of a bundle or device the cores that its stage may use.
        http_key_file: holds the key that servers of the Open Inference Protocol want.
        http_timeout: how long such a server may take for an answer [s].
    """

    threads: int = 1
    slots: int = 0
    key_file: Path | None = None
    cores: Mapping[str, frozenset[int]] = field(default_factory=dict)
    http_key_file: Path | None = None
    http_timeout: float = 5.0


class StagePlaces:
    """Stage places know an address of each stage of a plan, and others to try when that is lost."""

    def __init__(
        self,
        plan: Plan,
        bundles: Mapping[str, Bundle],
        devices: Mapping[str, str],
        options: StageOptions,
        progress: Progress,
    ) -> None:
        """Prepare; nothing is started yet.

        Args:
            plan: the plan.
            bundles: of its stages, by name.
            devices: addresses by the name of a device, or of a bundle where a device has several:
                HOST:PORT, several with commas between them; board:NAME, a board of edgec's,
                where the stage is started; or an http:// URL of a model that a server of the Open
                Inference Protocol has.
            options: of the stages that are started: all that `devices` names no address of.
            progress: reports what is fetched the first time.

        Raises:
            UsageError: the plan has no device of such a name.
            BoardConfigError: there is no such board, or no way to it through ssh.
            BundleError: a bundle is for another machine than the board.
        """
        self._bundles = bundles
        self._progress = progress
        self._devices = plan.bundles
        self._processes: dict[str, AttachedStage] = {}
        known = {*self._devices, *self._devices.values()}
        for name in devices:
            if name not in known:
                names = ", ".join(sorted(set(self._devices.values())))
                raise UsageError(
                    f"the plan has no device {name}{did_you_mean(name, known)}; it has {names}"
                )
        self._remote: dict[str, list[str]] = {}
        self._boards: dict[str, Board] = {}
        for bundle, device in self._devices.items():
            given = devices.get(bundle, devices.get(device, ""))
            if given.startswith(BOARD):
                self._name_board(bundle, given.removeprefix(BOARD))
            elif given:
                self._remote[bundle] = [part.strip() for part in given.split(",")]
        several = [
            device
            for device in devices
            if sum(1 for bundle in self._remote if self._devices[bundle] == device) > 1
        ]
        if several:
            names = ", ".join(b for b, device in self._devices.items() if device == several[0])
            raise UsageError(
                f"device {several[0]} has several stages, each with an address of its own; name "
                f"their bundles: {names}"
            )
        self._http: dict[str, HttpStage] = {}
        self._key_file = tempfile.NamedTemporaryFile("w", prefix="edgec-key-")  # noqa: SIM115
        if self._boards and options.key_file is None:
            self._key_file.write(new_key())
            self._key_file.flush()
            options = dataclasses.replace(options, key_file=Path(self._key_file.name))
        self._options = options

    def _name_board(self, bundle: str, name: str) -> None:
        # Imported here: most plans know addresses, or run here.
        from edgec.compiler.distribute.board_stage import board_for

        board = board_for(self._bundles[bundle], name)
        # QEMU plays the others here in any case.
        if not board.is_qemu:
            self._boards[bundle] = board

    @property
    def key(self) -> bytes | None:
        """Return what host and stages share: given, or made up for boards; None: plain."""
        return None if self._options.key_file is None else read_key(self._options.key_file)

    @property
    def relayed(self) -> frozenset[str]:
        """Return the bundles that servers of another protocol compute."""
        return frozenset(name for name, remote in self._remote.items() if is_http(remote[0]))

    @property
    def remote(self) -> frozenset[str]:
        """Return the devices that are not this machine."""
        return frozenset(self._devices[name] for name in (*self._remote, *self._boards))

    @property
    def alternatives(self) -> int:
        """Return how many combinations of addresses are worth a try."""
        return 1 + sum(len(remote) - 1 for remote in self._remote.values())

    def locate(self) -> list[StageAddress]:
        """Return where each stage is; those without an address are started if they do not run."""
        found = []
        # They tell the others where this machine must listen.
        for name in self._boards:
            self._start(name)
        for name, device in self._devices.items():
            bundle = self._bundles[name]
            digest = digest_of(bundle.file(MANIFEST).read_bytes())
            if name in self.relayed:
                url = self._remote[name][0]
                if name not in self._http:
                    self._http[name] = HttpStage(
                        url, bundle, self._options.http_timeout, self._options.http_key_file
                    )
                found.append(StageAddress(device, url, digest, self._http[name]))
            elif name in self._remote:
                found.append(StageAddress(device, self._remote[name][0], digest))
            else:
                found.append(StageAddress(device, self._start(name).address, digest))
        return found

    def note_loss(self, device: str) -> None:
        """Try another address of a device next, or start its stage anew."""
        for name, own_device in self._devices.items():
            if own_device != device:
                continue
            if name in self._remote:
                remote = self._remote[name]
                remote.append(remote.pop(0))
            elif name in self._processes:
                self._processes.pop(name).close(at_once=True)

    def _start(self, name: str) -> AttachedStage:
        process = self._processes.get(name)
        if process is not None and process.alive:
            return process
        if process is not None:
            process.close()
        options = self._options
        slots = options.slots or min(len(self._devices), MOST_SLOTS) + SPARE_SLOTS
        if name in self._boards:
            self._processes[name] = self._start_on_board(name, slots)
            return self._processes[name]
        cores = options.cores.get(name, options.cores.get(self._devices[name]))
        self._processes[name] = StageProcess(
            self._bundles[name],
            threads=options.threads,
            slots=slots,
            key_file=options.key_file,
            listen=f"{self._own_address()}:0",
            cores=cores,
            progress=self._progress,
        )
        return self._processes[name]

    def _start_on_board(self, name: str, slots: int) -> AttachedStage:
        from edgec.compiler.distribute.board_stage import start_on_board

        assert self._options.key_file is not None
        return start_on_board(
            self._bundles[name],
            self._boards[name],
            threads=self._options.threads,
            slots=slots,
            key_file=self._options.key_file,
            progress=self._progress,
        )

    def _own_address(self) -> str:
        """Return the address of this machine that stages elsewhere can reach, if there are some."""
        addresses = [remote[0] for remote in self._remote.values() if not is_http(remote[0])]
        addresses += [self._processes[name].address for name in self._boards]
        for address in addresses:
            host, port = split_address(address)
            if is_loopback(host):
                continue
            try:
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
                    probe.connect((host, port))  # sends nothing
                    return str(probe.getsockname()[0])
            except OSError:
                continue
        return "127.0.0.1"

    @property
    def pids(self) -> dict[str, int]:
        """Return the processes that were started here, by bundle; ssh's for boards."""
        return {name: process.pid for name, process in self._processes.items()}

    def close(self) -> None:
        """End what was started."""
        for process in self._processes.values():
            process.close()
        self._processes.clear()
        self._key_file.close()
        for stage in self._http.values():
            stage.close()
