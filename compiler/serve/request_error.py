"""Provide the error that becomes an HTTP status and one line of JSON."""


class RequestError(Exception):
    """A request cannot be answered, and says why.

    Attributes:
        status: the HTTP status.
        message: what was found, and what was expected.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
