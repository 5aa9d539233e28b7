"""Groups of channels that do not begin where blocks do; `test_direct.py` runs their kernels."""

import numpy as np
from support.conv_workloads import conv_workload

from edgec.compiler.kernels.conv.decision import ConvDecision
from edgec.compiler.kernels.conv.weights import group_spans, mean_depth, pack_grouped_weight

# Four groups of 34 channels, as in ShuffleNet.
WORK = conv_workload(in_channels=136, out_channels=136, kernel=(1, 1), padding=(0, 0), groups=4)


def test_a_tile_reads_its_own_groups() -> None:
    spans = group_spans(WORK, 1, 16)
    assert spans == (
        *[(0, 34)] * 2,
        (0, 68),
        (34, 68),
        (34, 102),
        (68, 102),
        (68, 136),
        *[(102, 136)] * 2,
    )
    # Six tiles of one group and three of two, where whole groups of blocks were five of 16 each.
    assert mean_depth(WORK, 1, 16) == (6 * 34 + 3 * 68) / 9


def test_packed_weights_are_cut_where_blocks_are() -> None:
    """Rows of a tile: block by block of the input, in each first the window, then its channels."""
    work = conv_workload(in_channels=12, out_channels=12, groups=2)
    weight = np.arange(12 * 6 * 9, dtype=np.float32).reshape(12, 6, 3, 3) + 1
    packed = pack_grouped_weight(work, ConvDecision(1, 1, 1), weight, 4)
    assert packed.shape == (3, 12 * 9, 4)
    # The last tile: channels 8 to 11 of the second group, which reads channels 6 to 11 in two
    # blocks, two channels of the first.
    rows = packed[2, : 6 * 9]
    first, second = rows[: 2 * 9].reshape(9, 2, 4), rows[2 * 9 :].reshape(9, 4, 4)
    by_tap = weight[8:].reshape(4, 6, 9).transpose(2, 1, 0)
    np.testing.assert_array_equal(np.concatenate([first, second], axis=1), by_tap)
    assert not packed[2, 6 * 9 :].any()
    # The one in the middle spans both groups: output channels 4 and 5 read nothing of the second.
    assert not packed[1].reshape(-1, 4)[9 * 8 :, :2].any()
