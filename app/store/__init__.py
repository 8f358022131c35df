"""Redis: the connection, the embedded server, and one Lua script per use case."""
