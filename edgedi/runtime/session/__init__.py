"""What a user holds: requests in, answers out, traces and statistics, new plans while it runs."""
