"""Numbers from embeddings: ranks, neighbours, classifiers, and their intervals."""
