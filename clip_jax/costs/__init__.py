"""Costs of a model: FLOPs and parameters, profiler traces, compiled programs."""
