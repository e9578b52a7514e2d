"""Ten million rows on a small disk: a dataset of which every shard is a hard link to one file.

    python -m benchmarks.scale --only linked --out docs/scaling.md

It shows what grows with the number of rows and shards: the manifest, the maps of files, their hashes, and the order of
rows. It does not show a disk, because one file's pages are in memory all the time.
"""

import json
import os
import time
from pathlib import Path

from genflow.system.documents import Json

SIDE, OF_A_SHARD = 32, 1000
SIZES = (10**4, 10**5, 10**6, 10**7)
ENCODINGS = ("raw", "webp")
BATCHES = 500


def link(encoding: str, rows: int) -> Json:
    """Write the dataset: one shard of different pictures, links to it, and the manifest that `prepare` would write."""
    import numpy as np
    from PIL import Image

    from genflow.data.shard_format import shard_name, write_index, write_shard
    from genflow.specs import DataSpec
    from genflow.storage.files import write_atomically
    from genflow.storage.manifest import MANIFEST, describe, manifest_of
    from genflow.storage.store import Store

    name = f"linked-{encoding}-{rows}"
    facts = DataSpec((3, SIDE, SIDE), 256, splits={"train": rows}, fingerprint=name, encoding=encoding)
    coarse = np.random.default_rng(0).integers(0, 256, (OF_A_SHARD, 5, 5, 3), np.uint8)
    pictures = np.stack([np.asarray(Image.fromarray(one).resize((SIDE, SIDE), 3)) for one in coarse])
    files = [shard_name(number, rows // OF_A_SHARD) for number in range(rows // OF_A_SHARD)]
    folder = Store().folder("datasets", f"{name}-0")
    (folder / "train").mkdir(parents=True)
    first = folder / "train" / files[0]
    sha256 = write_shard(first, facts, pictures, [f"{row:08d}" for row in range(OF_A_SHARD)])
    for file in files[1:]:
        os.link(first, first.with_name(file))
    write_index(folder, facts, {"train": dict.fromkeys(files, OF_A_SHARD)})
    shards = {f"train/{file}": {"size": first.stat().st_size, "sha256": sha256} for file in files}
    index = describe(folder, "datasets", f"{name}-0", only=lambda file: not file.endswith(".arrow"))["files"]
    manifest = manifest_of(shards | index, "datasets", f"{name}-0", name=name, meta={"facts": facts.to_json()})
    write_atomically(folder / MANIFEST, json.dumps(manifest))
    return {}


def read_links(encoding: str, rows: int) -> Json:
    """Open the dataset as a training does, and read random batches of 32, twice: the second time, shards are hashed."""
    import numpy as np

    from genflow.data.shards import Dataset
    from genflow.data.stream import Stream
    from genflow.storage.store import Store

    artifact = Store().find("datasets", f"linked-{encoding}-{rows}")
    before, start = memory_mb(), time.perf_counter()
    stream = Stream(Dataset.open(artifact).splits["train"], 32, seed=0)
    opened = time.perf_counter() - start
    took: list[list[float]] = [[], []]
    for again in took:
        for step in range(BATCHES):
            start = time.perf_counter()
            stream(step)
            again.append(time.perf_counter() - start)
    own, mapped = (now - then for now, then in zip(memory_mb(), before, strict=True))
    sizes = [file["size"] for name, file in artifact.manifest["files"].items() if name.endswith(".arrow")]
    return {
        "encoding": encoding, "rows": rows, "shards": len(sizes), "bytes": sum(sizes), "on_disk": sizes[0],
        "open_s": opened, "first_s": took[0][0], "batch_ms": [1000 * float(np.median(each)) for each in took],
        "own_mb": own, "mapped_mb": mapped,
    }  # fmt: skip


def memory_mb() -> tuple[float, float]:
    """This process's anonymous memory, and its file pages, which the kernel can reclaim, in MB."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines())
    own, mapped = (int(status[name].split()[0]) / 1024 for name in ("RssAnon", "RssFile"))
    return own, mapped


def section(document: list[Json]) -> list[str]:
    """The measurements as Markdown."""
    most = max(row["on_disk"] for row in document) / 1e6
    return [
        "## Ten million rows", "",
        f"Pictures of {SIDE}x{SIDE}, {OF_A_SHARD:,} in a shard. Every shard is a hard link to one file of at most "
        f"{most:.1f} MB, which stays in memory. So this table shows what grows with the number of rows and shards, and "
        f"not the speed of a disk. `Dataset.open` verifies the files as a training does: by hashes up to 1 GiB, and "
        f"above it by sizes, with each shard's hash when it is first read. {BATCHES} random batches of 32 are read, "
        "and then the same ones again. The last two columns are those of `genflow train`, 20 steps, one worker. Mapped "
        "pages, and those in the peak, are shared by the workers of a machine, and the kernel can reclaim them.", "",
        "| encoding | rows | shards | GB | opening, s | first batch, s | a batch, ms | again, ms | memory, MB "
        "| mapped, MB | until the first step, s | peak memory, MB |",
        f"|---|{'---:|' * 11}",
        *(
            f"| {row['encoding']} | {row['rows']:,} | {row['shards']:,} | {row['bytes'] / 1e9:,.2f} "
            f"| {row['open_s']:.2f} | {row['first_s']:.3f} | {row['batch_ms'][0]:.2f} | {row['batch_ms'][1]:.2f} "
            f"| {row['own_mb']:.0f} | {row['mapped_mb']:.0f} | {row['start_s']:.1f} | {row['peak_mb']:,.0f} |"
            for row in document
        ), "",
    ]  # fmt: skip
