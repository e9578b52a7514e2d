"""Descriptions and examples of responses and errors for the OpenAPI document."""

from typing import Any

ERROR = {
    "description": "The error, and the field that caused it.",
    "content": {
        "application/json": {
            "example": {
                "error": {
                    "code": "invalid", "field": "steps", "message": "steps: must be at most 1000",
                    "hint": "", "request": "1f0c2a7be4d05f63",
                }
            }
        }
    },
}  # fmt: skip
SAMPLE_RESPONSES: dict[int | str, Any] = {
    200: {
        "description": "The samples. `X-Genflow-Checkpoint`, `-Seed`, `-Steps`, `-Nfe`, `-Seconds` describe them; "
        "`X-Genflow-Cut: 16/62` means that 16 of 62 tokens of the longest prompt are read.",
        "content": {
            "image/png": {}, "image/webp": {}, "application/x-npy": {},
            "application/json": {
                "example": {
                    "schema": "genflow.samples/1", "model": "digits", "run": "digits-1f2e3d4c5b", "step": 2000, "n": 1,
                    "seed": 7, "steps": 10, "nfe": 10, "options": {"sampler": "ab2", "steps": 10, "guidance": 1.0},
                    "seconds": 0.041, "waited": 0.002, "batch": 16, "labels": [3], "images": ["iVBORw0KGgo..."],
                }
            },
        },
    }
}  # fmt: skip
CODE_RESPONSES: dict[int | str, Any] = {
    200: {
        "description": "The codes.",
        "content": {
            "application/x-npy": {},
            "application/json": {
                "example": {
                    "schema": "genflow.codes/1", "model": "digits", "run": "digits-1f2e3d4c5b", "step": 2000, "n": 1,
                    "seed": 0, "labels": [3], "shape": [1, 1, 8, 8], "codes": "k05VTVBZ...",
                }
            },
        },
    }
}  # fmt: skip
ERROR_RESPONSES: dict[int | str, Any] = dict.fromkeys((400, 404, 413, 422, 503), ERROR)
