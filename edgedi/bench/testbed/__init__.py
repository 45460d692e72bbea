"""The emulated edge testbed: devices slower than this machine, on links slower than its loopback."""
