"""The planners to choose from, ours and the published ones, by name."""
