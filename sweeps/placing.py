"""What a trial takes of a cluster, and whether it fits. Pure."""

from collections.abc import Mapping, Sequence

from sweeps.sections import ResourcesSpec

Bundle = dict[str, float]


def bundles_of(resources: ResourcesSpec) -> list[Bundle]:
    """What each process of one trial takes, by Ray's names."""
    if resources.gpus == 0:
        return [{"CPU": float(resources.cpus)}]
    share = {"GPU": 1.0, "CPU": resources.cpus / resources.gpus}
    return [dict(share) for _ in range(resources.gpus)]


def num_trials_fitting(resources: ResourcesSpec, nodes: Sequence[Mapping[str, float]]) -> int:
    """How many trials fit at once on empty nodes with these resources.

    The processes of one trial may stand on several nodes.
    """
    bundles = bundles_of(resources)
    return sum(_num_held(bundles[0], node) for node in nodes) // len(bundles)


def misfit(resources: ResourcesSpec, nodes: Sequence[Mapping[str, float]]) -> str | None:
    """Why not even one trial fits on nodes with these resources; None if one does.

    Args:
        resources: Of one trial.
        nodes: All that each node has, in use or not.
    """
    bundles = bundles_of(resources)
    bundle, num_processes = bundles[0], len(bundles)
    held = sum(_num_held(bundle, node) for node in nodes)
    if held >= num_processes:
        return None
    total = {key: sum(node.get(key, 0.0) for node in nodes) for key in bundle}
    if held == 0:
        largest = {key: max((n.get(key, 0.0) for n in nodes), default=0.0) for key in bundle}
        what = "one trial" if num_processes == 1 else f"a process of a trial ({num_processes})"
        return (
            f"a node of the cluster must hold {what}, {_amounts(bundle)}, but none of its "
            f"{len(nodes)} does; the most that one has: {_amounts(largest)}"
        )
    return (
        f"the cluster must hold one trial, {num_processes} processes of {_amounts(bundle)} each, "
        f"but has room for {held}; in all it has {_amounts(total)}"
    )


def _num_held(bundle: Mapping[str, float], node: Mapping[str, float]) -> int:
    return min(int(node.get(key, 0.0) // need) for key, need in bundle.items())


def _amounts(resources: Mapping[str, float]) -> str:
    return ", ".join(f"{amount:g} {key}" for key, amount in resources.items())
