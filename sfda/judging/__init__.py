"""Is an adapted model better than its source? What is known without a label, and what a few labels add."""
