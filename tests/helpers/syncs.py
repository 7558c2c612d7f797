"""Find where the host waits for values of tensors, on a CPU, where no device would tell."""

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

# Results whose shape or value the host must know.
_READING_OPS = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim")
_READING_CALLS = ("tolist", "cpu", "numpy", "__array__")


class _Dispatched(TorchDispatchMode):
    def __init__(self, seen: list[str]) -> None:
        super().__init__()
        self.seen = seen

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        # A mask as index is a nonzero in disguise.
        masks = name in ("index", "index_put", "index_put_") and any(
            part is not None and part.dtype == torch.bool for part in args[1]
        )
        if name in _READING_OPS or masks:
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


class _Called(TorchFunctionMode):
    def __init__(self, seen: list[str]) -> None:
        super().__init__()
        self.seen = seen

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        to_host = name == "to" and "cpu" in [part for part in args[1:] if isinstance(part, str)]
        if name in _READING_CALLS or to_host:
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


class host_reads:
    """A context in which every read of a tensor's values is noted; gives the list of names."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.modes = (_Called(self.seen), _Dispatched(self.seen))

    def __enter__(self) -> list[str]:
        for mode in self.modes:
            mode.__enter__()
        return self.seen

    def __exit__(self, *error: object) -> None:
        for mode in reversed(self.modes):
            mode.__exit__(*error)
