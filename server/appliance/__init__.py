"""Integration with the operating system: the system starts the server, and stays awake for it."""
