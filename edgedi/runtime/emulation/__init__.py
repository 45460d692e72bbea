"""A device slower than this machine: how fast it is, and the waiting that makes it so."""
