"""Making adapters out of others. Needs torch; imported only by the commands that make something."""
