"""One HTML file about runs side by side, which needs nothing else."""
