"""Reading a config, and what is checked before anything starts.

A training that cannot run is refused at once, with every reason.
"""
