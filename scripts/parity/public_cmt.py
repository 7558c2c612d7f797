"""Let the public CMT (repository junjie18/CMT, commit d3b1d78) run on this machine's CPU.

Its code stays where it is; what it needs of CUDA is replaced from outside:

- `Tensor.cuda()` returns the tensor;
- flash attention becomes torch's scaled_dot_product_attention: no mask, no dropout (the public code
  passes no rate), float32 instead of float16;
- voxels are made on the CPU (`pts_voxel_layer.device`);
- modules that it imports and does not need here (`flash_attn`, `turtle`) are empty.
"""

import importlib
import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

COMPAT = Path(__file__).parents[2] / "aqr_model" / "compat.py"


def load(folder: Path) -> None:
    """Register the public detector, in a process that has not imported `aqr_model`.

    Args:
        folder: Clone of the repository.
    """
    spec = importlib.util.spec_from_file_location("compat", COMPAT)
    assert spec is not None and spec.loader is not None
    compat = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(compat)
    compat.apply()
    flash = ("flash_attn", "flash_attn.flash_attn_interface", "flash_attn.bert_padding")
    for name in ("turtle", *flash):
        sys.modules[name] = _Anything(name)
    Tensor.cuda = lambda self, *_, **__: self  # pyright: ignore[reportAttributeAccessIssue]
    sys.path.insert(0, str(folder))
    importlib.import_module("projects.mmdet3d_plugin")
    attention = importlib.import_module("projects.mmdet3d_plugin.models.utils.attention")
    attention.FlashAttention.forward = _attend


class _Anything(types.ModuleType):
    """A module whose names are all None."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return None


def _attend(self: nn.Module, q: Tensor, kv: Tensor, **_: Any) -> tuple[Tensor, None]:
    """Flash attention of [B, L, H, D] and [B, S, 2, H, D]."""
    key, value = kv.unbind(2)
    heads = (tokens.transpose(1, 2) for tokens in (q, key, value))
    return nn.functional.scaled_dot_product_attention(*heads).transpose(1, 2), None
