"""The part that touches the world: kernels, workers, coordinator, sessions."""
