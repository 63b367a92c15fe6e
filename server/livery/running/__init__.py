"""A whole server put together and run: what `livery serve`, Ray Serve and the benchmarks share."""
