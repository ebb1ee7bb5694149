"""Evaluators: retrieval, zero-shot and few-shot classification, linear probes, robustness."""
