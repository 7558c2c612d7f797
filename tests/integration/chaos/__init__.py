"""Faults for sweeps: a trainer with its own log, a checker that trusts nobody, and injectors."""
