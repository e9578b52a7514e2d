"""Storage: artifacts in a folder or in a bucket.

    store       artifacts by kind and id: find, stage, finalize, remove, lock
    manifest    the file that marks a folder as a finished artifact: sizes, SHA-256, parents
    files       atomic writes, fsync, one-line disk errors
    mirror      this machine's copy of a store in a bucket
    s3          requests to a bucket, with retries
    lock        a lock that several machines share through a bucket
"""
