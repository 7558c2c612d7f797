"""The optimizer of a config: groups, rates over time, frozen parts, precision."""
