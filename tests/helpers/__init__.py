"""What several test files use. No test module imports another."""
