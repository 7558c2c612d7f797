"""The toy's engine: what its training may raise."""
