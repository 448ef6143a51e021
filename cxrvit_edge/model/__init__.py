"""The PyTorch networks, used by train, export and the reference back end only."""
