"""From a network to proven programs, in rooms; tests/test_layering.py says which may import which."""
