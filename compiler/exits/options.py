"""Provide the settings of a compile that adds early exits."""

from dataclasses import dataclass

from edgec.compiler.errors import UsageError

MAX_EXITS = 8


@dataclass(frozen=True, kw_only=True)
class ExitOptions:
    """Exit options describe where a model may end early, and what that may cost.

    Attributes:
        depths: share of the model's multiplications before each exit, ascending.
        drop: share of the answers that may differ from those of the whole model.
    """

    depths: tuple[float, ...]
    drop: float = 0.01

    def __post_init__(self) -> None:
        """Refuse what cannot be.

        Raises:
            UsageError: says which setting.
        """
        if not 0 < len(self.depths) <= MAX_EXITS:
            raise UsageError(f"--exits: 1 to {MAX_EXITS} depths are expected, as 0.3,0.6")
        if list(self.depths) != sorted(set(self.depths)):
            raise UsageError("--exits: depths are ascending, as 0.3,0.6")
        for depth in self.depths:
            if not 0 < depth < 1:
                raise UsageError(f"--exits {depth:g} is no depth inside the model; write 0.3,0.6")
        if not 0 < self.drop < 1:
            raise UsageError(f"--exit-drop {self.drop:g} is no share; 0.01 is one answer in 100")


def parse_exits(text: str, drop: float | None = None) -> ExitOptions:
    """Read `0.3,0.6`.

    Raises:
        UsageError: it is not of that form.

    >>> parse_exits("0.3,0.6").depths
    (0.3, 0.6)
    """
    try:
        depths = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--exits {text}: write shares of the model, as 0.3,0.6") from None
    return ExitOptions(depths=depths) if drop is None else ExitOptions(depths=depths, drop=drop)
