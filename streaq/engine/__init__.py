"""What runs while a worker lives."""
