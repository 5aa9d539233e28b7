"""Each attack of section 1.5.2 of the TUF specification, made on a real repository, is refused."""

import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.releases import CHANNEL, QUICK, Releases, signing_key
from tuf.api.exceptions import SlowRetrievalError
from tuf.api.metadata import Metadata, TargetFile

from edgec.compiler.errors import AttackError, RepositoryError, UsageError
from edgec.compiler.trust.keys import SigningKey
from edgec.compiler.update.client import Mirror, UpdateClient
from edgec.compiler.update.fetcher import Fetcher, FetchLimits
from edgec.compiler.update.release import Chunk, channel_path
from edgec.compiler.update.repository import ReleaseRepository
from edgec.compiler.update.tuf_keys import signer_of


@pytest.fixture
def client(releases: Releases, tmp_path: Path) -> UpdateClient:
    """A client that saw the repository's first state."""
    made = client_of(releases, tmp_path)
    release = made.find(CHANNEL, "pi")
    assert release is not None
    assert release.number == 1
    return made


def client_of(releases: Releases, folder: Path, *mirrors: str) -> UpdateClient:
    known = [Mirror.of(text) for text in mirrors or (str(releases.folder),)]
    return UpdateClient(folder, releases.root, known, QUICK)


def edit(file: Path, change: Callable[[Metadata], None], *keys: SigningKey) -> None:
    """Change metadata and sign it by some keys."""
    metadata = Metadata.from_file(str(file))
    change(metadata)
    metadata.signatures.clear()
    for key in keys:
        metadata.sign(signer_of(key), append=True)
    file.write_bytes(metadata.to_bytes())


def raise_version(metadata: Metadata) -> None:
    metadata.signed.version += 1


def an_unknown_key_signs(releases: Releases) -> None:
    edit(releases.metadata("timestamp.json"), raise_version, signing_key("attacker"))


def a_signature_is_stripped(releases: Releases) -> None:
    edit(releases.metadata("timestamp.json"), raise_version)


def a_target_is_replaced(releases: Releases) -> None:
    releases.open().refresh()
    (file,) = (releases.folder / "targets" / CHANNEL).glob("*.channel.json")
    file.write_bytes(file.read_bytes().replace(b"100", b"099"))


def metadata_never_ends(releases: Releases) -> None:
    releases.metadata("timestamp.json").write_bytes(b" " * (1 << 20))


def nothing_is_new_for_ever(releases: Releases) -> None:
    def expire(metadata: Metadata) -> None:
        raise_version(metadata)
        metadata.signed.expires = metadata.signed.expires.replace(year=2020, day=1)

    edit(releases.metadata("timestamp.json"), expire, releases.online)


def parts_of_two_states_are_mixed(releases: Releases) -> None:
    old = releases.metadata("1.targets.json").read_bytes()
    releases.open().roll_out(CHANNEL, 1, 50)
    releases.metadata("2.targets.json").write_bytes(old)


def another_channels_file_is_given(releases: Releases) -> None:
    """Who has the targets' key gives the board another model's releases."""
    repository = releases.open()
    with repository.edit_targets() as targets:
        data = b'{"name": "other", "releases": [{"number": 1, "percent": 100, "sha256": "%s"}]}' % (
            b"0" * 64
        )
        described = TargetFile.from_data(channel_path(CHANNEL), data, ["sha256"])
        targets.targets[described.path] = described
    (releases.folder / "targets" / described.get_prefixed_paths()[0]).write_bytes(data)
    repository.refresh()


def one_root_key_is_stolen(releases: Releases) -> None:
    shutil.copy(releases.metadata("1.root.json"), releases.metadata("2.root.json"))
    edit(releases.metadata("2.root.json"), raise_version, releases.roots[0])


def the_timestamps_key_is_stolen(releases: Releases) -> None:
    """It does not make releases: other metadata is not signed by it."""
    repository = releases.open()
    repository.roll_out(CHANNEL, 1, 50)
    edit(releases.metadata("2.targets.json"), lambda _: None, releases.online)

    def list_targets(metadata: Metadata) -> None:
        metadata.signed.meta["targets.json"] = repository.targets_infos["targets.json"]

    def list_snapshot(metadata: Metadata) -> None:
        metadata.signed.snapshot_meta = repository.snapshot_info

    edit(releases.metadata("2.snapshot.json"), list_targets, releases.online)
    edit(releases.metadata("timestamp.json"), list_snapshot, releases.online)


ATTACKS = {
    an_unknown_key_signs: "arbitrary software: timestamp was signed by 0/1 keys",
    a_signature_is_stripped: "arbitrary software: timestamp was signed by 0/1 keys",
    a_target_is_replaced: "arbitrary software: relu/channel.json is not what was signed",
    the_timestamps_key_is_stolen: "arbitrary software: targets was signed by 0/1 keys",
    metadata_never_ends: "endless data: ",
    nothing_is_new_for_ever: "freeze: timestamp.json is expired",
    parts_of_two_states_are_mixed: "mix-and-match: ",
    another_channels_file_is_given: "wrong installation: ",
    one_root_key_is_stolen: "key compromise: root is signed by 1 of its keys, and 2 have to sign",
}


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_an_attack_is_refused_by_name(
    attack: Callable[[Releases], None], releases: Releases, client: UpdateClient
) -> None:
    attack(releases)
    with pytest.raises(AttackError) as refused:
        client.find(CHANNEL, "pi")
    assert f"{releases.folder}: {ATTACKS[attack]}" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_what_is_no_attack_is_taken(releases: Releases, client: UpdateClient) -> None:
    # The negative control: the same changes by those who may make them.
    repository = releases.open()
    repository.refresh()
    assert client.find(CHANNEL, "pi") is not None
    repository.roll_out(CHANNEL, 1, 0)
    assert client.find(CHANNEL, "pi") is None
    with pytest.raises(RepositoryError, match="has no channel other"):
        client.find("other", "pi")


def test_a_rollback_is_refused(releases: Releases, client: UpdateClient) -> None:
    old = releases.metadata("timestamp.json").read_bytes()
    releases.open().refresh()
    client.find(CHANNEL, "pi")
    releases.metadata("timestamp.json").write_bytes(old)
    with pytest.raises(AttackError, match="rollback: New timestamp version 1 must be >= 2"):
        client.find(CHANNEL, "pi")


def test_a_fast_forward_ends_with_a_new_key(releases: Releases, client: UpdateClient) -> None:
    # A stolen online key makes the newest version one that nobody reaches; another key is believed
    # from its own version on.
    good = releases.metadata("timestamp.json").read_bytes()
    edit(
        releases.metadata("timestamp.json"),
        lambda m: setattr(m.signed, "version", 10**6),
        releases.online,
    )
    assert client.find(CHANNEL, "pi") is not None
    releases.metadata("timestamp.json").write_bytes(good)
    with pytest.raises(AttackError, match="rollback"):
        client.find(CHANNEL, "pi")
    new = signing_key("online-2")
    repository = ReleaseRepository(releases.folder, [releases.targets, new, *releases.roots])
    swapped = [(role, releases.online.public) for role in ("snapshot", "timestamp")]
    repository.change_root([(role, new.public) for role, _ in swapped], swapped)
    assert client.find(CHANNEL, "pi") is not None


def test_a_bad_mirror_does_not_prevent_updates(releases: Releases, tmp_path: Path) -> None:
    bad = releases.copy(tmp_path / "bad")
    metadata_never_ends(bad)
    missing = tmp_path / "missing"
    folder = tmp_path / "client"
    folder.mkdir()
    client = client_of(releases, folder, str(bad.folder), str(missing), str(releases.folder))
    release = client.find(CHANNEL, "pi")
    assert release is not None
    for chunk in release.chunks.values():
        assert len(client.chunk(chunk)) == chunk.size


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"x", "arbitrary software: chunks/"),
        (b"x" * 9_999_999, "endless data"),
        # A frame that says that its content is 2^60 bytes.
        (b"\x28\xb5\x2f\xfd\xe0" + (1 << 60).to_bytes(8, "little"), "arbitrary software: chunks/"),
    ],
)
def test_a_wrong_chunk_is_refused(
    content: bytes, message: str, releases: Releases, client: UpdateClient
) -> None:
    release = client.find(CHANNEL, "pi")
    assert release is not None
    chunk = next(iter(release.chunks.values()))
    assert client.chunk(chunk)
    (releases.folder / chunk.path).write_bytes(content)
    with pytest.raises(AttackError, match=message):
        client.chunk(chunk)


@contextmanager
def serve_slowly(pieces: int, seconds: float) -> Iterator[str]:
    """A server that gives a byte every so often."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(1 << 16)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
            for _ in range(pieces):
                try:
                    connection.sendall(b"x")
                except OSError:
                    return
                time.sleep(seconds)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        thread.join()
        listener.close()


@pytest.mark.parametrize(
    ("pieces", "seconds", "message"),
    [(10, 0.05, "slow retrieval: .* bytes came in"), (1, 0.5, "slow retrieval: .*nothing came")],
)
def test_a_slow_mirror_is_left(
    pieces: int, seconds: float, message: str, releases: Releases, tmp_path: Path
) -> None:
    chunk = Chunk(sha256="0" * 64, size=1, stored=1_000_000)
    with serve_slowly(pieces, seconds) as url, pytest.raises(AttackError, match=message):
        client_of(releases, tmp_path, url).chunk(chunk)


class _DawdlingHandler(BaseHTTPRequestHandler):
    """Gives any file, of one byte, 15 seconds later by a clock of its own."""

    seconds = 0

    def do_GET(self) -> None:
        _DawdlingHandler.seconds += 15
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"x")

    def log_message(self, *_: object) -> None:
        pass


def test_many_small_files_do_not_hold_a_download(monkeypatch: pytest.MonkeyPatch) -> None:
    """No file is slower than one may be, and all together are."""
    clock = SimpleNamespace(monotonic=lambda: _DawdlingHandler.seconds)
    monkeypatch.setattr("edgec.compiler.update.fetcher.time", clock)
    with ThreadingHTTPServer(("127.0.0.1", 0), _DawdlingHandler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        try:
            slow, other = (f"http://{h}:{server.server_port}/x" for h in ("127.0.0.1", "localhost"))
            fetcher, patient = Fetcher(), Fetcher(FetchLimits(seconds_per_file=15))
            assert fetcher.download_bytes(slow, 1) == b"x"
            for _ in range(2):
                with pytest.raises(SlowRetrievalError, match=r"bytes of \d files came in 30 s"):
                    fetcher.download_bytes(slow, 1)
            # What one server delayed is not held against another, nor against the next download.
            assert fetcher.download_bytes(other, 1) == b"x"
            fetcher.begin_download()
            assert fetcher.download_bytes(slow, 1) == b"x"
            assert [patient.download_bytes(slow, 1) for _ in range(8)] == [b"x"] * 8
        finally:
            server.shutdown()


def test_a_mirror_that_is_not_there(releases: Releases, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(RepositoryError, match=r"cannot be read: http://127\.0\.0\.1:.*refused"):
        client_of(releases, tmp_path, f"http://127.0.0.1:{port}").find(CHANNEL, "pi")
    with pytest.raises(UsageError, match="ftp://x: give http"):
        Mirror.of("ftp://x")
