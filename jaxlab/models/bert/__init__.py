"""Published BERT, MiniLM, RoBERTa and XLM-R: encoders and rerankers."""
