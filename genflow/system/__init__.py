"""The operating system and the network; mostly the standard library.

    environment     environment variables, tokens, ports, process priority
    events          the JSON lines by which a job reports progress and its result
    http            one HTTP client; a request to this machine never goes through a proxy
    subprocesses    a helper process and its socket
    source_hash     a hash of the source files that decide a result
    peak_memory     the most memory that a process used
"""
