"""A program and its weights become loaded kernels, and a request walks them."""
