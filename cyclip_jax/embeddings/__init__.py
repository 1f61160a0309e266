"""A data set's embeddings on disk: written, read again, searched, shown."""
