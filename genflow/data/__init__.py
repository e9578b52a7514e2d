"""Data: sources yield records, shards store them as Arrow, a stream reads them as batches."""
