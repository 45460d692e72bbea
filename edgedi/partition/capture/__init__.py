"""From the user's module to a LayerGraph: all of partition that imports torch."""
