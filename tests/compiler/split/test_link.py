"""Links and traces of networks."""

from pathlib import Path

import pytest

from edgec.compiler.errors import BadInputError, UsageError
from edgec.compiler.split.link import Link, parse_link, read_network


def test_a_link_is_a_rate_and_a_delay() -> None:
    assert parse_link("1gbit").ms(125_000) == 1.0
    assert parse_link("100mbit, 500us").ms(125_000) == 10.5
    assert parse_link("100mbit,1ms").ms(0) == 0.0


@pytest.mark.parametrize("text", ["", "100", "0mbit", "100mbit,1", "fast,1ms"])
def test_what_is_no_link_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="write --link 100mbit,1ms"):
        parse_link(text)


def test_a_trace_is_read(tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    file.write_text("seconds,mbit,ms\n0,100,1\n1,10,3\n")
    network = read_network(file)
    assert network.mean_ms(125_000) == (11 + 103) / 2
    assert network.percentile_ms(125_000, 95) == 103
    # As spreadsheets and people write it.
    file.write_text("\ufeffMbit, ms\n100, 1\n\n10,\n")
    assert read_network(file).links == (Link(100e6, 1.0), Link(10e6, 0.0))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a column `mbit`"),
        ("rate\n1\n", "a column `mbit`"),
        ("mbit\n5\nslow\n", "line 3"),
        ("mbit\n-1\n", "line 2"),
        ("mbit,ms\n\n\n5,nan\n", "line 4: '5,nan' is no link"),
        ("mbit,ms\n5,1,7\n", "line 2"),
        ("ms,mbit\n5\n", "line 2"),
        ("mbit,mbit\n5,6\n", "a column `mbit`"),
        ("mbit,delay_ms\n5,100\n", "delays are in a column `ms`"),
        ("mbit,RTT\n5,100\n", "delays are in a column `ms`"),
    ],
)
def test_a_wrong_trace_is_refused(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    file.write_text(text)
    with pytest.raises(BadInputError, match=message):
        read_network(file)
