"""Label spaces, readers, sampling, transforms and the DataModule that all methods share."""
