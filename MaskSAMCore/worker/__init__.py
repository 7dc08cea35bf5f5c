"""The engine in a process of its own: worker, protocol and client."""
