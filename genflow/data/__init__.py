"""Data: sources give records, shards keep them as Arrow, a stream turns them into batches."""
