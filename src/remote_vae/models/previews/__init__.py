"""Modules of previews that diffusers does not have. Their tensors have the names of the published weights."""
