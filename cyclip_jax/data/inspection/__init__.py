"""What is in a data set: what cannot be read, what stands there twice, what validation shares."""
