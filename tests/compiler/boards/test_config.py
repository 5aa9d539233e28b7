import json
from pathlib import Path

import pytest

from edgec.compiler.boards.config import (
    Board,
    Link,
    add_board,
    config_file,
    configured_boards,
    remove_board,
)
from edgec.compiler.boards.qemu import find_board, stop_board
from edgec.compiler.cli.main import main
from edgec.compiler.errors import BoardConfigError


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def board(name: str = "pi") -> Board:
    return Board(name=name, target="rpi4", link=Link(via="ssh", host="me@pi", port=9090))


def test_boards_are_remembered_until_removed() -> None:
    add_board(board("one"))
    add_board(board("two"))
    assert find_board("one") == board("one")
    remove_board("one")
    assert list(configured_boards()) == ["two"]
    assert [file.name for file in config_file().parent.iterdir() if file.suffix == ".json"] == [
        "boards.json"
    ]


def test_a_name_is_given_once() -> None:
    add_board(board())
    before = config_file().read_bytes()
    with pytest.raises(BoardConfigError, match="board pi exists; remove it first"):
        add_board(board())
    with pytest.raises(BoardConfigError, match="edgec's own"):
        add_board(board("qemu-mine"))
    assert config_file().read_bytes() == before


def test_an_unknown_board_is_named_with_the_nearest() -> None:
    with pytest.raises(BoardConfigError, match="'qemu-rpi44' is unknown; did you mean qemu-rpi4"):
        find_board("qemu-rpi44")
    with pytest.raises(BoardConfigError, match="'p' is unknown"):
        remove_board("p")


@pytest.mark.parametrize("text", ["{", '{"boards": {"pi": {"name": "pi"}}}', '{"bords": {}}'])
def test_a_damaged_file_is_reported_and_kept(text: str) -> None:
    add_board(board())
    config_file().write_text(text)
    with pytest.raises(BoardConfigError, match="is damaged"):
        add_board(board("other"))
    assert config_file().read_text() == text


def test_another_machine_needs_a_tunnel_or_insistence(capsys: pytest.CaptureFixture[str]) -> None:
    add = ["board", "add", "pi", "-t", "rpi4", "--host", "192.168.1.7"]
    assert main(add) == 4
    assert "connect through ssh, or insist with --insecure" in capsys.readouterr().err
    assert main([*add, "--insecure"]) == 0
    assert main(["board", "add", "pi2", "-t", "rpi4", "--ssh", "me@192.168.1.7"]) == 0
    assert main(["board", "list", "--json"]) == 0
    listed = {
        item["name"]: item["link"] for item in json.loads(capsys.readouterr().out.split("\n", 2)[2])
    }
    assert listed["pi"]["via"] == "direct"
    assert listed["pi2"] == {**listed["pi2"], "via": "ssh", "host": "me@192.168.1.7", "port": 9090}


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["-t", "rpi44"], 4, "did you mean rpi4"),
        (["-t", "rpi4", "--port", "0"], 4, "port: "),
        (["-t", "rpi4", "--tracker", "127.0.0.1:9190"], 4, "needs a key"),
        (["-t", "rpi4", "--tracker", "somewhere", "--key", "k"], 2, "write HOST:PORT"),
        (["-t", "rpi4", "--ssh=-oProxyCommand=x"], 4, "host: "),
    ],
)
def test_a_wrong_board_is_not_added(
    options: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["board", "add", "pi", *options]) == code
    assert message in capsys.readouterr().err
    assert not config_file().exists()


def test_stopping_what_does_not_run_does_nothing() -> None:
    assert not stop_board("qemu-rpi4")
