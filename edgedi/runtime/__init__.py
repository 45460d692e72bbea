"""The part that touches the world, in rooms; tests/test_layering.py says which may import which."""
