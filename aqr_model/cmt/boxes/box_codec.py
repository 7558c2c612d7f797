"""The ten slots in which CMT regresses a box, and the way back.

The slots are (cx, cy, log dx, log dy, cz, log dz, sin, cos, vx, vy). The task heads' outputs are
joined as centre, height, dim, rot, vel, so that the branch named `height` learns log dx and the
second channel of `dim` learns cz. Official checkpoints depend on it.
"""

import torch
from torch import Tensor

BRANCHES = ("center", "height", "dim", "rot", "vel")


def encode_boxes(boxes: Tensor) -> Tensor:
    """Turn boxes into regression targets.

    Args:
        boxes: (x, y, z of the gravity centre, dx, dy, dz, yaw, vx, vy). [..., 9]

    Returns:
        [..., 10]
    """
    centre, size, yaw, velocity = boxes.split([3, 3, 1, 2], dim=-1)
    size = size.log()
    return torch.cat(
        [
            centre[..., :2],
            size[..., :2],
            centre[..., 2:],
            size[..., 2:],
            yaw.sin(),
            yaw.cos(),
            velocity,
        ],
        dim=-1,
    )


def decode_boxes(slots: Tensor) -> Tensor:
    """Turn regressed slots into boxes, the inverse of `encode_boxes`.

    Args:
        slots: [..., 10]

    Returns:
        [..., 9]
    """
    centre, size, z, height, sine, cosine, velocity = slots.split([2, 2, 1, 1, 1, 1, 2], dim=-1)
    yaw = torch.atan2(sine, cosine)
    return torch.cat([centre, z, size.exp(), height.exp(), yaw, velocity], dim=-1)


def join_branches(outputs: dict[str, Tensor], prefix: str = "") -> Tensor:
    """Join a task head's regression branches in slot order. [..., 10]."""
    return torch.cat([outputs[prefix + branch] for branch in BRANCHES], dim=-1)
