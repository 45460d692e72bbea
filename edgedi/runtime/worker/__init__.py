"""A worker: what it decides, the loop that carries it out, and how one is started here."""
