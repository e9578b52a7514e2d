"""Serving: samplers behind HTTP. Knows no Ray; `jobs/serve.py` puts it on Ray Serve.

app        the HTTP interface (FastAPI): routes, documentation, the playground
guard      what stands before it: sizes, time, keys, rates, request ids, the log
requests   what may be asked, typed
service    what runs in a replica: a request in, a reply out
batcher    requests that fit together are drawn together, within bounds
worker     the process that draws what is in a batch
entries    the models of a deployment, as they are written down
shelf      the models: their cards, and the engines in memory
replies    what comes back, and errors in one shape
"""
