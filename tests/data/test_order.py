"""The order of rows is a permutation for each epoch, and reads large data a window of shards at a time."""

import numpy as np
import pytest

from genflow.data.order import WINDOW, Order
from genflow.data.shards import MAX_MAPPED

LARGE = [3] * (2 * MAX_MAPPED) + [1]  # the last shard is shorter


def epoch_of(order: Order, epoch: int) -> np.ndarray:
    return order.rows(epoch, np.arange(order.total))


@pytest.mark.parametrize("sizes", [[5, 5, 2], [1], LARGE, [4, 0, 7] * MAX_MAPPED])
def test_every_epoch_is_another_permutation(sizes: list[int]) -> None:
    """Each row is read once; shards may have any sizes."""
    order = Order(sizes, seed=3)
    first, second = epoch_of(order, 0), epoch_of(order, 1)
    assert sorted(first) == sorted(second) == list(range(sum(sizes)))
    assert len(first) == 1 or first.tolist() != second.tolist()


def test_a_row_is_a_function_of_seed_epoch_and_position() -> None:
    """Positions may be asked for in any order, in one call or in several."""
    whole = epoch_of(Order(LARGE, 3), 4)
    some = np.random.default_rng(0).permutation(len(whole))[:500]
    assert Order(LARGE, 3).rows(4, some).tolist() == whole[some].tolist()
    assert epoch_of(Order(LARGE, 5), 4).tolist() != whole.tolist()


def test_large_data_is_read_a_window_at_a_time() -> None:
    """Within a window there is no order of shards."""
    shards = epoch_of(Order(LARGE, 3), 0) // 3
    for begin in range(0, len(shards) - 3 * WINDOW, 3 * WINDOW):  # the short shard moves an edge by two rows
        inside = shards[begin + 2 : begin + 3 * WINDOW - 2]
        assert len(np.unique(inside)) <= WINDOW
        assert len(np.unique(inside[:100])) > 70
    assert np.abs(np.corrcoef(np.arange(len(shards)), shards)[0, 1]) < 0.1


def test_small_data_is_permuted_as_a_whole() -> None:
    """Each quarter of an epoch has rows of every shard."""
    shards = epoch_of(Order([100] * 8, 3), 0) // 100
    assert all(len(np.unique(quarter)) == 8 for quarter in shards.reshape(4, -1))
