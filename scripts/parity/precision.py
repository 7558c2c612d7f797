"""Which number formats the parts of a detector compute in under the public recipe's fp16 hook.

Run forward on the CPU, in training mode. mmcv's autocast is CUDA's; here torch's autocast of the
CPU takes its place, in float16 too.
"""

from typing import Any

import numpy as np
import parity_cases
import torch
from torch import Tensor, nn


def formats(name: str, cfg: Any) -> dict[str, np.ndarray]:
    """For each part the formats of what its layers return, first to last.

    Args:
        name: Of the side.
        cfg: Its config, as it is.
    """
    from mmdet3d.models import build_model

    model = parity_cases.detector(build_model, cfg)
    {"public": _use_public_hook, "ours": _use_our_precision}[name](model, cfg)
    seen: dict[str, dict[str, None]] = {}

    def keep(part: str) -> Any:
        def hook(module: nn.Module, given: Any, out: Any) -> None:
            out = out[0] if isinstance(out, tuple | list) else out
            out = getattr(out, "features", out)  # of a sparse tensor
            if isinstance(out, Tensor):
                seen.setdefault(part, {})[str(out.dtype).removeprefix("torch.")] = None

        return hook

    for path, module in model.named_modules():
        if not list(module.children()):
            deep = 2 if path.startswith("pts_bbox_head") else 1
            module.register_forward_hook(keep(".".join(path.split(".")[:deep])))
    if name == "public":
        _watch_flash_attention(seen)
    model.train()
    with parity_cases.noise_tape():
        model.forward_train(**parity_cases.training_arguments(parity_cases.batch("r50", (3,))))
    return {part: np.array(", ".join(found)) for part, found in seen.items()}


def _use_public_hook(model: nn.Module, cfg: Any) -> None:
    """What `CustomFp16OptimizerHook` of the public config does before a run."""
    from mmcv.runner import fp16_utils, wrap_fp16_model

    fp16_utils.autocast = lambda enabled=True: torch.autocast(
        "cpu", dtype=torch.float16, enabled=enabled
    )
    wrap_fp16_model(model)
    for part, enabled in cfg.optimizer_config.custom_fp16.items():
        getattr(model, part).fp16_enabled = enabled


def _watch_flash_attention(seen: dict[str, dict[str, None]]) -> None:
    """The public kernel takes float16 whatever the hook says: its module sets `fp16_enabled`."""
    import public_cmt
    from mmcv.runner import auto_fp16
    from projects.mmdet3d_plugin.models.utils.attention import FlashAttention

    def forward(self: nn.Module, q: Tensor, kv: Tensor, **_: Any) -> tuple[Tensor, None]:
        seen.setdefault("flash attention", {})[str(q.dtype).removeprefix("torch.")] = None
        return public_cmt.attend(self, q, kv)

    FlashAttention.forward = auto_fp16(apply_to=("q", "kv"), out_fp32=True)(forward)


def _use_our_precision(model: nn.Module, cfg: Any) -> None:
    from aqr_model.engine.optim.precision import apply_precision, read_precision

    apply_precision(model, read_precision(cfg))
