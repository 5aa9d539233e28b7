"""The channel-blocked layout: where each value lies, and zeros past the last channel."""

import numpy as np
import pytest

from edgec.compiler.ir.blocked_layout import block_array, blocked_shape, by_channel, image


@pytest.mark.parametrize("lanes", [4, 8, 16])
@pytest.mark.parametrize("shape", [(1, 8, 4, 5), (2, 9, 3, 1), (1, 3, 7), (2, 17, 1)])
def test_every_value_is_at_its_place(shape: tuple[int, ...], lanes: int) -> None:
    array = np.arange(1, np.prod(shape) + 1, dtype=np.int32).reshape(shape)
    blocked = block_array(array, lanes)
    assert blocked.shape == blocked_shape(shape, lanes)
    assert blocked.flags.c_contiguous
    n, channels, h, w = image(shape)
    flat = array.reshape(n, channels, h, w)
    for index in np.ndindex(n, channels, h, w):
        batch, channel, row, column = index
        assert blocked[batch, channel // lanes, row, column, channel % lanes] == flat[index]
    assert np.count_nonzero(blocked) == array.size


def test_values_by_channel_fill_whole_blocks() -> None:
    values = np.arange(1, 10, dtype=np.float32)
    filled = by_channel(values, 8)
    assert filled.tolist() == [*values.tolist(), *[0.0] * 7]
    np.testing.assert_array_equal(by_channel(values[:8], 8), values[:8])
