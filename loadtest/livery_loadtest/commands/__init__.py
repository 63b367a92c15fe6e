"""What each command of `livery bench` does: options in, files and an exit status out. Measures nothing itself."""
