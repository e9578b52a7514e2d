"""Serve trained models over HTTP. Independent of Ray; `jobs/serve.py` runs it on Ray Serve.

app              the HTTP interface (FastAPI): routes, the API documentation, the playground
middleware       checks before the app: sizes, timeouts, API keys, rate limits, request ids, the request log
schemas          the request bodies (pydantic)
conditions       the class or the captions of each sample of a request
openapi          descriptions of responses in the OpenAPI document
docs_page        the page at /docs
service          the models of one replica: turns a request into a response
batcher          queues requests, and draws those with equal settings in one batch
engine_process   the child process that draws the batches
engine_cache     the engines in memory, least recently used out first
models           what is known of a model without its weights
model_list       the models of an endpoint, as the configuration stores them
decode_inputs    reads images and codes from a request
encode_outputs   writes samples and codes in the requested format
real_pictures    pictures of a model's dataset, next to its samples
playground/      the page at /: page.html, and the style sheet and scripts that the app puts into it
responses        response bodies, and errors in one format
endpoints        the files in the store that describe running endpoints
"""
