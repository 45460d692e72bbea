"""Exact simplification: what holds whatever the input, proven on the exported graph, then cut from the modules."""
