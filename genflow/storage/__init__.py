"""Storage: artifacts in a folder or in a bucket.

    store       artifacts by kind and id: find, stage, finalize, remove, lock
    manifest    the file that makes a folder an artifact: sizes, SHA-256, parents
    files       atomic writes, fsync, disk errors in one line
    mirror      this machine's copy of a store in a bucket
    s3          the bucket's requests and their retries
    lock        a lock that several machines respect
"""
