"""What a report says of a run: what its files hold, and what is measured."""
