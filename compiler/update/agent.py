"""Keep the model of a board up to date: find, install, test, switch, confirm or go back."""

import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from edgec.compiler.bundle.bundle import Bundle
from edgec.compiler.errors import (
    AttackError,
    BadInputError,
    EdgecError,
    RepositoryError,
    SelfTestError,
    UsageError,
)
from edgec.compiler.support.files import write_atomically
from edgec.compiler.trust.policy import check_trust
from edgec.compiler.update.client import Mirror, UpdateClient
from edgec.compiler.update.fetcher import FetchLimits
from edgec.compiler.update.install import build_bundle
from edgec.compiler.update.release import Release, check_channel_name
from edgec.compiler.update.reports import (
    MOST_FAILURES,
    MOST_TEXT,
    Report,
    check_board_name,
    send_report,
)
from edgec.compiler.update.self_test import self_test
from edgec.compiler.update.slots import SLOTS, Slots, State, Trial

# How often the test of one release begins, if the machine stops in it.
MOST_STARTS = 3
# A clock may be set back by so much [s].
_CLOCK_SECONDS = 3600.0
_SETTINGS = "agent.json"
_ROOT = "root.json"

What = Literal["installed", "unchanged", "waits", "failed", "none"]


class AgentSettings(BaseModel):
    """Agent settings say whose releases a board takes.

    Attributes:
        channel: whose.
        board: the board's name.
        mirrors: URLs or folders of the repository.
        coordinator: URL of what is asked before an installation; None asks nobody.
        coordinator_key: a file that holds this board's key for it.
        after_switch: a shell command, run after a switch. If it fails, the board goes back.
        test_seconds: what a self-test, and that command, may take.
    """

    model_config = ConfigDict(extra="forbid")

    channel: str
    board: str
    mirrors: list[str]
    coordinator: str | None = None
    coordinator_key: str | None = None
    after_switch: str | None = None
    test_seconds: float = 300.0


@dataclass(frozen=True)
class Outcome:
    """An outcome says what a look for updates came to.

    Attributes:
        what: the kind.
        number: the release that it is about; None if there is none.
        message: for people.
    """

    what: What
    number: int | None
    message: str


def set_up(folder: Path, root: bytes, settings: AgentSettings) -> None:
    """Prepare a folder for an agent; one that is there gets other settings and keeps its models.

    Args:
        folder: it is made.
        root: metadata of the root role that is trusted, got from whom the user trusts.
        settings: of the agent.

    Raises:
        UsageError: a setting is wrong.
    """
    check_channel_name(settings.channel)
    check_board_name(settings.board)
    if not settings.mirrors:
        raise UsageError("give at least one repository: --repository URL|FOLDER")
    for mirror in settings.mirrors:
        Mirror.of(mirror)
    if (settings.coordinator is None) != (settings.coordinator_key is None):
        raise UsageError("--coordinator and --coordinator-key belong together")
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / _ROOT, root)
    write_atomically(folder / _SETTINGS, settings.model_dump_json(indent=1))


class Agent:
    """An agent keeps the model in a folder up to date; `current` in it is a bundle that works.

    Args:
        folder: that `set_up` prepared.
        limits: on the time of downloads.
        say: called with what is being done, for people.

    Raises:
        BadInputError: the folder is none.
    """

    def __init__(
        self,
        folder: Path,
        limits: FetchLimits | None = None,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.slots = Slots(folder)
        try:
            data = (folder / _SETTINGS).read_bytes()
            root = (folder / _ROOT).read_bytes()
            self.settings = AgentSettings.model_validate_json(data)
        except FileNotFoundError:
            raise BadInputError(
                f"{folder} is not set up for updates; edgec update init {folder} …"
            ) from None
        except ValidationError:
            raise BadInputError(
                f"{folder / _SETTINGS} is damaged; edgec update init again"
            ) from None
        metadata = folder / "metadata"
        metadata.mkdir(exist_ok=True)
        mirrors = [Mirror.of(text) for text in self.settings.mirrors]
        self.client = UpdateClient(metadata, root, mirrors, limits)
        self._say = say

    def update(self) -> Outcome:
        """Look for a release once, and install it.

        A trial that was interrupted is finished first.

        Raises:
            AttackError: what the repository gave is refused.
            TrustError: the policy of this machine refuses the bundle.
            RepositoryError: repository or coordinator cannot be reached.
            OutputError: there is no space.
        """
        with self.slots.held():
            try:
                outcome = self._continue() or self._look()
            except EdgecError as error:
                self._tell(problem=str(error))
                raise
            self._tell()
            return outcome

    def recover(self) -> Outcome | None:
        """Finish a trial that was interrupted; None if there was none."""
        with self.slots.held():
            return self._continue()

    def go_back(self) -> Outcome:
        """Have applications use the old slot again; the release that they leave is not tried again.

        Raises:
            UsageError: there is no old release.
            SelfTestError: the old one does not work, either; nothing was changed.
        """
        with self.slots.held():
            state = self.slots.read_state()
            active, old = self.slots.active(), self.slots.free()
            release, left = self.slots.release(old), self.slots.release(active)
            if release is None or left is None or release.number in state.failed:
                raise UsageError(f"{self.slots.folder}: there is no older release to go back to")
            self._test(release, self.slots.bundle(old))
            state.failed[left.number] = "taken back by hand"
            state.trial, state.confirmed = None, old
            self.slots.write_state(state)
            self.slots.switch(old)
            self._after_switch()
            self._tell()
            return Outcome("installed", release.number, f"release {release.number} runs again")

    def forget_failures(self) -> None:
        """Have releases tried again that failed."""
        with self.slots.held():
            state = self.slots.read_state()
            state.failed.clear()
            self.slots.write_state(state)

    def _look(self) -> Outcome:
        state = self.slots.read_state()
        self._check_clock(state)
        known = [release for slot in SLOTS if (release := self.slots.release(slot))]
        release = self.client.find(self.settings.channel, self.settings.board, known)
        state.seconds = time.time()
        self.slots.write_state(state)
        installed = self.slots.release(self.slots.active())
        number = installed.number if installed else None
        if release is None:
            return Outcome("none", number, "the channel has no release for this board yet")
        if installed == release and self._is_intact():
            return Outcome("unchanged", number, f"release {number} is the newest for this board")
        if release.number in state.failed:
            reason = state.failed[release.number]
            return Outcome("failed", release.number, f"release {release.number} failed: {reason}")
        refusal = self._ask(release.number)
        if refusal is not None:
            return Outcome("waits", release.number, f"release {release.number} waits: {refusal}")
        slot = self.slots.free()
        self._install(release)
        state.trial = Trial(slot=slot, number=release.number)
        self.slots.write_state(state)
        return self._try(state, release)

    def _install(self, release: Release) -> None:
        """Have the free slot hold a release whose files and signatures are right."""
        slots, slot = self.slots, self.slots.free()
        if slots.release(slot) == release and _is_good(slots.bundle(slot)):
            check_trust(slots.bundle(slot), Bundle.load(slots.bundle(slot)).signature)
            return
        active = slots.active()
        installed = slots.release(active)
        old = (installed, slots.bundle(active)) if active and installed else None
        self._say(f"release {release.number}: {release.size_bytes / 1e6:.1f} MB")
        before = self.client.received_bytes
        # The old slot makes room.
        slots.clear(slot)
        build_bundle(release, slots.incoming, self.client.chunk, old)
        received = self.client.received_bytes - before
        self._say(f"release {release.number}: {received / 1e6:.3g} MB downloaded")
        bundle = Bundle.load(slots.incoming)
        check_trust(slots.incoming, bundle.signature)
        slots.fill(slot, release)

    def _continue(self) -> Outcome | None:
        state = self.slots.read_state()
        if state.trial is None:
            return None
        release = self.slots.release(state.trial.slot)
        if release is None or release.number != state.trial.number:
            state.trial = None
            self.slots.write_state(state)
            return None
        self._say(f"release {release.number}: its test was interrupted")
        return self._try(state, release)

    def _try(self, state: State, release: Release) -> Outcome:
        """Test a release in its slot; confirm it, or go back."""
        trial = state.trial
        assert trial is not None
        if trial.starts >= MOST_STARTS:
            return self._give_up(state, f"the machine stopped in its test {trial.starts} times")
        trial.starts += 1
        self.slots.write_state(state)
        try:
            latency_ms = self._test(release, self.slots.bundle(trial.slot))
            if self.slots.active() != trial.slot:
                self.slots.switch(trial.slot)
            self._after_switch()
        except SelfTestError as error:
            return self._give_up(state, str(error))
        state.confirmed, state.trial = trial.slot, None
        self.slots.write_state(state)
        message = f"release {release.number} runs, {latency_ms:.3g} ms"
        return Outcome("installed", release.number, message)

    def _give_up(self, state: State, reason: str) -> Outcome:
        trial = state.trial
        assert trial is not None
        if self.slots.active() == trial.slot:
            if state.confirmed is None or self.slots.release(state.confirmed) is None:
                self.slots.current.unlink()
            else:
                self.slots.switch(state.confirmed)
                try:
                    self._after_switch()
                except SelfTestError as error:
                    self._say(f"back at the old release: {error}")
        state.failed[trial.number] = reason[:MOST_TEXT]
        state.trial = None
        self.slots.write_state(state)
        message = f"release {trial.number} failed, the old one runs: {reason}"
        return Outcome("failed", trial.number, message)

    def _test(self, release: Release, bundle: Path) -> float:
        return self_test(bundle, release.most_latency_ms, self.settings.test_seconds)

    def _after_switch(self) -> None:
        command = self.settings.after_switch
        if command is None:
            return
        try:
            done = subprocess.run(
                ["/bin/sh", "-c", command],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=self.settings.test_seconds,
                check=False,
                cwd=self.slots.folder,
            )
        except subprocess.TimeoutExpired:
            raise SelfTestError(f"{command!r} took over {self.settings.test_seconds:g} s") from None
        if done.returncode != 0:
            said = done.stderr.decode(errors="replace").strip().splitlines()
            reason = f": {said[-1]}" if said else ""
            raise SelfTestError(f"{command!r} ended with {done.returncode}{reason}")

    def _is_intact(self) -> bool:
        return _is_good(self.slots.current)

    def _check_clock(self, state: State) -> None:
        """Refuse to judge expiry by a clock that went back."""
        if time.time() < state.seconds - _CLOCK_SECONDS:
            raise AttackError(
                "freeze: the clock of this machine is behind what it was at the last look; set it"
            )

    def _report(self, wants: int | None = None, problem: str = "") -> Report:
        installed = self.slots.release(self.slots.active())
        failed = self.slots.read_state().failed
        newest = sorted(failed)[-MOST_FAILURES:]
        return Report(
            channel=self.settings.channel,
            installed=installed.number if installed else None,
            wants=wants,
            failed={number: failed[number] for number in newest},
            problem=problem[:MOST_TEXT],
        )

    def _ask(self, number: int) -> str | None:
        """Return why the coordinator does not let this board install a release."""
        answer = self._send(self._report(wants=number))
        return None if answer is None or answer[0] else answer[1]

    def _tell(self, problem: str = "") -> None:
        try:
            self._send(self._report(problem=problem))
        except EdgecError as error:
            self._say(str(error))

    def _send(self, report: Report) -> tuple[bool, str] | None:
        settings = self.settings
        if settings.coordinator is None or settings.coordinator_key is None:
            return None
        try:
            key = Path(settings.coordinator_key).read_text("ascii").strip()
        except (OSError, UnicodeDecodeError):
            raise RepositoryError(
                f"{settings.coordinator_key}, this board's key, cannot be read"
            ) from None
        answer = send_report(settings.coordinator, key, settings.board, report)
        return answer.proceed, answer.reason


def _is_good(bundle: Path) -> bool:
    """Return whether a bundle's files are what its manifest and its signature say."""
    try:
        Bundle.load(bundle)
    except EdgecError:
        return False
    return True
