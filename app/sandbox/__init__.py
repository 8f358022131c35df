"""The sandbox: Plusofon's HTTP API on loopback, in front of a virtual telephone network."""
