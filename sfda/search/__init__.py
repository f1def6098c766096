"""A search without labels over what a network can be given without training it."""
