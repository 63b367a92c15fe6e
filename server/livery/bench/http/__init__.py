"""HTTP and text measured with an engine that costs nothing, and with a real one: `livery bench http`.

The server runs as it does for users, in a process of its own on a core of its own; a client that only counts bytes
asks it over a real socket from another core.
"""
