"""Command lines: argv -> configuration -> one call."""
