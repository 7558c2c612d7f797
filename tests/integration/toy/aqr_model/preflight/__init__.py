"""Reads configs; the toy has nothing that could be wrong with them."""
