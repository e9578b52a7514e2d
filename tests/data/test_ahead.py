"""The next batch is made while a step is computed."""

import threading

import numpy as np
import pytest
import torch

from genflow.batch import Batch
from genflow.data.ahead import Ahead, ahead, to_device


def test_the_next_batch_is_made_before_it_is_asked_for() -> None:
    """In another thread; after a rollback the steps are made again, and an error is raised at its own step."""
    made, ready = [], threading.Event()

    def batches(step: int) -> Batch:
        if step == 3:
            raise OSError("a shard cannot be read")
        made.append((step, threading.current_thread() is threading.main_thread()))
        if step == 1:
            ready.set()
        return Batch(torch.full((1,), float(step)), torch.zeros(1))

    stream = Ahead(batches)
    assert float(stream(0).x) == 0
    assert ready.wait(10)
    assert [float(stream(step).x) for step in (1, 2, 1, 2)] == [1, 2, 1, 2]
    with pytest.raises(OSError, match="a shard cannot be read"):
        stream(3)
    stream.close()
    assert not any(in_main for _, in_main in made)


def test_the_cpu_reads_no_batch_ahead() -> None:
    """Its cores compute the step."""
    assert ahead(lambda step: Batch(torch.zeros(1), torch.zeros(1)), "cpu") is None
    values = np.arange(3.0)
    assert np.shares_memory(to_device(values, "cpu").numpy(), values)
