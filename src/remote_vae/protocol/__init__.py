"""The wire, once: standard library only, no I/O."""
