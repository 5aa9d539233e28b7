"""Find the cuts of a graph that fewest bytes cross.

A cut behind an operator has it and all that it needs before it, and who reads it behind it. What
is neither may be computed on either side: of all such cuts the one of the fewest bytes is the
solution of a linear program, which HiGHS finds. With `s[p]` = 1 for an operator before the cut and
`e[p]` = 1 if its value crosses:

    minimize  sum of bytes[p] * e[p]
    where     s[needed] >= s[reader],  e[p] >= s[p] - s[reader]

All corners of this program are whole numbers, as it is the dual of a flow (Ford and Fulkerson
1962).
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgec.compiler.split.cut_graph import Before, CutGraph


def minimum_cuts(graph: CutGraph) -> list[Before]:
    """Return the cut of fewest bytes behind each operator that there is one behind.

    Returns:
        Cuts of which each holds those before it: the longest such row.
    """
    program = _CutProgram(graph)
    found: dict[Before, None] = {}
    for place in graph.operators:
        if graph.may_travel(place) and graph.readers[place]:
            before = program.behind(place)
            if before is not None and graph.is_cut(before):
                found[before] = None
    return longest_row(list(found), [graph.cut_bytes(cut) for cut in found])


def longest_row(cuts: Sequence[Before], sizes: Sequence[int]) -> list[Before]:
    """Return the most cuts of which each holds those before it; of equal many, of fewer bytes.

    >>> a, b, c = frozenset([1]), frozenset([2]), frozenset([1, 2, 3])
    >>> longest_row([a, b, c], [8, 4, 8]) == [b, c]
    True
    """
    order = sorted(range(len(cuts)), key=lambda n: len(cuts[n]))
    best: dict[int, tuple[int, int]] = {}
    before: dict[int, int | None] = {}
    for position, n in enumerate(order):
        best[n], before[n] = (1, -sizes[n]), None
        for m in order[:position]:
            longer = (best[m][0] + 1, best[m][1] - sizes[n])
            if longer > best[n] and cuts[m] < cuts[n]:
                best[n], before[n] = longer, m
    at = max(best, key=best.__getitem__, default=None)
    row = []
    while at is not None:
        row.append(cuts[at])
        at = before[at]
    return row[::-1]


class _CutProgram:
    """A cut program is the linear program of a graph, solved again for each operator."""

    def __init__(self, graph: CutGraph) -> None:
        # Imported here: only who plans needs it.
        import highspy

        self._graph, self._optimal = graph, highspy.HighsModelStatus.kOptimal
        self._column = {place: n for n, place in enumerate(graph.operators)}
        count = len(graph.operators)
        pairs = [(p, r) for p, readers in graph.readers.items() for r in dict.fromkeys(readers)]
        program = highspy.HighsLp()
        program.num_col_, program.num_row_ = 2 * count, 2 * len(pairs)
        sizes = [float(graph.size_bytes(place)) for place in graph.operators]
        travels = [float(graph.may_travel(place)) for place in graph.operators]
        # Cuts of equal bytes: the one with less before it.
        program.col_cost_ = np.array([1e-3] * count + sizes)
        program.col_lower_ = np.zeros(2 * count)
        program.col_upper_ = np.array([1.0] * count + travels)
        # s[p] - s[r] >= 0, and s[p] - s[r] - e[p] <= 0.
        program.row_lower_ = np.tile([0.0, -np.inf], len(pairs))
        program.row_upper_ = np.tile([np.inf, 0.0], len(pairs))
        index: list[int] = []
        values: list[float] = []
        starts = [0]
        for needed, reader in pairs:
            p, r = self._column[needed], self._column[reader]
            index += [p, r, p, r, count + p]
            values += [1.0, -1.0, 1.0, -1.0, -1.0]
            starts += [starts[-1] + 2, starts[-1] + 5]
        program.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
        program.a_matrix_.start_ = np.array(starts, np.int32)
        program.a_matrix_.index_ = np.array(index, np.int32)
        program.a_matrix_.value_ = np.array(values)
        # Its child class `Highs` prints a line about itself to standard output.
        self._solver = highspy._Highs()  # type: ignore[attr-defined]
        self._solver.setOptionValue("output_flag", False)
        self._solver.passModel(program)
        self._all = np.arange(count, dtype=np.int32)

    def behind(self, place: int) -> Before | None:
        """Return the cut behind an operator; None if there is none."""
        graph, count = self._graph, len(self._column)
        lower, upper = np.zeros(count), np.ones(count)
        for needed in graph.closed([place]):
            lower[self._column[needed]] = 1.0
        for reader in graph.readers[place]:
            upper[self._column[reader]] = 0.0
        if (lower > upper).any():
            return None
        self._solver.changeColsBounds(count, self._all, lower, upper)
        self._solver.run()
        if self._solver.getModelStatus() != self._optimal:
            return None
        solution: NDArray[np.float64] = np.asarray(self._solver.getSolution().col_value)
        chosen = solution[:count] > 0.5
        return graph.closed(p for p, n in self._column.items() if chosen[n])
