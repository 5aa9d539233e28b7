import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import urllib3
from support.cli_calls import Call, check_error
from support.releases import CHANNEL, Releases
from support.signed_bundle import SignedBundle

from edgec.compiler.errors import RepositoryError, UsageError
from edgec.compiler.update.coordinator import make_app, serve_fleet
from edgec.compiler.update.fleet import Fleet
from edgec.compiler.update.reports import Report, board_key, send_report

SECRET = "s" * 40


@pytest.fixture(scope="module")
def secret_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("secret") / "secret"
    file.write_text(SECRET + "\n")
    return file


@pytest.fixture(scope="module")
def coordinator(secret_file: Path) -> Iterator[str]:
    """A coordinator that a second failure stops a release of; its URL."""
    arguments = [secret_file.with_name("fleet"), "--secret-file", secret_file, "--port", "0"]
    with subprocess.Popen(
        [sys.executable, "-m", "edgec.compiler", "fleet", "serve", *arguments],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0


def test_boards_report_and_people_see(
    coordinator: str, secret_file: Path, call: Call, releases: Releases, signed: SignedBundle
) -> None:
    key = board_key(SECRET, "pi")
    assert send_report(coordinator, key, "pi", Report(channel=CHANNEL, wants=1)).proceed
    given = ("--secret-file", secret_file)
    code, out, _ = call("fleet", "status", coordinator, *given, "--json")
    (board,) = json.loads(out)["boards"]
    assert (code, board["board"], board["trying"]) == (0, "pi", 1)

    # A board asks before it installs, and tells that it failed.
    wrong = signed.path.with_name("wrong.edgec")
    releases.open().publish(CHANNEL, wrong)
    key_file = releases.folder.parent / "key"
    key_file.write_text(call("fleet", "key", "pi-2", *given)[1])
    agent = releases.board(
        releases.folder.parent / "board",
        "pi-2",
        coordinator=coordinator,
        coordinator_key=str(key_file),
    )
    assert agent.update().what == "failed"
    out = call("fleet", "status", coordinator, *given)[1]
    assert "pi-2" in out
    assert "release 2 failed: parity failed on its test vectors" in out

    assert call("fleet", "stop", coordinator, CHANNEL, 3, *given)[0] == 0
    answer = send_report(coordinator, key, "pi", Report(channel=CHANNEL, wants=3))
    assert (answer.proceed, answer.reason) == (False, "it is stopped: stopped by hand")
    releases.open().publish(CHANNEL, signed.path)
    outcome = agent.update()
    assert (outcome.what, outcome.message) == (
        "waits",
        "release 3 waits: it is stopped: stopped by hand",
    )
    assert call("fleet", "resume", coordinator, CHANNEL, 3, *given)[0] == 0
    assert send_report(coordinator, key, "pi", Report(channel=CHANNEL, wants=3)).proceed


def test_others_are_refused(
    coordinator: str, secret_file: Path, call: Call, tmp_path: Path
) -> None:
    # A board's key is of no use for another board, nor to see or stop anything.
    with pytest.raises(RepositoryError, match="answers 401: the key is missing or wrong"):
        send_report(coordinator, board_key(SECRET, "pi"), "other", Report(channel="c"))
    other = tmp_path / "other"
    other.write_text(board_key(SECRET, "pi"))
    given = ("--secret-file", other)
    for arguments in (("status", coordinator), ("stop", coordinator, "c", 1)):
        check_error(call("fleet", *arguments, *given), 4, "answers 401")
    check_error(call("fleet", "status", "http://127.0.0.1:9", *given), 4, "cannot be reached")


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{}", 400),
        (b'{"channel": "../up"}', 400),
        (b'{"channel": "c", "installed": -1}', 400),
        (b'{"channel": "c", "problem": "' + b"x" * 1000 + b'"}', 400),
        (b"x" * (1 << 17), 413),
    ],
)
def test_a_report_that_is_none_is_refused(body: bytes, status: int, coordinator: str) -> None:
    headers = {"Authorization": f"Bearer {board_key(SECRET, 'pi')}"}
    with urllib3.PoolManager(retries=False) as pool:
        answer = pool.request("POST", f"{coordinator}/boards/pi", body=body, headers=headers)
    assert answer.status == status
    assert "error" in answer.json()


def test_keys_do_not_travel_in_the_clear(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path / "fleet")
    with pytest.raises(UsageError, match="give --tls-certificate"):
        serve_fleet(fleet, SECRET, "0.0.0.0")
    with pytest.raises(UsageError, match="at least 32 characters"):
        make_app(fleet, "short")
