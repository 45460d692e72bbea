"""A network as files that hold numbers and operator names, never code, and the report that belongs to it."""
