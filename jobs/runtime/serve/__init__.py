"""Ray Serve.

deployment          the Serve application and its replicas
haproxy             HAProxy in front of the replicas, where Ray's wheels contain it
retry_middleware    retries and admission control in Ray's own proxy
"""
