"""Checkpoint files: pretrained weights that must fit, training states that continue exactly."""
