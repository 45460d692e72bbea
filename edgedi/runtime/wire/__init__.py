"""What is said between processes, and its bytes: pure."""
