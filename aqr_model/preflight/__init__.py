"""Whether a training can start from a config, and what of the config does nothing.

`checks.preflight` is asked by the commands and, for every sweep, by `launch`; `reading` reads
configs, `dotted` and `keys` know their keys. May import all rooms but the commands beside it.
"""
