"""Sources: where pictures come from, one source a file.

    base             Source, Part, Record: what every source provides
    find             the source that a text names
    digits, idx, npz, arrays, folder, parquet, stacked, densities     the sources
    parquet_cells    pictures inside the cells of a Parquet file
"""
