"""The session's end of all links: greets workers, measures them, and gives them their programs."""
