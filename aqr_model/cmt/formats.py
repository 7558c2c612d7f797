"""Number formats of a part of the detector."""

import torch


def autocast(device: torch.device, dtype: torch.dtype | None) -> torch.autocast:
    """Compute in a format where torch's autocast allows it; None keeps float32 throughout."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)
