"""Ray Serve.

deployment          the Serve application: replicas that answer and draw
haproxy             HAProxy in front of the replicas, where Ray's wheels contain it
retry_middleware    retries and admission control in Ray's own proxy
"""
