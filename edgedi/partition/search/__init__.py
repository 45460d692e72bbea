"""The fastest plan by the cost model: shares, segments and axes, workers left out, limits of memory."""
