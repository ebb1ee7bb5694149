"""Suites of evaluators."""
