"""Tell a coordinator how a board is, and hear whether it may take a release."""

import hmac
import json
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
MOST_FAILURES = 100
_SECONDS = 20.0
_MOST_ANSWER_BYTES = 64 << 20

_Number = Annotated[int, Field(ge=1, lt=1 << 31)]
_Text = Annotated[str, Field(max_length=MOST_TEXT)]


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
    failed: Annotated[dict[_Number, _Text], Field(max_length=MOST_FAILURES)] = {}
    problem: _Text = ""


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
    data = ask_coordinator(url, key, f"boards/{board}", report.model_dump_json())
    try:
        return Answer.model_validate_json(data)
    except ValidationError:
        raise RepositoryError(f"{url} is no coordinator of edgec") from None


def ask_coordinator(url: str, key: str, path: str, body: str | None = None) -> bytes:
    """Return what a coordinator answers.

    Args:
        url: where it is.
        key: a board's, or its secret.
        path: what is asked for.
        body: JSON to post; None gets.

    Raises:
        RepositoryError: it cannot be reached, or refuses.
    """
    try:
        # A new connection each time: reports are minutes apart.
        with urllib3.PoolManager(retries=False, timeout=_SECONDS) as pool:
            response = pool.request(
                "GET" if body is None else "POST",
                f"{url.rstrip('/')}/{path}",
                body=None if body is None else body.encode(),
                headers={"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
                preload_content=False,
            )
            data = response.read(_MOST_ANSWER_BYTES)
            response.close()
    except urllib3.exceptions.HTTPError as error:
        raise RepositoryError(
            f"the coordinator at {url} cannot be reached: {reason_of(error)}"
        ) from None
    if response.status != 200:
        try:
            reason = json.loads(data)["error"]
        except (ValueError, KeyError, TypeError):
            reason = "is it one?"
        raise RepositoryError(f"the coordinator at {url} answers {response.status}: {reason}")
    return data
