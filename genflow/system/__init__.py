"""Access to the operating system and the network, mostly through the standard library.

    devices         the device of this process, chosen in one place
    environment     environment variables, tokens, ports, process priority
    events          the JSON lines with which a job reports progress and its result
    http            one HTTP client; a request to this machine never goes through a proxy
    subprocesses    helper processes connected by a socket pair
    source_hash     a hash of the source files that determine a result
    peak_memory     peak memory of a process
    streams         standard streams that print every text
    declarations    constants of a module, read without importing it
    documents       the type of a JSON object
"""
