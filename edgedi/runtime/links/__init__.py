"""How bytes move between processes: keys, sockets, and halos from worker to worker."""
