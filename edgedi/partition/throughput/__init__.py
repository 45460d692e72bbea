"""Plans for requests a second: replicas and pipelines, what they keep busy, and who gets the next request."""
