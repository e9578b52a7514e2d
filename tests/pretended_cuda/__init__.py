"""A CUDA device that does not exist: tensors that say `cuda:0`, hold real numbers, and refuse what CUDA refuses.

    guard       compile and load what torch's CPU build lacks
    device      the tensors, and every operation on them
    attention   the fused attention of CUDA, in plain products
    pretend     `with pretended() as seen:` everything on the device "cuda" inside is pretended
    cases       what is trained, sampled and measured
    drive       one case on the pretended device, compared with the CPU
    parts       what else uses a device: evaluation, serving, latents, several workers
    child       the process that runs the cases, because the device must be loaded before torch

It sees: mixed devices, draws from CUDA's global generator, generators of the wrong device, and every synchronisation
and copy, with the line of genflow that caused it. It does not see: the numbers of real kernels, TF32, memory, NCCL,
FSDP and speed.

Other ways, and why not: FakeTensorMode cannot run backward or `.item()`. A Python backend by privateuseone is not
"cuda", so the paths of autocast and of `is_cuda` would stay untried.
"""
