"""Tell a coordinator how a board is, and hear whether it may take a release."""

import hmac
import re
from typing import Annotated

import urllib3
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgec.compiler.errors import RepositoryError, UsageError
from edgec.compiler.update.fetcher import reason_of
from edgec.compiler.update.release import CHANNEL_NAME

BOARD_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
LEAST_SECRET = 32
MOST_TEXT = 300
_SECONDS = 20.0
_MOST_ANSWER_BYTES = 1 << 16

_Number = Annotated[int, Field(ge=1)]


class Report(BaseModel):
    """A report says how a board is; the newest counts.

    Attributes:
        channel: what it follows.
        installed: the release that runs.
        wants: the release that it asks to install.
        failed: releases that did not work on it, with the reason.
        problem: why it could not look for releases.
    """

    model_config = ConfigDict(extra="forbid")

    channel: Annotated[str, Field(pattern=f"^{CHANNEL_NAME.pattern}$")]
    installed: _Number | None = None
    wants: _Number | None = None
    failed: Annotated[
        dict[_Number, Annotated[str, Field(max_length=MOST_TEXT)]], Field(max_length=100)
    ] = {}
    problem: Annotated[str, Field(max_length=MOST_TEXT)] = ""


class Answer(BaseModel):
    """An answer says whether a board may install what it wants.

    Attributes:
        proceed: whether.
        reason: why not.
    """

    proceed: bool
    reason: str = ""


def check_board_name(name: str) -> None:
    """Make sure that a board may be called so.

    Raises:
        UsageError: it may not.
    """
    if not BOARD_NAME.fullmatch(name):
        raise UsageError(f"board {name!r}: use letters, digits, '.', '_' and '-', at most 64")


def board_key(secret: str, board: str) -> str:
    """Return the key of one board, which is of no use to another.

    Args:
        secret: of the coordinator.
        board: its name.
    """
    return hmac.new(secret.encode(), f"edgec board {board}".encode(), "sha256").hexdigest()


def send_report(url: str, key: str, board: str, report: Report) -> Answer:
    """Send a report and return the answer.

    Raises:
        RepositoryError: the coordinator cannot be reached, or refuses the report.
    """
    where = f"{url.rstrip('/')}/boards/{board}"
    try:
        # A new connection each time: reports are minutes apart.
        with urllib3.PoolManager(retries=False, timeout=_SECONDS) as pool:
            response = pool.request(
                "POST",
                where,
                body=report.model_dump_json().encode(),
                headers={"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
                preload_content=False,
            )
            data = response.read(_MOST_ANSWER_BYTES)
    except urllib3.exceptions.HTTPError as error:
        raise RepositoryError(
            f"the coordinator at {url} cannot be reached: {reason_of(error)}"
        ) from None
    if response.status != 200:
        raise RepositoryError(
            f"the coordinator at {url} answers {response.status}: {data[:200].decode('latin-1')}"
        )
    try:
        return Answer.model_validate_json(data)
    except ValidationError:
        raise RepositoryError(f"{url} is no coordinator of edgec") from None
