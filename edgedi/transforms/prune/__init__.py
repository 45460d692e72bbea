"""The step "prune": which channels may go, in which order, and the layers left fitted anew."""
