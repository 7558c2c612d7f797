"""A pipeline step that writes down which samples it saw, for tests over several processes."""

import aqr_model  # noqa: F401  (its shims come before any import of mmdet3d)

# isort: split
from mmdet3d.datasets import PIPELINES


@PIPELINES.register_module()
class WriteDown:
    """Appends the token of each sample to a file.

    Args:
        path: The file.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def __call__(self, results):
        with open(self.path, "a") as file:
            file.write(results["sample_idx"] + "\n")
        return results
