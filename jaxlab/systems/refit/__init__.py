"""ReFIT: a retriever that learns from its reranker while it answers."""
