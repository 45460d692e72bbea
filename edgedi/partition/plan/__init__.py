"""What is to happen, as values: plan and placement, programs made of them, and the proof that these finish."""
