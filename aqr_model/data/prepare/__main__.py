"""``python -m aqr_model.data.prepare --dataroot D --version V``: prepare a dataset for training."""

import argparse
import pickle
import sys
from pathlib import Path

from aqr_model.data.errors import DataError
from aqr_model.data.prepare.build import MAX_SWEEPS, prepare, prepare_database


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description="Build info files and the object database from nuScenes tables."
    )
    parser.add_argument("--dataroot", required=True, help="folder with samples/ and the tables")
    parser.add_argument("--version", required=True, help="v1.0-trainval, v1.0-mini or your own")
    parser.add_argument("--out", help="folder for the results (default: dataroot)")
    parser.add_argument(
        "--database",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="also cut out the objects of the training split, for UnifiedObjectSample",
    )
    parser.add_argument(
        "--sweeps",
        type=int,
        default=MAX_SWEEPS,
        help="earlier LiDAR sweeps in its objects, as many as training uses (%(default)s)",
    )
    parser.add_argument("--workers", type=int, default=1, help="processes for the database (1)")
    args = parser.parse_args()
    try:
        paths = prepare(args.dataroot, args.version, args.out)
        databases = {}
        if args.database:
            databases = prepare_database(
                args.dataroot,
                args.version,
                args.out,
                num_sweeps=args.sweeps,
                workers=args.workers,
            )
    except DataError as error:
        sys.exit(f"error: {error}")
    for split, path in paths.items():
        print(f"{split}: {path}")
    for split, path in databases.items():
        print(f"{split}: {path} ({_counts(path)})")
    if args.database and not databases:
        print(f"no object database: none of the splits {sorted(paths)} is for training")


def _counts(path: Path) -> str:
    found = pickle.loads(path.read_bytes())
    return ", ".join(f"{len(entries)} {name}" for name, entries in found.items())


if __name__ == "__main__":
    main()
