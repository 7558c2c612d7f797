"""What decides: the spec, the space, the search, early stopping, one sweep from start to end."""
