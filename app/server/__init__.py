"""HTTP/1.1 under uvicorn: a strict parser, the protocol of a connection, and bounds over all connections."""
