"""What was measured, and what it predicts: profiles, the cost model, the price of a finished plan."""
