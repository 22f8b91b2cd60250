"""Which numbers a device is quick with: bfloat16 takes half of float32's time on some, nine times as long on others."""

import torch


def fast_precision(accelerator: str) -> str:
    """What a GPU, if there is one and it may be used, or else this processor does well."""
    if accelerator != "cpu" and torch.cuda.is_available():
        return "bf16-mixed"
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}  # older torch
    return "bf16-mixed" if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else "32-true"


def quick_convolutions(device: torch.device) -> torch.autocast:
    """A context in which convolutions compute in bfloat16 where the device does that well."""
    half = fast_precision(device.type) == "bf16-mixed"
    return torch.autocast(device.type, torch.bfloat16, enabled=half)
