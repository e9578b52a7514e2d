"""Which precision a chip is fast in."""

import torch


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the chip multiplies bfloat16 in hardware; elsewhere it takes longer than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
