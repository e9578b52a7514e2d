"""Whether the hardware is fast in bfloat16."""

import torch


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16; otherwise bfloat16 is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
