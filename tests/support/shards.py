"""A dataset of several small shards."""

import numpy as np

from genflow.data.shard_format import shard_ranges, write_index, write_shard
from genflow.specs import DataSpec
from genflow.storage.store import Artifact, Store

ROWS, OF_A_SHARD = 20, 5


def in_shards(store: Store) -> Artifact:
    """Twenty pictures of 2x2 in four shards; the value of every pixel is the row, and the class its remainder by 3."""
    facts = DataSpec((1, 2, 2), levels=256, class_names=tuple("abc"), splits={"train": ROWS}, fingerprint="f" * 16)
    with store.stage("datasets", "rows-1", name="rows") as staged:
        (staged.path / "train").mkdir()
        files = {}
        for name, start, stop in shard_ranges(ROWS, OF_A_SHARD):
            rows = np.arange(start, stop)
            pixels = np.broadcast_to(rows.astype(np.uint8)[:, None, None, None], (len(rows), 2, 2, 1))
            write_shard(staged.path / "train" / name, facts, pixels, [str(row) for row in rows], rows % 3)
            files[name] = len(rows)
        write_index(staged.path, facts, {"train": files})
        return staged.commit()
