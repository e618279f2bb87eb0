"""Pixels <-> written pictures and video."""
