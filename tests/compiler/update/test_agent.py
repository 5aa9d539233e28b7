import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.releases import CHANNEL, Releases, changed_bundle
from support.signed_bundle import SignedBundle

from edgec.compiler import Bundle
from edgec.compiler.errors import AttackError, BadInputError, SelfTestError, TrustError, UsageError
from edgec.compiler.trust.policy import Policy
from edgec.compiler.update.agent import MOST_STARTS, Agent, AgentSettings, set_up
from edgec.compiler.update.slots import Trial

TESTS = Path(__file__).parents[2]


def bundle_named(signed: SignedBundle, name: str) -> Path:
    return signed.path.with_name(f"{name}.edgec")


@pytest.fixture(scope="module")
def first_board(
    published: Releases, tmp_path_factory: pytest.TempPathFactory, signed: SignedBundle
) -> Path:
    """A board that runs release 1; tests work on a copy."""
    folder = tmp_path_factory.mktemp("first") / "board"
    outcome = published.board(folder).update()
    assert (outcome.what, outcome.number) == ("installed", 1)
    return folder


@pytest.fixture
def agent(first_board: Path, releases: Releases, tmp_path: Path) -> Agent:
    """The agent of a board that runs release 1, and a repository of its own."""
    folder = tmp_path / "board"
    subprocess.run(["cp", "-a", first_board, folder], check=True)
    return releases.board(folder)


def runs(agent: Agent) -> int | None:
    """The release that runs, whose files are right."""
    release = agent.slots.release(agent.slots.active())
    Bundle.load(agent.slots.current)
    return release.number if release else None


def test_a_new_release_is_installed_and_the_old_one_kept(
    agent: Agent, releases: Releases, signed: SignedBundle
) -> None:
    assert agent.update().what == "unchanged"
    releases.open().publish(CHANNEL, bundle_named(signed, "second"))
    before = agent.client.received_bytes
    assert agent.update().what == "installed"
    assert runs(agent) == 2
    assert (agent.slots.current / "note.txt").read_text() == "second"
    # The library did not change and was not downloaded.
    received = agent.client.received_bytes - before
    assert received < (signed.path / "model.so").stat().st_size / 2
    assert agent.slots.release(agent.slots.free()).number == 1
    assert agent.go_back().number == 1
    assert runs(agent) == 1
    # It is not taken up again by itself.
    assert agent.update().what == "failed"
    assert runs(agent) == 1
    with pytest.raises(UsageError, match="no older release"):
        agent.go_back()
    agent.forget_failures()
    assert agent.update().what == "installed"
    # The maker takes it back.
    releases.open().roll_out(CHANNEL, 2, 0)
    assert (agent.update().what, runs(agent)) == ("installed", 1)


@pytest.mark.parametrize(
    ("name", "latency_ms", "after_switch", "message"),
    [
        ("wrong", None, None, "parity failed on its test vectors: y"),
        ("second", 1e-9, None, "a run takes .* ms here, and 1e-09 are allowed"),
        ("broken", None, None, "model.so"),
        ("second", None, "test $(readlink current) = slots/a || { echo no >&2; false; }", "no$"),
    ],
)
def test_a_bad_release_goes_back_by_itself(
    name: str,
    latency_ms: float | None,
    after_switch: str | None,
    message: str,
    agent: Agent,
    releases: Releases,
    signed: SignedBundle,
) -> None:
    if name == "broken":
        content = {"model.so": b"\x7fELF is what a library begins with, and no more"}
        if not bundle_named(signed, name).exists():
            changed_bundle(signed.path, bundle_named(signed, name), signed.key, content)
    agent = releases.board(agent.slots.folder, after_switch=after_switch)
    releases.open().publish(CHANNEL, bundle_named(signed, name), 100, latency_ms)
    outcome = agent.update()
    assert (outcome.what, outcome.number) == ("failed", 2)
    assert runs(agent) == 1
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(agent.slots.read_state().failed[2])
    # It is not downloaded again and again.
    before = agent.client.received_bytes
    assert agent.update().what == "failed"
    assert agent.client.received_bytes - before < 20_000
    assert agent.slots.read_state().trial is None


def test_a_model_that_stops_the_machine_is_given_up(agent: Agent, signed: SignedBundle) -> None:
    slots = agent.slots
    release = slots.release("a")
    assert release is not None
    (slots.incoming).mkdir()
    subprocess.run(["cp", "-a", f"{signed.path}/.", slots.incoming], check=True)
    second = release.model_copy(update={"number": 2})
    slots.fill("b", second)
    slots.switch("b")
    state = slots.read_state()
    state.trial = Trial(slot="b", number=2, starts=MOST_STARTS)
    slots.write_state(state)
    outcome = agent.recover()
    assert outcome is not None
    assert outcome.what == "failed"
    assert "the machine stopped in its test 3 times" in outcome.message
    assert runs(agent) == 1
    assert agent.recover() is None


def test_a_damaged_model_is_mended(agent: Agent, releases: Releases) -> None:
    (agent.slots.current / "model.so").write_bytes(b"flipped")
    assert agent.update().what == "installed"
    assert runs(agent) == 1


def test_the_policy_of_the_machine_is_asked(
    agent: Agent, releases: Releases, signed: SignedBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = Policy(agent.slots.folder / "trust.toml")
    policy.write()
    monkeypatch.setenv("EDGEC_TRUST", str(policy.path))
    releases.open().publish(CHANNEL, bundle_named(signed, "second"))
    with pytest.raises(TrustError, match="does not trust"):
        agent.update()
    assert runs(agent) == 1
    assert agent.slots.read_state().failed == {}
    policy.with_trusted("maker", signed.key.public).write()
    assert agent.update().what == "installed"


def test_a_clock_that_went_back_is_noticed(agent: Agent) -> None:
    state = agent.slots.read_state()
    state.seconds += 1e6
    agent.slots.write_state(state)
    with pytest.raises(AttackError, match="freeze: the clock of this machine is behind"):
        agent.update()


def test_two_agents_do_not_share_a_folder(agent: Agent) -> None:
    with agent.slots.held(), pytest.raises(UsageError, match="another agent is at work here"):
        agent.update()


def test_settings_are_checked(releases: Releases, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="is not set up for updates; edgec update init"):
        Agent(tmp_path)
    for wrong, message in (
        ({"mirrors": []}, "give at least one repository"),
        ({"board": "a b"}, "board 'a b': use letters"),
        ({"coordinator": "http://x"}, "belong together"),
    ):
        given = {"channel": CHANNEL, "board": "pi", "mirrors": ["/x"], **wrong}
        with pytest.raises(UsageError, match=message):
            set_up(tmp_path, releases.root, AgentSettings.model_validate(given))


def test_wherever_an_update_stops_a_model_works(
    agent: Agent, releases: Releases, signed: SignedBundle
) -> None:
    # A few of the points of tests/benchmarks/interrupt_updates.py, and what it would find.
    releases.open().publish(CHANNEL, bundle_named(signed, "second"))
    done = subprocess.run(
        [sys.executable, "-m", "support.interrupted_updates", agent.slots.folder, "3", "1"],
        cwd=TESTS,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)
    assert found["kills"] == found["killed"] == 3
    assert found["broken"] == found["unfinished"] == 0
    # The negative control: without slots, the same points find broken models.
    assert found["in_place_broken"] > 0


def test_a_self_test_that_hangs_ends(signed: SignedBundle) -> None:
    from edgec.compiler.update.self_test import self_test

    with pytest.raises(SelfTestError, match=r"its test took over 0\.05 s"):
        self_test(signed.path, seconds=0.05)
