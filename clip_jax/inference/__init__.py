"""Using a trained model: loading, embedding, scoring records, indexing and searching pictures."""
