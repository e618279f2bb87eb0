"""Modules of diffusers, described as the stages that the core runs. Each is imported when a model needs it."""
