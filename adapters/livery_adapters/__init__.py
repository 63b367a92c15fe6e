"""What an adapter is and which ones exist. Knows no engine and no HTTP."""
