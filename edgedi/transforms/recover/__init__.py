"""Training that brings back what making a network smaller cost: towards the original's own answers."""
