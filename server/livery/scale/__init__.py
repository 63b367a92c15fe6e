"""More than one engine: the capacity plan, and Livery on Ray Serve."""
