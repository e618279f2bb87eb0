"""Brings many requests to few devices; knows no HTTP.

Only `child` and `memory`, which run in a replica's own process, import torch.
"""
