"""The engine's own process, what it speaks, and the client that talks to it."""
