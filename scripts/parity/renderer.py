"""Compare the legacy weight maps with the users' renderer at and beyond the maps' borders.

    python scripts/parity/renderer.py --renderer FILE [--write]

FILE is the users' `weight_renderer.py`; it runs from there. `--write` keeps its maps in
`tests/data/parity/renderer.npz`, where a test finds them.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "helpers")]


def main() -> None:
    """Run both renderers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--renderer", type=Path, required=True, help="the users' file")
    parser.add_argument("--write", action="store_true", help="renew the numbers of the test")
    arguments = parser.parse_args()

    import aqr_model  # noqa: F401  (its shims)

    # isort: split
    import renderer_cases
    from mmcv.utils import import_modules_from_strings

    from aqr_model.aqr import WeightRenderer

    sys.path.insert(0, str(arguments.renderer.resolve().parent))
    users = import_modules_from_strings(arguments.renderer.stem).WeightRenderer
    kept = {}
    print("| map | method | largest difference |\n|---|---|---|")
    for method in renderer_cases.METHODS:
        theirs = renderer_cases.draw(users(**renderer_cases.settings(method)))
        ours = renderer_cases.draw(
            WeightRenderer(**renderer_cases.settings(method), semantics="legacy")
        )
        for name, drawn in theirs.items():
            kept[f"{name}_{method}"] = drawn
            print(f"| {name} | {method} | {np.abs(ours[name] - drawn).max():.1e} |")
    if arguments.write:
        np.savez_compressed(ROOT / "tests" / "data" / "parity" / "renderer.npz", **kept)


if __name__ == "__main__":
    main()
