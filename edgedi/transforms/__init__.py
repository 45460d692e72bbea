"""nn.Module to nn.Module: the same answer from a smaller network. Knows nothing of partition and runtime."""
